"""What a page is made of, from above to below: pictures, plots, tables, commands, notes, and parts that are folded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import ClassVar, NamedTuple

from miudiff.images import Pixels

MISSING = "–"
NEAR = 25.0  # per cent of an axis: two texts below it would touch


class Cell(NamedTuple):
    """A cell of a table as it is shown: numbers stand to the right, the best of a column is bold; `small` follows the text."""

    text: str
    number: bool = False
    best: bool = False
    small: str = ""

    @property
    def line(self) -> str:
        return f"{self.text} {self.small}".rstrip()

    @classmethod
    def of(cls, value: object) -> Cell:
        """How text, a number, a `statistics.Interval` or nothing is shown; a `Cell` as it is."""
        if isinstance(value, Cell):
            return value
        if isinstance(value, Real) and not isinstance(value, Integral):
            return cls(MISSING if math.isnan(value) else f"{float(value):.4g}", True)
        return cls(MISSING if value is None else str(value), not isinstance(value, str))


@dataclass(frozen=True)
class Figure:
    """An image with its title and caption: a file, or uint8 [H, W, 3] or [H, W]."""

    kind: ClassVar = "figure"
    title: str
    caption: str
    image: Path | str | Pixels


@dataclass(frozen=True)
class Rows:
    """Pictures of one field side by side, row below row.

    Attributes:
        rows: A name, "" for none, and pictures of one size.
        curtain: Whether each of a few pictures has a curtain that uncovers the next, where scripts may run; else
            they are many, and small.
        photo: Whether pixels may be stored as JPEG, which is smaller, and not as PNG, which is exact.
    """

    kind: ClassVar = "rows"
    title: str
    rows: Sequence[tuple[str, Sequence[Figure]]]
    caption: str = ""
    photo: bool = False
    curtain: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of values below a header, as `Cell.of` shows them; `note` stands under the table."""

    kind: ClassVar = "table"
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""

    def cells(self) -> list[list[Cell]]:
        """Its rows as they are shown.

        Raises:
            ValueError: A row is not as long as the header.
        """
        for row in self.rows:
            if len(row) != len(self.header):
                raise ValueError(f"a row of {len(row)} cells below a header of {len(self.header)}: {row}")
        return [[Cell.of(value) for value in row] for row in self.rows]


@dataclass(frozen=True)
class Dot:
    """A mean on an axis of its own, with its interval.

    Attributes:
        title: What was measured.
        value: The mean in words, with its unit.
        between: The interval in words; "" without one.
        mean: Where the dot stands.
        low: Where the interval begins; None without one.
        high: Where it ends.
        start: The axis's first value.
        end: Its last one.
        target: The value that is to be reached; None where there is none.
        meaning: What the target stands for.
        beside: What to compare the mean with, drawn as a hollow mark; None where there is nothing.
    """

    title: str
    value: str
    between: str
    mean: float
    low: float | None
    high: float | None
    start: float
    end: float
    target: float | None = None
    meaning: str = ""
    beside: float | None = None

    def share(self, value: float) -> float:
        """Where a value lies on the axis, in per cent of its length."""
        return 100 * min(max((value - self.start) / (self.end - self.start), 0.0), 1.0)

    @property
    def ticks(self) -> list[tuple[float, str, str]]:
        """Place in per cent, anchor and text of what is written below the axis; a target takes a near end's place."""
        ends = [(0.0, "start", f"{self.start:g}"), (100.0, "end", f"{self.end:g}")]
        if self.target is None:
            return ends
        at = self.share(self.target)
        side = "start" if at < NEAR else "end" if at > 100 - NEAR else "middle"
        free = [end for end in ends if abs(end[0] - at) >= NEAR]
        return [*free, (at, side, f"{self.target:g}: {self.meaning}")]


@dataclass(frozen=True)
class Plot:
    """Dots with whiskers, one below the other; `beside` says what the hollow marks stand for, if there are any."""

    kind: ClassVar = "plot"
    title: str
    caption: str
    dots: Sequence[Dot]
    beside: str = ""

    @property
    def legend(self) -> str:
        return self.beside if any(dot.beside is not None for dot in self.dots) else ""


@dataclass(frozen=True)
class Commands:
    """What to type next: (command, what it does)."""

    kind: ClassVar = "commands"
    title: str
    lines: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Notes:
    """How to read a page, what was left out: a list."""

    kind: ClassVar = "notes"
    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Folded:
    """Parts that are seen when their title is clicked."""

    kind: ClassVar = "folded"
    title: str
    parts: Sequence[Part]


Part = Figure | Rows | Table | Plot | Commands | Notes | Folded


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The rows as a Markdown table, columns of numbers set to the right; ends in a newline.

    Raises:
        ValueError: A row is not as long as the header.
    """
    cells = Table("", header, rows).cells()
    numbers = [cells and all(cell.number for cell in column) for column in zip(*cells, strict=True)]
    rules = ["---:" if right else "---" for right in numbers or [False] * len(header)]
    body = [[f"**{cell.line}**" if cell.best else cell.line for cell in row] for row in cells]
    lines = [list(header), rules, *body]
    return "".join(f"| {' | '.join(_markdown(text) for text in line)} |\n" for line in lines)


def _markdown(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
