"""A slide and a stainer that cost nothing, as functions and as a program that can be killed."""

import sys
import time
from pathlib import Path

import numpy as np
import tifffile

from miudiff.noise import NoiseKey
from miudiff.slides.blocks import Encoder
from miudiff.slides.encoding import Compression
from miudiff.slides.frame import Frame, frame_of
from miudiff.slides.ome_tiff import assemble
from miudiff.slides.pyramid import BlockStore, Layout
from miudiff.slides.reader import open_slide
from miudiff.slides.runner import Here, Runner
from miudiff.slides.sight import Sight

GRID = (160, 24, 8)  # window, overlap, multiple


class Grid:
    """A stainer's, as `frame_of` asks for it."""

    window, overlap, multiple = GRID
    least = 64


def paint(height, width):
    """A smooth coloured field, uint8 [height, width, 3]."""
    y, x = np.mgrid[:height, :width] / 90
    waves = [np.sin(3 * x + k) * np.cos(2 * y - k) for k in range(3)]
    return np.round(140 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


def make_slide(path, height, width):
    """`paint` as a tiled TIFF without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, paint(height, width), tile=(256, 256), photometric="rgb", compression="deflate")
    return path


class PlaceStainer:
    """The negative, a little brighter from window to window: a seam would show, and so would a window at the wrong place."""

    def __init__(self, stop_after=None, seconds=0.0, steps=5):
        self.count, self.stop_after, self.seconds, self.steps = 0, stop_after, seconds, steps

    def one(self, pixels, top, left):
        return (255 - pixels.astype(int) + (left // 8 + top // 4) % self.steps).clip(0, 255).astype(np.uint8)

    batch = 1

    def for_section(self, dyes):
        return self

    def stream(self, windows):
        for piece, key in windows:
            yield from self.stain([piece], [key])

    def stain(self, pieces, keys):
        if self.stop_after is not None and self.count + len(pieces) > self.stop_after:
            raise KeyboardInterrupt
        self.count += len(pieces)
        time.sleep(self.seconds * len(pieces))
        return [self.one(piece, key.y, key.x) for piece, key in zip(pieces, keys)]


def translate(
    source,
    folder,
    *,
    mpp=None,
    model_mpp=None,
    glass=None,
    regions=None,
    mark=False,
    stop_after=None,
    stainer=None,
    engine=None,
):
    with open_slide(source) as slide:
        plain = Frame(slide.width, slide.height, slide.width, slide.height, *GRID)
        frame = frame_of(slide.width, slide.height, mpp, model_mpp, Grid) if mpp else plain
        sight = Sight(slide, frame, glass, regions, mark)
        store = BlockStore(
            folder / "w" / "blocks", Layout(slide.width, slide.height, 256), Compression("lossless")
        )
        encoder = Encoder(sight, store, 2)
        try:
            runner = Runner(sight, encoder, folder / "w")
            staining = stainer or PlaceStainer(stop_after)
            runner.run(engine or Here(staining, NoiseKey(0, "slide")))
            assemble(store, folder / "out.ome.tif", mpp or 1.0, "slide", "identity")
        finally:
            encoder.close()
    return folder / "out.ome.tif"


if __name__ == "__main__":
    translate(Path(sys.argv[1]), Path(sys.argv[2]), stainer=PlaceStainer(seconds=0.02))
