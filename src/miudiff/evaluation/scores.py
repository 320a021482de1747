"""A set's scores: rows of one image each, and each key's mean or set value with its interval.

    images -> measure_case -> join -> rows -> summarise -> Scores

`score_images` takes arrays, `folders` and `evaluate` take files; both end here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from miudiff.errors import DataError
from miudiff.evaluation.panel import CELL_SCORES, FIELD_ERRORS, IOD_VARIANTS, MEASURES, measure
from miudiff.evaluation.stain import summarise_iod
from miudiff.evaluation.statistics import Interval, bootstrap, interval, pearson
from miudiff.evaluation.truth import Darkness, darkness_scores, look_at_darkness
from miudiff.images import Pixels
from miudiff.stains import Floats

Row = Mapping[str, float]
Statistic = Callable[[NDArray[np.intp]], list[float]]


@dataclass(frozen=True)
class Scores:
    """What a set of virtual stains scored.

    Attributes:
        names: One for each image.
        rows: `panel.measure` of each, and the scores of its H&E's darkness.
        summary: For each key of `panel.MEASURES` that could be measured its mean over images, or for a value
            of the whole set that value, with its interval.
    """

    names: tuple[str, ...]
    rows: tuple[Row, ...]
    summary: Mapping[str, Interval]

    @property
    def mean(self) -> dict[str, float]:
        """The numbers alone; infinite where all images are identical to their reference (PSNR)."""
        return {key: found.mean for key, found in self.summary.items()}


def score_images(
    generated: Sequence[Pixels],
    reals: Sequence[Pixels],
    sources: Sequence[Pixels] | None = None,
    names: Sequence[str] | None = None,
    *,
    nucleus: float | None = None,
    tissue: bool = False,
    mpp: float | None = None,
    slides: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Scores:
    """Score virtual stains against their true partners, all uint8 [H, W, 3] and a pair of one size.

    Args:
        generated: Virtual IHC.
        reals: True IHC, in the same order.
        sources: The H&E that they were made from; without them there is no key with `source`.
        names: For the rows; by default 0, 1, ...
        nucleus: Pixels across a nucleus; without it `mpp` gives it, and without both there is no measure of cells.
        tissue: Histograms of tissue alone, too.
        mpp: Micrometres per pixel; without it there is no measure at a length.
        slides: The slide of each image, for intervals over slides.
        seed: Of the bootstrap.

    Raises:
        DataError: Not as many of each, none at all, two sizes in a pair, or smaller than 41 pixels a side.
    """
    given = {"true IHC images": reals, "H&E images": sources, "names": names, "slides": slides}
    for what, others in given.items():
        if others is not None and len(others) != len(generated):
            raise DataError(f"{len(others)} {what} for {len(generated)} generated images, expected as many")
    partners = sources if sources is not None else [None] * len(generated)
    found = [
        measure_case(fake, real, source, nucleus, tissue, mpp)
        for fake, real, source in zip(generated, reals, partners, strict=True)
    ]
    return summarise(names or [str(number) for number in range(len(found))], join(found), slides, seed)


def measure_case(
    generated: Pixels,
    real: Pixels,
    source: Pixels | None,
    nucleus: float | None,
    tissue: bool,
    mpp: float | None,
) -> tuple[Row, Darkness | None]:
    """`panel.measure` of one image, and how dark its H&E is where, if that is given."""
    row = measure(generated, real, source, nucleus, tissue, mpp)
    return row, None if source is None else look_at_darkness(source, real, mpp)


def join(found: Sequence[tuple[Row, Darkness | None]]) -> list[Row]:
    """The rows of a set, with the scores of the darkness of its H&E images."""
    seen = [darkness for _, darkness in found if darkness is not None]
    scores = darkness_scores(seen) if seen else [{} for _ in found]
    return [{**row, **dark} for (row, _), dark in zip(found, scores, strict=True)]


def summarise(
    names: Sequence[str], rows: Sequence[Row], slides: Sequence[Hashable] | None = None, seed: int = 0
) -> Scores:
    """Means, set values and 95 % intervals of rows that `panel.measure` made alike.

    Raises:
        DataError: No rows.
    """
    if not rows:
        raise DataError("no images to score, expected at least one")
    columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    found = {key: interval(values, seed, slides) for key, values in columns.items()}
    for variant in IOD_VARIANTS:
        if f"iod_real{variant}" in columns:
            found |= _iod(variant, columns, slides, seed)
    for place in FIELD_ERRORS:
        if f"iod_field_error{place}" in columns:
            found |= _median(f"iod_field_error{place}", columns, slides, seed)
    for score in CELL_SCORES:
        if f"{score}_real" in columns:
            found |= _agreement(score, columns, slides, seed)
    ordered = {key: found[key] for key in MEASURES if key in found}
    return Scores(tuple(names), tuple(rows), ordered)


def _iod(
    variant: str, columns: Mapping[str, Floats], slides: Sequence[Hashable] | None, seed: int
) -> dict[str, Interval]:
    table = np.stack([columns[f"iod_{whose}{variant}"] for whose in ("generated", "real")], axis=1)

    def statistic(drawn: NDArray[np.intp]) -> list[float]:
        found = summarise_iod(table[drawn])
        return [found.dev_sum_1e7, found.dev_per_image_mean, found.pearson_r]

    keys = [f"iod_{name}{variant}" for name in ("sum_1e7", "per_image_mean", "pearson")]
    return _set_values(keys, statistic, len(table), 0, slides, seed)


def _median(
    key: str, columns: Mapping[str, Floats], slides: Sequence[Hashable] | None, seed: int
) -> dict[str, Interval]:
    table = columns[key][:, None]
    values, slides = _defined(table, slides)

    def statistic(drawn: NDArray[np.intp]) -> list[float]:
        return [float(np.median(values[drawn])) if len(drawn) else math.nan]

    begin, _, end = key.partition("_error")
    named = [f"{begin}_error_median{end}"]
    return _set_values(named, statistic, len(values), len(table) - len(values), slides, seed)


def _defined(table: Floats, slides: Sequence[Hashable] | None) -> tuple[Floats, list[Hashable] | None]:
    """The rows of a table [images, values] that hold no NaN, and their slides."""
    kept = np.asarray(np.isfinite(table).all(axis=1))
    of_kept = None if slides is None else [s for s, keep in zip(slides, kept, strict=True) if keep]
    return table[kept], of_kept


def _agreement(
    score: str, columns: Mapping[str, Floats], slides: Sequence[Hashable] | None, seed: int
) -> dict[str, Interval]:
    """How well the images' `score` agrees with the true ones', over the images that have cells in both."""
    table = np.stack([columns[f"{score}_{whose}"] for whose in ("generated", "real")], axis=1)
    pairs, slides = _defined(table, slides)

    def statistic(drawn: NDArray[np.intp]) -> list[float]:
        fake, real = pairs[drawn].T
        error = float(np.abs(fake - real).mean()) if len(drawn) else math.nan
        return [error, pearson(fake, real)]

    keys = [f"{score}_mae", f"{score}_pearson"]
    return _set_values(keys, statistic, len(pairs), len(table) - len(pairs), slides, seed)


def _set_values(
    keys: Sequence[str],
    statistic: Statistic,
    count: int,
    left_out: int,
    slides: Sequence[Hashable] | None,
    seed: int,
) -> dict[str, Interval]:
    values = statistic(np.arange(count))
    bounds = bootstrap(statistic, count, seed, slides)
    return {
        key: Interval(value, low, high, count, left_out)
        for key, value, (low, high) in zip(keys, values, bounds, strict=True)
    }
