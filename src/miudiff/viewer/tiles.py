"""Tiles of a slide for the page: squares of 512 pixels at every halving of level 0; DAB and uncertainty are drawn here too.

    tile (k, x, y) = level-0 box [512 x 2^k, 512 (x + 1) 2^k] x [512 y 2^k, 512 (y + 1) 2^k]

with a pixel more on each side that has a neighbour, and cut at the slide's edge.

A tile is read right or refused; nothing stands in for it. It is a JPEG, or a PNG where it is transparent.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from miudiff import __version__
from miudiff.errors import SlideError
from miudiff.images import Pixels
from miudiff.slides.reader import Slide, open_slide, read_scaled
from miudiff.slides.regions import Regions
from miudiff.slides.result import uncertainty_share
from miudiff.stains import combine_stains, dab_map, rgb_from_hdab

SIDE = 512
OVERLAP = (
    1  # pixels of each neighbour: without them the page would stretch tiles by a pixel to hide their seams
)
HELD = 8  # slides kept open: the panes of two pages
QUALITY = 90  # without chroma subsampling: the stain is in the chroma
DOUBT = (0, 214, 160)  # a green that neither stain has
STRONGEST = 0.85  # opacity of the overlay where uncertainty is greatest


@dataclass(frozen=True)
class Place:
    """A tile: level-0 pixels are halved `halvings` times, then column and row of squares of `SIDE`."""

    halvings: int
    column: int
    row: int


def halvings(width: int, height: int) -> int:
    """How often a slide is halved until it is one tile."""
    return max(0, math.ceil(math.log2(max(width, height) / SIDE)))


def version(path: Path) -> str:
    """A word that changes when the file's content, or the way it is drawn, does.

    Raises:
        OSError: The file is gone.
    """
    status = path.stat()
    key = f"{__version__} {status.st_size} {status.st_mtime_ns} ".encode() + os.fsencode(path.absolute())
    return hashlib.sha256(key).hexdigest()[:16]


class Slides:
    """Slides by their files, the latest kept open; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, tuple[str, Slide]] = OrderedDict()

    def get(self, path: Path) -> Slide:
        """The open slide; opened again if its file has changed.

        Raises:
            SlideError: It cannot be opened.
            OSError: It is gone.
        """
        now = version(path)
        with self._lock:
            if path in self._open and self._open[path][0] == now:
                self._open.move_to_end(path)
                return self._open[path][1]
            slide = open_slide(path)
            if version(path) != now:
                raise SlideError(f"{path}: changed while it was opened; ask again")
            self._open[path] = now, slide
            while len(self._open) > HELD:
                # Not closed here: a thread may be reading from it, and it closes with its last reader.
                self._open.popitem(last=False)
            return slide

    def close(self) -> None:
        with self._lock:
            for _, slide in self._open.values():
                slide.close()
            self._open.clear()


def read_tile(slide: Slide, place: Place) -> Pixels:
    """The pixels of a tile with `OVERLAP` of its neighbours, uint8, at most [514, 514, 3]; less at the slide's edges.

    Raises:
        SlideError: It cannot be read, in whole or in part.
        ValueError: There is no such tile.
    """
    step = 2**place.halvings if place.halvings <= halvings(slide.width, slide.height) else 0
    left, top = place.column * SIDE, place.row * SIDE
    if not step or left * step >= slide.width or top * step >= slide.height:
        raise ValueError(f"no tile {place}")
    wide = _box(slide, step, left - OVERLAP, top - OVERLAP, left + SIDE + OVERLAP, top + SIDE + OVERLAP)
    try:
        return _read(slide, step, wide)
    except SlideError:  # damage of a neighbour is not this tile's
        own = _box(slide, step, left, top, left + SIDE, top + SIDE)
        pixels = _read(slide, step, own)
    before = [(inner - outer) // step for inner, outer in zip(own[:2], wide[:2])]
    after = [n - m - k for n, m, k in zip(_size(wide, step), pixels.shape[1::-1], before)]
    return np.pad(pixels, ((before[1], after[1]), (before[0], after[0]), (0, 0)), mode="edge")


Box = tuple[int, int, int, int]


def _box(slide: Slide, step: int, left: int, top: int, right: int, bottom: int) -> Box:
    """The part of the slide in a box of pixels of `step` level-0 pixels."""
    right, bottom = min(right * step, slide.width), min(bottom * step, slide.height)
    return max(left * step, 0), max(top * step, 0), right, bottom


def _size(box: Box, step: int) -> tuple[int, int]:
    """Pixels across and down. Rounded down at the slide's edges: one more would be finer than the level that fits."""
    return max(1, (box[2] - box[0]) // step), max(1, (box[3] - box[1]) // step)


def _read(slide: Slide, step: int, box: Box) -> Pixels:
    width, height = _size(box, step)
    if (box[2] - box[0], box[3] - box[1]) == (width * step, height * step):
        x, y = box[0] // step, box[1] // step
        for number, level in enumerate(slide.levels):
            if level.downsample == step and x + width <= level.width and y + height <= level.height:
                # The same pixels without the margin of a resampling, which may be damaged.
                return slide.read(x, y, width, height, number)
    return read_scaled(slide, box, width, height)


def inside(regions: Regions, place: Place, pixels: Pixels) -> NDArray[np.bool_]:
    """Which pixels of a tile lie in regions, bool [H, W]."""
    step, (height, width) = 2**place.halvings, pixels.shape[:2]
    left, top = (max(number * SIDE - OVERLAP, 0) * step for number in (place.column, place.row))
    return regions.mask(left, top, width, height, step)


def stain(pixels: Pixels) -> Pixels:
    """The image as it is."""
    return pixels


def dab(pixels: Pixels) -> Pixels:
    """Its DAB alone, in DAB's own colour on white: separated with the light 255, as the measures do."""
    return combine_stains(dab_map(pixels)[..., None], rgb_from_hdab[1:2])


def doubt(pixels: Pixels) -> Pixels:
    """An uncertainty map as an overlay, uint8 [H, W, 4]: the less certain, the less it lets through."""
    colour = np.broadcast_to(np.array(DOUBT, np.uint8), pixels.shape)
    return _with_alpha(colour, np.rint(255 * STRONGEST * uncertainty_share(pixels)).astype(np.uint8))


# Each layer of the page: whose pixels, and how they are drawn.
LAYERS: dict[str, tuple[str, Callable[[Pixels], Pixels]]] = {
    "he": ("he", stain),
    "ihc": ("ihc", stain),
    "ihc-dab": ("ihc", dab),
    "real": ("real", stain),
    "real-dab": ("real", dab),
    "uncertainty": ("uncertainty", doubt),
}


def encode(drawn: Pixels, shown: NDArray[np.bool_] | None = None) -> tuple[bytes, str]:
    """What is drawn as a file, and its media type.

    Args:
        drawn: uint8 [H, W, 3] or [H, W, 4].
        shown: Which of an image without alpha is opaque, bool [H, W]; all by default.
    """
    if shown is not None and not shown.all():
        drawn = _with_alpha(
            np.where(shown[..., None], drawn, np.uint8(255)), np.where(shown, np.uint8(255), np.uint8(0))
        )
    buffer, image = io.BytesIO(), Image.fromarray(drawn)
    if image.mode == "RGBA":
        image.save(buffer, "PNG", compress_level=1)
        return buffer.getvalue(), "image/png"
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue(), "image/jpeg"


def _with_alpha(colour: Pixels, alpha: Pixels) -> Pixels:
    return np.concatenate([colour, alpha[..., None]], axis=-1)
