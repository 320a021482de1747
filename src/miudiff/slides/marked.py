"""Reading around damage: what cannot be read is marked instead of refused, for those who ask for it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from miudiff.images import Pixels
from miudiff.slides.resampling import Box
from miudiff.slides.scaled import read_scaled
from miudiff.slides.slide import RegionError, Slide

BLOCK = 256  # pixels of a level: damage is marked in squares of a grid of these
MIDDLE = 128


def read_marked(
    slide: Slide, x: int, y: int, width: int, height: int, level: int = 0
) -> tuple[Pixels, NDArray[np.bool_]]:
    """The pixels of a region, uint8 [height, width, 3], and where they cannot be read, bool [height, width].

    A square of the level's grid of 256 pixels is marked if any of it cannot be read, and is black: so the same places are marked
    whichever region is asked for.

    Raises:
        SlideError: The file vanished or changed.
        ValueError: The region is not inside the level.
    """
    try:
        return slide.read(x, y, width, height, level), np.zeros((height, width), bool)
    except RegionError:
        pass
    pixels, mask = np.zeros((height, width, 3), np.uint8), np.ones((height, width), bool)
    size = slide.levels[level]
    for top in range(y - y % BLOCK, y + height, BLOCK):
        for left in range(x - x % BLOCK, x + width, BLOCK):
            w, h = min(BLOCK, size.width - left), min(BLOCK, size.height - top)
            try:
                block = slide.read(left, top, w, h, level)
            except RegionError:
                continue
            x0, x1 = max(left, x), min(left + w, x + width)
            y0, y1 = max(top, y), min(top + h, y + height)
            pixels[y0 - y : y1 - y, x0 - x : x1 - x] = block[y0 - top : y1 - top, x0 - left : x1 - left]
            mask[y0 - y : y1 - y, x0 - x : x1 - x] = False
    return pixels, mask


def read_scaled_marked(slide: Slide, box: Box, width: int, height: int) -> tuple[Pixels, NDArray[np.bool_]]:
    """`read_scaled` around damage: the pixels, and which of them are made of a place that cannot be read."""
    found = False

    def read(x: int, y: int, w: int, h: int, level: int) -> Pixels:
        nonlocal found
        pixels, mask = read_marked(slide, x, y, w, h, level)
        found = found or bool(mask.any())
        return pixels

    def read_mask(x: int, y: int, w: int, h: int, level: int) -> Pixels:
        mask = read_marked(slide, x, y, w, h, level)[1]
        # A bicubic's weights may be negative, so the mask is told from the middle of the range.
        return np.where(mask, np.uint8(255), np.uint8(MIDDLE))[..., None].repeat(3, axis=-1)

    pixels = read_scaled(slide, box, width, height, read)
    if not found:
        return pixels, np.zeros((height, width), bool)
    mask: NDArray[np.bool_] = read_scaled(slide, box, width, height, read_mask)[..., 0] != MIDDLE
    return np.where(mask[..., None], np.uint8(0), pixels), mask
