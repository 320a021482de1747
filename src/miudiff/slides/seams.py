"""Can the windows be seen in a result? The gradient across their borders over the gradient elsewhere; 1 where they cannot.

    seam = mean |p(x) - p(x - 1)| over border lines x / mean over all other lines,   rows and columns of borders together

A border line is where a window begins or ends. Between the two lines of neighbours lies their blend; where it averages two
different pictures it is smoother than either: `blend` is the same ratio for the lines inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from miudiff.images import Pixels


class Seams(NamedTuple):
    """Gradients over those of all lines that lie in one window only; NaN where there is no such line."""

    border: float
    blend: float


def seams(pixels: Pixels, lefts: Sequence[int], tops: Sequence[int], size: tuple[int, int]) -> Seams:
    """The seams of a picture, uint8 [H, W, 3].

    Args:
        lefts: Where columns of windows begin.
        tops: Where rows of windows begin.
        size: (height, width) of a window.
    """
    image = pixels.astype(np.float32).mean(-1)
    sums = np.zeros((3, 2))
    for begins, side, axis in ((lefts, size[1], 1), (tops, size[0], 0)):
        kinds = _kinds(begins, side)
        steps = np.abs(np.diff(image, axis=axis))
        for line, step in enumerate(np.moveaxis(steps, axis, 0), 1):
            sums[kinds.get(line, INSIDE)] += step.sum(), step.size
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = sums[:, 0] / sums[:, 1]
        return Seams(float(mean[BORDER] / mean[INSIDE]), float(mean[BLEND] / mean[INSIDE]))


INSIDE, BORDER, BLEND = 0, 1, 2


def _kinds(begins: Sequence[int], side: int) -> dict[int, int]:
    """The lines x, between pixels x - 1 and x, that are no lines inside one window."""
    kinds: dict[int, int] = {}
    for before, after in pairwise(begins):
        kinds |= {x: BLEND for x in range(after + 1, before + side)}
    for before, after in pairwise(begins):
        kinds |= {after: BORDER, before + side: BORDER}
    return kinds
