"""Resampling a window of an endless grid, so that windows fit together.

What a pixel becomes depends on its place in the grid alone, to the last bit, never on the window or box it was asked for in: an
image library's resize works from the corner of its image with 32-bit places, and differs there. Along each axis it is the
pixels whose centre lies in the new one, evenly, where it shrinks (as Pillow's BOX), and a bicubic with a = -1/2 (Keys 1981, as
Pillow's) where it grows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from miudiff.images import Pixels

Box = tuple[float, float, float, float]

PHASES = 4096  # places of a bicubic between two pixels: the same place, reached by other sums, has the same weights
SAME = 1e-9  # how far a step of one pixel may be from 1
TIE = 1e-6  # a centre on the border of two new pixels is the second one's, whatever the last digits say


def resample(pixels: Pixels, x: int, y: int, box: Box, width: int, height: int) -> Pixels:
    """A box of a grid at another scale, uint8 [height, width, C].

    Args:
        pixels: The window of the grid that is known, uint8 [H, W, C], with a margin of `reach` around the box; beyond the window
            its edge goes on.
        x: Column of the grid that the window begins at.
        y: Row of the grid that the window begins at.
        box: Left, top, right, bottom in pixels of the grid; fractions allowed.
        width: Pixels of the result.
        height: Pixels of the result.
    """
    rows, columns, channels = pixels.shape
    step_x, step_y = (box[2] - box[0]) / width, (box[3] - box[1]) / height
    if is_same(box[0], box[1], step_x, step_y):
        left, top = round(box[0]) - x, round(box[1]) - y
        if left >= 0 and top >= 0 and left + width <= columns and top + height <= rows:
            return pixels[top : top + height, left : left + width]
        across_at = (round(box[0]) - x + np.arange(width)).clip(0, columns - 1)
        return pixels[(round(box[1]) - y + np.arange(height)).clip(0, rows - 1)][:, across_at]
    # float32 adds whole numbers below 2^24 without rounding
    kind = np.float32 if 255 * math.ceil(step_x) * math.ceil(step_y) < 2**24 else np.float64
    down, count_down = _weights(box[1], step_y, height, y, rows)
    across, count_across = _weights(box[0], step_x, width, x, columns)
    tall = down.astype(kind) @ pixels.reshape(rows, -1).astype(kind)
    turned = np.ascontiguousarray(tall.reshape(height, columns, channels).transpose(1, 0, 2))
    sums = (across.astype(kind) @ turned.reshape(columns, -1)).reshape(width, height, channels)
    means = sums.transpose(1, 0, 2) / np.outer(count_down, count_across)[..., None].astype(kind)
    return np.ascontiguousarray(np.rint(means).clip(0, 255), np.uint8)


def is_same(left: float, top: float, step_x: float, step_y: float) -> bool:
    """Whether a box's pixels are pixels of the grid."""
    return _is_whole(left) and _is_whole(top) and max(abs(step_x - 1), abs(step_y - 1)) < SAME


def reach(step: float) -> int:
    """How many pixels beyond a box matter to its pixels."""
    return 1 if step > 1 else 3


def _is_whole(place: float) -> bool:
    return abs(place - round(place)) * PHASES < 0.5


def _weights(
    start: float, step: float, count: int, first: int, size: int
) -> tuple[sparse.csr_array, NDArray[np.float64]]:
    """Weights [count, size] of the pixels first, first + 1, ... in the new ones, and what the sums are to be divided by."""
    if step > 1:
        edges = np.ceil(start + np.arange(count + 1) * step - 0.5 - TIE).astype(np.int64)
        counts = np.diff(edges)
        source = np.arange(edges[0], edges[-1])
        values = np.ones(len(source))
        rows = np.repeat(np.arange(count), counts)
        parts = counts.astype(np.float64)
    else:
        places = np.rint((start + (np.arange(count) + 0.5) * step - 0.5) * PHASES).astype(np.int64)
        source = (places[:, None] // PHASES + np.arange(-1, 3)).ravel()
        values = _bicubic(places % PHASES / PHASES).ravel()
        rows = np.repeat(np.arange(count), 4)
        parts = np.ones(count)
    columns = (source - first).clip(0, size - 1)
    starts = np.searchsorted(rows, np.arange(count + 1))
    # kept as entries in this order, repeated ones at an edge too, so that sums are always made alike
    return sparse.csr_array((values, columns, starts), shape=(count, size)), parts


def _bicubic(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights [n, 4] of the pixels at -1, 0, 1, 2 for places at `share` between 0 and 1."""
    t = share
    return np.stack(
        [
            ((-0.5 * t + 1) * t - 0.5) * t,
            (1.5 * t - 2.5) * t * t + 1,
            ((-1.5 * t + 2) * t + 0.5) * t,
            (0.5 * t - 0.5) * t * t,
        ],
        axis=1,
    )
