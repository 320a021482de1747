"""How far long work is: a line every ten seconds with what is done, the rate and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY = 10.0  # seconds between lines


class Progress:
    """Called with how much of how much is done, as often as one likes; says so every ten seconds.

    Args:
        unit: What is counted, as in "steps".
        say: Takes the line.
    """

    def __init__(self, unit: str, say: Callable[[str], None]) -> None:
        self.unit, self.say = unit, say
        self._began = self._told = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        if (
            self._first is None
        ):  # what was done by an earlier start of the work says nothing of this one's rate
            self._first = done
            return
        now = time.monotonic()
        if now - self._told < EVERY or done <= self._first:
            return
        self._told = now
        rate = (done - self._first) / (now - self._began)
        self.say(
            f"  {self.unit} {done}/{total}  {speed(rate, self.unit)}  {duration((total - done) / rate)} left"
        )


def speed(rate: float, unit: str) -> str:
    """A rate in words, per second or, where that is slow, per minute."""
    return f"{rate:.1f} {unit}/s" if rate >= 0.2 else f"{60 * rate:.1f} {unit}/min"


def duration(seconds: float) -> str:
    """A time in words: seconds, minutes, hours or days."""
    for unit, length, upto in (("s", 1, 120), ("min", 60, 120), ("h", 3600, 72)):
        if seconds < upto * length:
            return f"{seconds / length:.0f} {unit}" if unit != "h" else f"{seconds / length:.1f} h"
    return f"{seconds / 86400:.1f} days"
