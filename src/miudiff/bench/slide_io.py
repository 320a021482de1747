"""A whole slide through the machinery alone: read, tiled, blended and written by a stainer that gives back what it is given.

Beside it libvips converts the same slide. Each runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from miudiff.bench.machine import peak_of_process
from miudiff.images import Pixels
from miudiff.noise import NoiseKey
from miudiff.slides.blocks import Encoder
from miudiff.slides.encoding import Compression
from miudiff.slides.frame import Frame
from miudiff.slides.ome_tiff import assemble
from miudiff.slides.pyramid import BlockStore, Layout, halve, write_strip
from miudiff.slides.reader import open_slide
from miudiff.slides.runner import Here, Keyed, Runner
from miudiff.slides.sight import Sight

MPP, TILE = 0.25, 512


class Same:
    """A stainer that costs nothing."""

    batch = 1

    def stream(self, windows: Iterable[Keyed]) -> Iterator[Pixels]:
        """The windows themselves."""
        return (pixels for pixels, _ in windows)


def section(side: int) -> Pixels:
    """Something like H&E, uint8 [side, side, 3]: blobs of nuclear size on pink, which JPEG finds as hard as tissue."""
    draw = np.random.default_rng(0)
    blobs = ndimage.gaussian_filter(draw.standard_normal((side, side)), 8, mode="wrap")
    fine = ndimage.gaussian_filter(draw.standard_normal((side, side)), 1, mode="wrap")
    nuclei = (blobs > 1.2 * blobs.std())[..., None]
    pink, violet = np.array([225, 160, 195]), np.array([110, 70, 140])
    return np.clip(np.where(nuclei, violet, pink) + 40 * fine[..., None], 0, 255).astype(np.uint8)


def make_slide(path: Path, side: int) -> None:
    """Write a JPEG pyramid of `side` pixels, two thirds tissue, one third glass."""
    layout = Layout(side, side)
    store = BlockStore(path.with_suffix(".blocks"), layout, Compression())
    tissue = np.tile(section(2 * TILE), (1, -(-side // (2 * TILE)), 1))[:, :side]
    tissue[:, 2 * side // 3 :] = 244
    for row in range(layout.rows(0)):
        begin = row % 2 * TILE
        write_strip(store, 0, row, tissue[begin : begin + min(TILE, side - row * TILE)])
    for level in range(1, len(layout.levels)):
        for row in range(layout.rows(level)):
            halve(store, level, row)
    assemble(store, path, MPP, "benchmark", "benchmark")


def beside_libvips(folder: Path, side: int) -> dict[str, Any]:
    """Wall seconds, processor seconds and peak MiB of both; libvips' are missing where pyvips is not installed."""
    source = folder / "section.ome.tif"
    make_slide(source, side)
    found: dict[str, Any] = {"side": side, "miudiff": _child("miudiff", source)}
    if find_spec("pyvips") is None:
        return found | {"libvips": "not measured: pip install pyvips-binary pyvips"}
    found["libvips"] = _child("libvips", source)
    for kind in ("wall_seconds", "processor_seconds"):
        found[f"ratio_of_{kind}"] = round(found["miudiff"][kind] / found["libvips"][kind], 3)
    return found


def _child(what: str, source: Path) -> dict[str, float]:
    command = [sys.executable, "-m", __name__, what, str(source)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _miudiff(source: Path, out: Path) -> None:
    slide = open_slide(source)
    frame = Frame(slide.width, slide.height, slide.width, slide.height, 1056, 32, 8)
    sight = Sight(slide, frame)
    store = BlockStore(out / "blocks", Layout(slide.width, slide.height), Compression())
    encoder = Encoder(sight, store, 2)
    Runner(sight, encoder, out).run(Here(Same(), NoiseKey(0, "benchmark")))
    encoder.complete()
    assemble(store, out / "out.ome.tif", MPP, "benchmark", "benchmark")
    encoder.close()


def _libvips(source: Path, out: Path) -> None:
    import pyvips

    image = pyvips.Image.new_from_file(str(source), access="sequential")
    jpeg = {"compression": "jpeg", "Q": 90, "tile": True, "tile_width": TILE, "tile_height": TILE}
    image.tiffsave(str(out / "out.tif"), pyramid=True, subifd=True, bigtiff=True, **jpeg)


def main(arguments: Sequence[str]) -> None:
    """Convert a slide by "miudiff" or "libvips", and print what it took as JSON."""
    what, source = arguments
    out = Path(source).parent / what
    out.mkdir()
    before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    (_miudiff if what == "miudiff" else _libvips)(Path(source), out)
    after = resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        json.dumps(
            {
                "wall_seconds": round(time.perf_counter() - began, 2),
                "processor_seconds": round(processor, 2),
                "peak_mib": peak_of_process(),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1:])
