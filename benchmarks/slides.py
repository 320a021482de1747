"""Whole slides without a network: speed beside libvips on the same slide, peak memory, and what a slide of any size holds at once.

    python benchmarks/slides.py --side 40960 --folder /tmp/slides

Makes a JPEG pyramid of that side from a generated section (noise of H&E colours, and glass), copies it through the runner with a
stainer that gives back what it is given, and converts it with libvips. Wall time, processor time and peak memory of each, every
one in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from miudiff.noise import NoiseKey
from miudiff.slides.blocks import Encoder
from miudiff.slides.encoding import Compression
from miudiff.slides.frame import Frame
from miudiff.slides.ome_tiff import assemble
from miudiff.slides.overview import tissue_mask
from miudiff.slides.pyramid import BlockStore, Layout, halve, write_strip
from miudiff.slides.reader import open_slide
from miudiff.slides.runner import Here, Runner
from miudiff.slides.sight import Sight

MPP = 0.25


class Same:
    """A stainer that costs nothing."""

    def stain(self, pieces, keys):
        return pieces


def section(side: int, seed: int = 0) -> np.ndarray:
    """A tile of something like H&E, uint8 [side, side, 3]: nuclei-sized blobs on pink, which JPEG finds as hard as tissue."""
    from scipy import ndimage

    draw = np.random.default_rng(seed)
    blobs = ndimage.gaussian_filter(draw.standard_normal((side, side)), 8, mode="wrap")
    fine = ndimage.gaussian_filter(draw.standard_normal((side, side)), 1, mode="wrap")
    nuclei = (blobs > 1.2 * blobs.std())[..., None]
    pink, violet = np.array([225, 160, 195]), np.array([110, 70, 140])
    return np.clip(np.where(nuclei, violet, pink) + 40 * fine[..., None], 0, 255).astype(np.uint8)


def make(path: Path, side: int) -> None:
    """A pyramid with two thirds tissue, written strip by strip."""
    layout = Layout(side, side)
    store = BlockStore(path.with_suffix(".blocks"), layout, Compression())
    tile = section(1024)
    tissue = np.tile(tile, (1, -(-side // 1024), 1))[:, :side]
    tissue[:, 2 * side // 3 :] = 244
    for row in range(layout.rows(0)):
        begin = row * 512 % 1024
        write_strip(store, 0, row, tissue[begin : begin + min(512, side - row * 512)])
    for level in range(1, len(layout.levels)):
        for row in range(layout.rows(level)):
            halve(store, level, row)
    assemble(store, path, MPP, "benchmark", "benchmark")
    for block in store.folder.iterdir():
        block.unlink()


def run_miudiff(source: Path, folder: Path, window: int, overlap: int, model_mpp: float, glass: bool) -> None:
    slide = open_slide(source)
    factor = MPP / model_mpp
    frame = Frame(
        slide.width,
        slide.height,
        round(slide.width * factor),
        round(slide.height * factor),
        window,
        overlap,
        8,
    )
    sight = Sight(slide, frame, tissue_mask(slide, MPP) if glass else None)
    store = BlockStore(folder / "blocks", Layout(slide.width, slide.height), Compression())
    encoder = Encoder(sight, store, 2)
    Runner(sight, encoder, folder).run(Here(Same(), NoiseKey(0, "benchmark")))
    encoder.complete()
    assemble(store, folder / "out.ome.tif", MPP, "benchmark", "benchmark")
    encoder.close()


def run_vips(source: Path, folder: Path) -> None:
    import pyvips

    image = pyvips.Image.new_from_file(str(source), access="sequential")
    image.tiffsave(
        str(folder / "vips.tif"),
        tile=True,
        pyramid=True,
        subifd=True,
        compression="jpeg",
        Q=90,
        bigtiff=True,
        tile_width=512,
        tile_height=512,
    )


def child(what: str, source: Path, folder: Path, arguments: argparse.Namespace) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    if what == "vips":
        run_vips(source, folder)
    else:
        run_miudiff(source, folder, arguments.window, arguments.overlap, arguments.model_mpp, arguments.glass)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "wall_s": round(time.monotonic() - began, 2),
                "cpu_s": round(usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime, 2),
                "peak_mib": round(usage.ru_maxrss / 1024),
                "before_mib": round(before.ru_maxrss / 1024),
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--folder", type=Path, default=Path("slides-benchmark"))
    parser.add_argument("--window", type=int, default=1056)
    parser.add_argument("--overlap", type=int, default=32)
    parser.add_argument(
        "--model-mpp", type=float, default=MPP, help="coarser than 0.25 resamples, as real weights do"
    )
    parser.add_argument("--glass", action="store_true", help="look for glass and leave it")
    parser.add_argument("--only", choices=("miudiff", "vips"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    source = arguments.folder / f"section-{arguments.side}.ome.tif"
    if arguments.child:
        child(arguments.child[0], source, Path(arguments.child[1]), arguments)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        make(source, arguments.side)
    found = {}
    for what in ("miudiff", "vips") if arguments.only is None else (arguments.only,):
        folder = arguments.folder / f"{what}-{time.time_ns()}"
        result = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--child", what, str(folder)],
            check=True,
            capture_output=True,
            text=True,
        )
        found[what] = json.loads(result.stdout.splitlines()[-1])
        print(f"{what}: {found[what]}", flush=True)
    if len(found) == 2:
        for kind in ("wall_s", "cpu_s"):
            print(f"speed of libvips reached, by {kind}: {found['vips'][kind] / found['miudiff'][kind]:.2f}")


if __name__ == "__main__":
    main()
