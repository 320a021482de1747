"""A number and how sure it is: percentile bootstrap over images, over slides, or over seeds.

    interval = [2.5 %, 97.5 %] quantile of the statistic of values drawn with replacement, n of n (Efron 1979)

For a difference of two methods on the same images, give the differences of each image: the spread between
images drops out. Tiles of one slide are alike: where slides are known, name them as `groups`, and whole slides
are drawn. Below about ten values or slides the interval is narrower than it should be; it is then a hint, not
a test.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from miudiff.stains import Floats

RESAMPLES = 2000
QUANTILES = (0.025, 0.975)
ROUNDING = 1e-9  # of the largest value: what differs by less is the same


class Interval(NamedTuple):
    """A mean of `n` values with its 95 % interval; `low` and `high` are None where `n` is less than 2."""

    mean: float
    low: float | None
    high: float | None
    n: int
    left_out: int = 0

    def __str__(self) -> str:
        between = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        lost = f", {self.left_out} left out" if self.left_out else ""
        return f"{self.mean:.4g}{between} (n={self.n}{lost})"


def interval(
    values: Sequence[float] | Floats, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> Interval:
    """Mean and 95 % interval of one number for each image or seed; a function of its arguments alone.

    NaN (a measure that an image does not have) and infinities (the PSNR of identical images) are left out and
    counted in `left_out`, never dropped unsaid. If no finite value is there, the mean is that of what is
    there: the infinity that all share, else NaN.

    Args:
        groups: The slide of each value; then slides are drawn, and all of their values with them.

    Raises:
        ValueError: No values at all, or not as many groups.
    """
    given = np.asarray(values, dtype=np.float64).ravel()
    if not given.size:
        raise ValueError("no values, expected at least one to take a mean of")
    if groups is not None and len(groups) != given.size:
        raise ValueError(f"{len(groups)} groups of {given.size} values, expected one for each")
    kept = np.isfinite(given)
    finite = given[kept]
    left_out = given.size - finite.size
    if not finite.size:
        same = bool((given == given[0]).all())
        return Interval(float(given[0]) if same else float("nan"), None, None, 0, left_out)
    if groups is not None:
        groups = [group for group, keep in zip(groups, kept, strict=True) if keep]
    low, high = bootstrap(lambda drawn: [float(finite[drawn].mean())], finite.size, seed, groups)[0]
    return Interval(float(finite.mean()), low, high, finite.size, left_out)


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], Sequence[float]],
    count: int,
    seed: int = 0,
    groups: Sequence[Hashable] | None = None,
) -> list[tuple[float | None, float | None]]:
    """95 % intervals of several statistics of `count` items at once; (None, None) where there is no telling.

    Args:
        statistic: Takes the numbers of the items drawn and gives its values, NaN where one is not defined:
            such draws are left out, and where they are half of all or more there is no interval.
        groups: The slide of each item; then slides are drawn.
    """
    if count < 2 or (groups is not None and len(set(groups)) < 2):
        return [(None, None)] * len(statistic(np.arange(count)))
    drawn = np.array([statistic(items) for items in _draws(count, seed, groups)])
    found: list[tuple[float | None, float | None]] = []
    for values in drawn.T:
        defined = values[np.isfinite(values)]
        if 2 * len(defined) <= len(values):
            found.append((None, None))
        else:
            low, high = np.quantile(defined, QUANTILES)
            found.append((float(low), float(high)))
    return found


def _draws(count: int, seed: int, groups: Sequence[Hashable] | None) -> Iterator[NDArray[np.intp]]:
    random = np.random.default_rng(seed)
    if groups is None:
        for _ in range(RESAMPLES):
            yield random.integers(count, size=count)
        return
    members: dict[Hashable, list[int]] = {}
    for item, group in enumerate(groups):
        members.setdefault(group, []).append(item)
    slides = [np.array(items, dtype=np.intp) for items in members.values()]
    for _ in range(RESAMPLES):
        yield np.concatenate([slides[slide] for slide in random.integers(len(slides), size=len(slides))])


def is_flat(values: Floats) -> bool:
    """Whether all are the same, up to the rounding of sums."""
    return not values.size or bool(np.ptp(values) <= ROUNDING * np.abs(values).max())


def pearson(first: Floats, second: Floats) -> float:
    """Correlation of two vectors; NaN for fewer than 2 values, or where one side is the same in all."""
    if len(first) < 2 or is_flat(first) or is_flat(second):
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])
