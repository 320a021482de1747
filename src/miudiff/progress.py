"""How far long work is: a line every ten seconds with what is done, the rate and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

EVERY = 10.0  # seconds between lines

Item = TypeVar("Item")


class Progress:
    """Called with how much of how much is done, as often as one likes; says so every ten seconds.

    The first call begins the count: what was done by then says nothing of the rate.

    Args:
        unit: What is counted, as in "steps".
        say: Takes the line.
        what: Begins the line in place of the unit, as in "measured".
    """

    def __init__(self, unit: str, say: Callable[[str], None], what: str | None = None) -> None:
        self.unit, self.say, self.what = unit, say, what or unit
        self._first: int | None = None
        self._began = self._told = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done
            self._began = self._told = now
        elif now - self._told >= EVERY and self._first < done < total:
            self._told = now
            rate = (done - self._first) / (now - self._began)
            left = duration((total - done) / rate)
            self.say(f"  {self.what} {done}/{total}  {speed(rate, self.unit)}  {left} left")

    def over(self, items: Iterable[Item], total: int) -> Iterator[Item]:
        """The items, each counted when the next is asked for."""
        self(0, total)
        for done, item in enumerate(items, 1):
            yield item
            self(done, total)


def speed(rate: float, unit: str) -> str:
    """A rate in words, per second or, where that is slow, per minute."""
    return f"{rate:.1f} {unit}/s" if rate >= 0.2 else f"{60 * rate:.1f} {unit}/min"


def duration(seconds: float) -> str:
    """A time in words: seconds, minutes, hours or days."""
    for unit, length, upto in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 72)):
        if seconds < upto * length:
            return f"{seconds / length:.0f} {unit}" if unit != "h" else f"{seconds / length:.1f} h"
    return f"{seconds / 86400:.1f} days"
