"""The regions that a slide's numbers are given for: those drawn on it, else squares of a millimetre."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Protocol

import numpy as np

from miudiff.cells import Mask
from miudiff.slide_report.plane import Block, Plane
from miudiff.slides.regions import Regions, Ring

SIDES = (1000.0, 500.0, 250.0, 125.0)  # µm; the largest of which the slide is at least FEWEST long
FEWEST = 4
UNSCALED = 8  # squares along the longer side of a slide without a scale


class Parts(Protocol):
    """Regions by their numbers, 0, 1, ..."""

    @property
    def names(self) -> Sequence[str]: ...

    def members(self, block: Block) -> Iterator[tuple[int, Mask]]:
        """The regions that a block may hold something of, each with its pixels, bool [height, width] of the block."""

    def rings(self, index: int) -> tuple[Ring, ...]:
        """The outline and the holes of a region, [n, 2] of x, y in pixels of level 0."""


class Squares:
    """A grid over the slide; the squares at its right and lower border are cut. Column A, row 1 is the upper left one."""

    def __init__(self, plane: Plane) -> None:
        longest = max(plane.width, plane.height)
        if plane.mpp is None:
            self.side = max(1, -(-longest // UNSCALED))
        else:
            side = next((s for s in SIDES if longest * plane.mpp >= FEWEST * s), SIDES[-1])
            self.side = max(1, round(side / plane.mpp))
        self._plane = plane
        self._columns, rows = (-(-pixels // self.side) for pixels in (plane.width, plane.height))
        self.names = [
            f"{_letters(column)}{row + 1}" for row in range(rows) for column in range(self._columns)
        ]

    def members(self, block: Block) -> Iterator[tuple[int, Mask]]:
        side = self.side
        for row in range(block.y // side, -(-(block.y + block.height) // side)):
            for column in range(block.x // side, -(-(block.x + block.width) // side)):
                mask = np.zeros((block.height, block.width), bool)
                mask[
                    max(row * side - block.y, 0) : (row + 1) * side - block.y,
                    max(column * side - block.x, 0) : (column + 1) * side - block.x,
                ] = True
                yield row * self._columns + column, mask

    def rings(self, index: int) -> tuple[Ring, ...]:
        row, column = divmod(index, self._columns)
        left, top = column * self.side, row * self.side
        right, bottom = min(left + self.side, self._plane.width), min(top + self.side, self._plane.height)
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return (np.array(corners, np.float64) * self._plane.step,)


class Drawn:
    """Regions that somebody drew; they may overlap, and what lies in two counts for both."""

    def __init__(self, regions: Regions, plane: Plane) -> None:
        self._each = [Regions((polygon,)) for polygon in regions.polygons]
        self._plane = plane
        self.names: list[str] = []
        taken: set[str] = set()
        again: defaultdict[str, Iterator[int]] = defaultdict(lambda: count(2))
        for polygon in regions.polygons:
            name = polygon.name
            while name in taken:
                name = f"{polygon.name} ({next(again[polygon.name])})"
            taken.add(name)
            self.names.append(name)

    def members(self, block: Block) -> Iterator[tuple[int, Mask]]:
        left, top, right, bottom = self._plane.box(block)
        for index, region in enumerate(self._each):
            x0, y0, x1, y1 = region.bounds
            if x0 < right and x1 > left and y0 < bottom and y1 > top:
                yield index, region.mask(left, top, block.width, block.height, self._plane.step)

    def rings(self, index: int) -> tuple[Ring, ...]:
        return self._each[index].polygons[0].rings


def _letters(column: int) -> str:
    """A, B, ... Z, AA, AB, ... as a table of cells counts its columns."""
    text = ""
    column += 1
    while column:
        column, letter = divmod(column - 1, 26)
        text = chr(ord("A") + letter) + text
    return text
