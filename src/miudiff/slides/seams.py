"""Can the windows be seen in a result? The gradient across their borders over the gradient elsewhere; 1 where they cannot.

    seam = mean |p(x) - p(x - 1)| over border lines x / mean over all other lines,   rows and columns of borders together

A border line is where a window begins or ends. Between the two lines of neighbours lies their blend; where it averages two
different pictures it is smoother than either: `blend` is the same ratio for the lines inside.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from miudiff.images import Pixels


class Seams(NamedTuple):
    """Gradients over those of all lines that lie in one window only; NaN where there is no such line."""

    border: float
    blend: float


class SeamGauge:
    """Sums gradients over parts of a picture, so that a slide never has to be held whole.

    Args:
        lefts: Where columns of windows begin.
        tops: Where rows of windows begin.
        size: (height, width) of a window.
    """

    def __init__(self, lefts: Iterable[int], tops: Iterable[int], size: tuple[int, int]) -> None:
        self._lines = [_kinds(list(lefts), size[1]), _kinds(list(tops), size[0])]
        self._sums = np.zeros((3, 2))

    def add(self, pixels: Pixels, left: int, top: int, tissue: NDArray[np.bool_] | None = None) -> None:
        """Take in a part, uint8 [H, W, 3], whose corner lies at (left, top); parts may share one row or column.

        Args:
            tissue: Which pixels count, [H, W]; flat glass has no gradient to compare with.
        """
        image = pixels.astype(np.float32).mean(-1)
        for axis, (kinds, begin) in enumerate(zip(self._lines, (left, top))):
            step = np.abs(np.diff(image, axis=1 - axis))
            count = np.ones(step.shape, bool)
            if tissue is not None:
                count = tissue[:, 1:] & tissue[:, :-1] if axis == 0 else tissue[1:] & tissue[:-1]
            sums, counts = (np.where(count, step, 0).sum(axis), count.sum(axis))
            for i, (amount, number) in enumerate(zip(sums, counts), begin + 1):
                self._sums[kinds.get(i, INSIDE)] += amount, number

    def result(self) -> Seams:
        """The ratios over everything that was added."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = self._sums[:, 0] / self._sums[:, 1]
            return Seams(float(mean[BORDER] / mean[INSIDE]), float(mean[BLEND] / mean[INSIDE]))


INSIDE, BORDER, BLEND = 0, 1, 2


def _kinds(begins: list[int], side: int) -> dict[int, int]:
    """The lines x, between pixels x - 1 and x, that are no lines inside one window."""
    kinds: dict[int, int] = {}
    for before, after in itertools.pairwise(begins):
        kinds |= {x: BLEND for x in range(after + 1, before + side)}
    for before, after in itertools.pairwise(begins):
        kinds |= {after: BORDER, before + side: BORDER}
    return kinds


def seams(pixels: Pixels, lefts: Iterable[int], tops: Iterable[int], size: tuple[int, int]) -> Seams:
    """The seams of a picture that is held whole."""
    gauge = SeamGauge(lefts, tops, size)
    gauge.add(pixels, 0, 0)
    return gauge.result()
