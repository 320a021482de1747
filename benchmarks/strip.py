"""How long a large slide takes, by a strip of it: the strip is stained whole, by the command line, and its time told for the square.

    python benchmarks/strip.py HE.png --mpp 0.5 --side 15 --preset turbo

A strip is `side` mm wide and as high as said, tissue all over: the field again and again, mirrored, so that it has no seams. It is an
OME-TIFF of JPEG tiles. All other options are for `miudiff translate`. Start-up, guards and report are in the time, and are not multiplied.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

from miudiff.images import Pixels, read_image


def strip_of(field: Pixels, height: int, width: int) -> Pixels:
    """The field, mirrored over and over, uint8 [height, width, 3]."""
    pair = np.concatenate([field, field[:, ::-1]], axis=1)
    four = np.concatenate([pair, pair[::-1]])
    down, across = (-(-want // have) for want, have in zip((height, width), four.shape[:2], strict=True))
    return np.tile(four, (down, across, 1))[:height, :width]


def write(path: Path, strip: Pixels, mpp: float) -> None:
    """As a slide: an OME-TIFF of two levels, in JPEG tiles."""
    how = {"tile": (512, 512), "compression": "jpeg", "photometric": "rgb", "compressionargs": {"level": 90}}
    scale = {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(strip, subifds=1, metadata={"axes": "YXS", **scale}, **how)
        tiff.write(strip[::4, ::4], subfiletype=1, **how)


def seconds(slide: Path, folder: Path, words: list[str]) -> float:
    """Of `miudiff translate`."""
    command = [sys.executable, "-m", "miudiff", "translate", str(slide), str(folder), *words]
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("field", type=Path)
    parser.add_argument("--mpp", type=float, required=True)
    parser.add_argument("--side", type=float, default=15, help="of the square, in mm")
    parser.add_argument(
        "--heights",
        type=float,
        nargs=2,
        default=(0.496, 0.976),
        help="of two strips, in mm: two and four rows of windows of 512 pixels of 0.5 um, as the square has no broken ones",
    )
    arguments, words = parser.parse_known_args()
    field, pixel = read_image(arguments.field), arguments.mpp / 1000
    times = []
    with tempfile.TemporaryDirectory() as name:
        for height in arguments.heights:
            strip = strip_of(field, round(height / pixel), round(arguments.side / pixel))
            slide = Path(name) / f"strip-{1000 * height:.0f}um.ome.tif"
            write(slide, strip, arguments.mpp)
            times.append(seconds(slide, Path(name) / "stained", words))
            print(f"{arguments.side:g} x {height:g} mm: {times[-1]:.1f} s", flush=True)
    # Two heights, so that what does not grow with the strip is told apart from what does.
    low, high = arguments.heights
    each = (times[1] - times[0]) / (high - low)
    whole = times[1] + each * (arguments.side - high)
    print(
        f"{each / arguments.side:.2f} s a mm2; {arguments.side:g} x {arguments.side:g} mm: {whole / 60:.1f} min"
    )


if __name__ == "__main__":
    main()
