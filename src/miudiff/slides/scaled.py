"""Reading at any scale.

A slide is resampled a box at a time, and the boxes must fit together: what a pixel becomes depends on its place on the slide
alone, never on the box it was asked for in. So each box is read with the margin that its filter reaches into, and beyond the
slide its edge goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from miudiff.images import Pixels
from miudiff.slides.slide import Slide

Box = tuple[float, float, float, float]
Read = Callable[[int, int, int, int, int], Pixels]

AT_ONCE = 16_000_000  # pixels of a level in memory; a larger box is put together
# Pillow's BOX takes the pixels whose centre lies in the box. A factor such as 3.7 puts centres right on borders of boxes, where the
# last digit would choose; a shift by a thousandth of a pixel takes them off it.
SHIFT = 1e-3


def read_scaled(slide: Slide, box: Box, width: int, height: int, read: Read | None = None) -> Pixels:
    """A box of the slide at another scale, uint8 [height, width, 3].

    It is made of the coarsest level that is at least as fine as asked for, or of level 0 where it grows: by area average (the
    pixels whose centre lies in the box of the new one) where it shrinks, by a bicubic where it grows.

    Args:
        slide: What to read.
        box: Left, top, right, bottom in pixels of level 0, fractions allowed. Beyond the slide its edge goes on.
        width: Pixels of the result.
        height: Pixels of the result.
        read: Reads instead of `slide.read`, with its arguments x, y, width, height, level.

    Raises:
        SlideError: A part of it cannot be read.
        ValueError: The box or the size is empty, or the box does not touch the slide.
    """
    left, top, right, bottom = box
    if width < 1 or height < 1 or not (left < right and top < bottom):
        raise ValueError(f"box {box} to {width} x {height}: empty")
    if right <= 0 or bottom <= 0 or left >= slide.width or top >= slide.height:
        raise ValueError(f"box {box} does not touch the slide, {slide.width} x {slide.height}")
    step_x, step_y = (right - left) / width, (bottom - top) / height
    level = best_level(slide, min(step_x, step_y))
    across, down = factors(slide, level)
    step_x, step_y = step_x / across, step_y / down
    left, top = left / across, top / down
    chunk_w = max(1, min(width, int(math.sqrt(AT_ONCE) / step_x)))
    chunk_h = max(1, min(height, int(math.sqrt(AT_ONCE) / step_y)))
    read = read or slide.read
    result = np.empty((height, width, 3), np.uint8)
    for i in range(0, height, chunk_h):
        for j in range(0, width, chunk_w):
            h, w = min(chunk_h, height - i), min(chunk_w, width - j)
            part = (left + j * step_x, top + i * step_y, left + (j + w) * step_x, top + (i + h) * step_y)
            result[i : i + h, j : j + w] = _resample(slide, level, part, w, h, read)
    return result


def best_level(slide: Slide, factor: float) -> int:
    """The coarsest level with at most `factor` pixels of level 0 to a pixel; level 0 if there is none."""
    fine = [i for i, level in enumerate(slide.levels) if level.downsample <= factor * (1 + 1e-6)]
    return max(fine, key=lambda i: slide.levels[i].downsample, default=0)


def factors(slide: Slide, level: int) -> tuple[float, float]:
    """How many pixels of level 0 a pixel of the level spans across and down."""
    size = slide.levels[level]
    if size.downsample.is_integer():
        return size.downsample, size.downsample
    return slide.width / size.width, slide.height / size.height


def _resample(slide: Slide, level: int, box: Box, width: int, height: int, read: Read) -> Pixels:
    """A box of a level, in its pixels, to width x height."""
    step_x, step_y = (box[2] - box[0]) / width, (box[3] - box[1]) / height
    shrinks = step_x * step_y > 1
    if shrinks:
        box = (box[0] + SHIFT, box[1] + SHIFT, box[2] + SHIFT, box[3] + SHIFT)
    # a bicubic reaches 2 pixels of the coarser of both grids
    margin_x, margin_y = (2 if shrinks else 2 + math.ceil(2 * max(1.0, step)) for step in (step_x, step_y))
    x, right = math.floor(box[0]) - margin_x, math.ceil(box[2]) + margin_x
    y, bottom = math.floor(box[1]) - margin_y, math.ceil(box[3]) + margin_y
    pixels = _read_beyond(slide, level, x, y, right, bottom, read)
    inner = (box[0] - x, box[1] - y, box[2] - x, box[3] - y)
    whole = all(abs(edge - round(edge)) < 1e-6 for edge in inner)
    if whole and not shrinks and abs(step_x - 1) < 1e-9 and abs(step_y - 1) < 1e-9:
        near = [round(edge) for edge in inner]
        return pixels[near[1] : near[3], near[0] : near[2]]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize((width, height), method, box=inner))


def _read_beyond(
    slide: Slide, level: int, left: int, top: int, right: int, bottom: int, read: Read
) -> Pixels:
    """A region that may reach beyond the level, whose edge is repeated there."""
    size = slide.levels[level]
    x, y = min(max(left, 0), size.width - 1), min(max(top, 0), size.height - 1)
    x_end, y_end = max(min(right, size.width), x + 1), max(min(bottom, size.height), y + 1)
    pixels = read(x, y, x_end - x, y_end - y, level)
    beyond = ((y - top, bottom - y_end), (x - left, right - x_end), (0, 0))
    return np.pad(pixels, beyond, mode="edge") if any(map(any, beyond)) else pixels
