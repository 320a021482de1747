"""Reading at any scale: from the level that suits, a part at a time, each with the margin that its filter reaches into."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from miudiff.images import Pixels
from miudiff.slides.resampling import Box, is_same, reach, resample
from miudiff.slides.slide import Slide

Read = Callable[[int, int, int, int, int], Pixels]

AT_ONCE = 4_000_000  # pixels of a level in memory; a larger box is put together


def read_scaled(slide: Slide, box: Box, width: int, height: int, read: Read | None = None) -> Pixels:
    """A box of the slide at another scale, uint8 [height, width, 3].

    It is made of the coarsest level that is at least as fine as asked for, or of level 0 where it grows, by `resample`: what a
    pixel becomes depends on its place on the slide alone.

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
    left, top, step_x, step_y = left / across, top / down, step_x / across, step_y / down
    if is_same(left, top, step_x, step_y) and _inside(slide, level, round(left), round(top), width, height):
        return (read or slide.read)(round(left), round(top), width, height, level)
    side = math.sqrt(AT_ONCE)
    w, h = max(1, int(side / max(step_x, 1))), max(1, int(side / max(step_y, 1)))
    result = np.empty((height, width, 3), np.uint8)
    for i in range(0, height, h):
        for j in range(0, width, w):
            i_end, j_end = min(i + h, height), min(j + w, width)
            part = (left + j * step_x, top + i * step_y, left + j_end * step_x, top + i_end * step_y)
            result[i:i_end, j:j_end] = _resampled(
                slide, level, part, j_end - j, i_end - i, read or slide.read
            )
    return result


def _inside(slide: Slide, level: int, x: int, y: int, width: int, height: int) -> bool:
    size = slide.levels[level]
    return x >= 0 and y >= 0 and x + width <= size.width and y + height <= size.height


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


def _resampled(slide: Slide, level: int, box: Box, width: int, height: int, read: Read) -> Pixels:
    """A box of a level, in its pixels, to width x height."""
    size = slide.levels[level]
    margin_x, margin_y = reach((box[2] - box[0]) / width), reach((box[3] - box[1]) / height)
    x = min(max(math.floor(box[0]) - margin_x, 0), size.width - 1)
    y = min(max(math.floor(box[1]) - margin_y, 0), size.height - 1)
    x_end = max(min(math.ceil(box[2]) + margin_x, size.width), x + 1)
    y_end = max(min(math.ceil(box[3]) + margin_y, size.height), y + 1)
    return resample(read(x, y, x_end - x, y_end - y, level), x, y, box, width, height)
