"""Honest times: what is compared alternates, so that a machine whose speed drifts treats both alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from miudiff.device import wait_for

Work = Callable[[], object]


class Pairs(NamedTuple):
    """Seconds of two pieces of work that were done in turns, first `base`, then `other`."""

    base: list[float]
    other: list[float]

    @property
    def ratio(self) -> float:
        """The median over the pairs of other / base."""
        return statistics.median(self._ratios)

    @property
    def _ratios(self) -> list[float]:
        return [other / base for base, other in zip(self.base, self.other, strict=True)]

    def as_dict(self, base: str, other: str) -> dict[str, float | int]:
        """For the JSON file: the ratio with its range, and the median seconds of both by their names."""
        return {
            "ratio": round(self.ratio, 4),
            "least": round(min(self._ratios), 4),
            "greatest": round(max(self._ratios), 4),
            "pairs": len(self.base),
            f"{base}_seconds": round(statistics.median(self.base), 6),
            f"{other}_seconds": round(statistics.median(self.other), 6),
        }


class Clock:
    """Times work on a device, whose queue is empty before and after.

    Args:
        most: Repetitions of each measurement.
        budget: Seconds after which no further repetition begins; at least `LEAST` are made.
    """

    LEAST = 3

    def __init__(self, device: torch.device, most: int = 15, budget: float = 600.0) -> None:
        self.device, self.most, self.budget = device, most, budget

    def once(self, work: Work) -> float:
        """Seconds of one call."""
        wait_for(self.device)
        began = time.perf_counter()
        work()
        wait_for(self.device)
        return time.perf_counter() - began

    def seconds(self, work: Work) -> float:
        """The median of several calls, after one that is not counted."""
        return statistics.median(self.pairs(work, lambda: None).base)

    def pairs(self, base: Work, other: Work) -> Pairs:
        """Both in turns, after one call of each that is not counted."""
        base(), other()
        found = Pairs([], [])
        began = time.monotonic()
        while len(found.base) < self.most:
            if len(found.base) >= self.LEAST and time.monotonic() - began > self.budget:
                break
            found.base.append(self.once(base))
            found.other.append(self.once(other))
        return found
