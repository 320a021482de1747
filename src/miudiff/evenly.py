"""Some of many things, spread evenly over their order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Thing = TypeVar("Thing")


def evenly(things: Sequence[Thing], most: int) -> list[Thing]:
    """All of the things, or `most` of them, each from the middle of an equal share."""
    count = min(most, len(things))
    return [things[(2 * i + 1) * len(things) // (2 * count)] for i in range(count)]
