"""How long a large slide takes, by a strip of it: the strip is stained whole, by the command line, and its time told for the square.

    python benchmarks/strip.py HE.png --mpp 0.5 --side 15 --height 0.5 --preset turbo

The strip is `side` mm wide and `height` mm high, tissue all over: the field again and again, mirrored, so that it has no seams. It is an
OME-TIFF of JPEG tiles. Start-up, guards and report are in the time, and are not multiplied.
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
    parser.add_argument("--height", type=float, default=0.5, help="of the strip, in mm")
    parser.add_argument("words", nargs="*", help="options of `miudiff translate`, after --")
    arguments = parser.parse_args()
    field, pixel = read_image(arguments.field), arguments.mpp / 1000
    times = []
    with tempfile.TemporaryDirectory() as name:
        # Two heights, so that what does not grow with the strip is told apart from what does.
        for height in (arguments.height / 2, arguments.height):
            strip = strip_of(field, round(height / pixel), round(arguments.side / pixel))
            slide = Path(name) / f"strip{height}.ome.tif"
            tifffile.imwrite(
                slide,
                strip,
                tile=(512, 512),
                compression="jpeg",
                compressionargs={"level": 90},
                photometric="rgb",
                metadata={
                    "PhysicalSizeX": arguments.mpp,
                    "PhysicalSizeY": arguments.mpp,
                    "PhysicalSizeXUnit": "µm",
                    "PhysicalSizeYUnit": "µm",
                    "axes": "YXS",
                },
            )
            times.append(seconds(slide, Path(name) / f"out{height}", arguments.words))
            print(f"{arguments.side:g} x {height:g} mm: {times[-1]:.1f} s", flush=True)
    each = (times[1] - times[0]) / (arguments.height / 2)
    whole = times[1] + each * (arguments.side - arguments.height)
    print(
        f"{each / arguments.side:.2f} s a mm2; {arguments.side:g} x {arguments.side:g} mm: {whole / 60:.1f} min"
    )


if __name__ == "__main__":
    main()
