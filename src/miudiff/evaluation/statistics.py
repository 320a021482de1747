"""A mean and how sure it is: percentile bootstrap over images, or over seeds.

    interval = [2.5 %, 97.5 %] quantile of mean(values drawn with replacement, n of n)      (Efron 1979)

For a difference of two methods on the same images, give the differences of each image: the spread between
images drops out. Below about ten values the interval is narrower than it should be; it is then a hint, not a
test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from miudiff.stains import Floats

RESAMPLES = 2000


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


def interval(values: Sequence[float] | Floats, seed: int = 0) -> Interval:
    """Mean and 95 % interval of one number for each image or seed; a function of (values, seed) alone.

    NaN (a measure that an image does not have) and infinities (the PSNR of identical images) are left out and
    counted in `left_out`, never dropped unsaid. If no finite value is there, the mean is that of what is
    there: the infinity that all share, else NaN.

    Raises:
        ValueError: No values at all.
    """
    given = np.asarray(values, dtype=np.float64).ravel()
    if not given.size:
        raise ValueError("no values, expected at least one to take a mean of")
    finite = given[np.isfinite(given)]
    left_out = given.size - finite.size
    if not finite.size:
        same = bool((given == given[0]).all())
        return Interval(float(given[0]) if same else float("nan"), None, None, 0, left_out)
    mean = float(finite.mean())
    if finite.size == 1:
        return Interval(mean, None, None, 1, left_out)
    random = np.random.default_rng(seed)
    means = [finite[random.integers(finite.size, size=finite.size)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean, float(low), float(high), finite.size, left_out)
