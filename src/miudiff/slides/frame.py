"""The plane that a slide is worked on: its grid at the weights' scale, and the windows that are stained one by one.

Level 0 is the slide's own grid; the working plane is that grid resampled to the weights' micrometres per pixel. Windows lie where
`tiling.places` puts them on the whole plane, whatever part of it is asked for, so a region is stained as the whole slide would be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

from miudiff.errors import SlideError
from miudiff.tiling import places


class Window(NamedTuple):
    """A square of the working plane: which row and column of windows, and its left upper corner in working pixels."""

    row: int
    column: int
    left: int
    top: int


class Box(NamedTuple):
    """A rectangle of level 0, in pixels and their fractions."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Frame:
    """A slide of `width` x `height` pixels on a plane of `columns` x `rows`, in windows.

    Attributes:
        window: The largest side of a window; a plane that is smaller has one window of its own size.
        overlap: Working pixels that neighbouring windows share, or more.
        multiple: Sides of windows are multiples of this; the plane is mirrored up to it at its right and lower border.
    """

    width: int
    height: int
    columns: int
    rows: int
    window: int
    overlap: int
    multiple: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of every window."""
        return min(self.window, self._padded(self.rows)), min(self.window, self._padded(self.columns))

    @cached_property
    def tops(self) -> list[int]:
        """Where each row of windows begins."""
        return places(self._padded(self.rows), self.window, self.overlap)

    @cached_property
    def lefts(self) -> list[int]:
        """Where each column of windows begins."""
        return places(self._padded(self.columns), self.window, self.overlap)

    def _padded(self, side: int) -> int:
        return -(-side // self.multiple) * self.multiple

    def row(self, row: int) -> Iterator[Window]:
        """The windows of one row, from the left."""
        for column, left in enumerate(self.lefts):
            yield Window(row, column, left, self.tops[row])

    @property
    def scale(self) -> tuple[float, float]:
        """Working pixels in a pixel of level 0, (across, down)."""
        return self.columns / self.width, self.rows / self.height

    def box(self, left: int, top: int, right: int, bottom: int) -> Box:
        """The rectangle of level 0 under a rectangle of the plane."""
        across, down = self.scale
        return Box(
            left / across,
            top / down,
            min(right / across, float(self.width)),
            min(bottom / down, float(self.height)),
        )

    def rows_over(self, top: int, bottom: int) -> range:
        """The rows of windows that hold any of the plane's rows from `top` to before `bottom`."""
        found = [row for row, begin in enumerate(self.tops) if begin < bottom and begin + self.size[0] > top]
        return range(found[0], found[-1] + 1)


class Grid(Protocol):
    """What of a stainer says how a plane is divided, all in working pixels."""

    @property
    def window(self) -> int: ...

    @property
    def overlap(self) -> int: ...

    @property
    def multiple(self) -> int: ...

    @property
    def least(self) -> int:
        """The smallest side that can be stained."""
        ...


def frame_of(
    width: int,
    height: int,
    mpp: float | None,
    model_mpp: float | None,
    grid: Grid,
) -> Frame:
    """The frame of a slide for weights of `model_mpp`; without either scale, pixels are taken as they are.

    Args:
        grid: The stainer.

    Raises:
        SlideError: The slide is too small at that scale.
    """
    factor = mpp / model_mpp if mpp and model_mpp else 1.0
    columns, rows = round(width * factor), round(height * factor)
    if min(columns, rows) < grid.least:
        raise SlideError(
            f"{width} x {height} pixels are {columns} x {rows} at the model's scale, expected at least {grid.least} on each side"
        )
    return Frame(width, height, columns, rows, grid.window, grid.overlap, grid.multiple)
