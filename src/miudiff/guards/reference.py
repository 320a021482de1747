"""The H&E that a model knows, as the mean and covariance of a few statistics, and how far an image is from it.

The statistics are of the two dyes, each with its own picture's strength taken out, and of the grain: how a tissue is built, not how
strongly it was stained. The distance is Mahalanobis'; its limit is the 99th percentile of the distances of the
reference's own images, each from all the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from miudiff.config import Strict
from miudiff.errors import DataError
from miudiff.guards.texture import contrasts, part
from miudiff.images import Pixels, list_images, read_image, read_scale
from miudiff.normalisation import HEStains, fit_he_stains

Floats = NDArray[np.float64]

FEWEST = 16  # images: fewer say too little of how H&E differs
FAINT = 0.1  # of a dye's strength: less of both is no tissue
LEAST_SPREAD = 0.05  # of a statistic: one that hardly differs among few images may yet in others
SHRINKAGE = 0.2  # of the covariance towards its diagonal


class HEReference(Strict):
    """What `describe` gives of a model's H&E."""

    mean: tuple[float, ...] = Field(min_length=1, description="Of each statistic.")
    covariance: tuple[tuple[float, ...], ...] = Field(
        description="Of the statistics, shrunk to its diagonal."
    )
    images: int = Field(ge=FEWEST, description="How many images it was measured on.")
    limit: float = Field(
        gt=0, description="The distance that one in a hundred of them is beyond, left out itself."
    )

    @model_validator(mode="after")
    def _square(self) -> Self:
        sizes = {len(self.covariance), *map(len, self.covariance)}
        if sizes != {len(self.mean)} or len(self.mean) != LENGTH:
            raise ValueError(
                f"{len(self.mean)} means and a covariance of {sorted(sizes)}, expected {LENGTH} of each"
            )
        if np.linalg.eigvalsh(np.array(self.covariance)).min() <= 0:
            raise ValueError("covariance: expected a positive definite matrix")
        return self

    def distance(self, statistics: Floats) -> float:
        """Mahalanobis distance of an image's statistics."""
        return _distance(statistics, np.array(self.mean), np.array(self.covariance))


LENGTH = 13  # statistics


def describe(parts: Sequence[Pixels], mpp: float) -> Floats:
    """The statistics of an image or a slide, [LENGTH], from the parts that `texture.part` gives: means over the parts.

    Raises:
        DataError: Too little tissue to tell the two dyes apart.
    """
    stains = fit_he_stains(parts)
    return np.mean([_of_part(one, stains, mpp) for one in parts], axis=0)


def _of_part(picture: Pixels, stains: HEStains, mpp: float) -> Floats:
    """Quartiles and spread of each dye where there is any, how the two go together, and the slope of the grain."""
    amounts = stains.amounts(picture[::2, ::2]).reshape(-1, 2)
    stained = amounts[amounts.max(axis=1) > FAINT]
    dyes = (stained if len(stained) > 2 else amounts).T
    spread = [statistic for dye in dyes for statistic in (*np.percentile(dye, (25, 50, 75)), dye.std())]
    together = float(np.corrcoef(dyes[0], dyes[1])[0, 1]) if dyes.std(axis=1).all() else 0.0
    grain = np.log2(contrasts(picture, mpp) + 1e-3)
    return np.array([*spread, together, *np.diff(grain[::2]), grain[0] - grain[-1]])


def measure_reference(he: Sequence[Floats]) -> HEReference:
    """The reference of the statistics of images.

    Raises:
        DataError: Fewer than FEWEST images.
    """
    if len(he) < FEWEST:
        raise DataError(f"{len(he)} images of H&E, expected at least {FEWEST} to know how it differs")
    rows = np.stack(he)
    left_out = []
    for i in range(len(rows)):
        others = np.delete(rows, i, axis=0)
        left_out.append(_distance(rows[i], others.mean(axis=0), _shrunk(others)))
    return HEReference(
        mean=tuple(rows.mean(axis=0).tolist()),
        covariance=tuple(map(tuple, _shrunk(rows).tolist())),
        images=len(rows),
        limit=float(np.percentile(left_out, 99)),
    )


def reference_of(folder: Path, mpp: float | None, assumed: float | None) -> HEReference:
    """The reference of the images in a folder.

    Args:
        mpp: Micrometres per pixel of all of them; None takes what each file states, or else `assumed`.

    Raises:
        DataError: Too few images, one that cannot be read, or one without a scale.
    """

    def statistics(path: Path) -> Floats:
        scale = mpp or read_scale(path) or assumed
        if scale is None:
            raise DataError(f"{path}: states no micrometres per pixel, nor does the model; give --mpp")
        return describe(*part([read_image(path)], scale))

    return measure_reference([statistics(path) for path in list_images(folder)])


def _distance(at: Floats, mean: Floats, covariance: Floats) -> float:
    away = at - mean
    return float(np.sqrt(away @ np.linalg.solve(covariance, away)))


def _shrunk(rows: Floats) -> Floats:
    covariance = np.cov(rows, rowvar=False) + LEAST_SPREAD**2 * np.eye(rows.shape[1])
    return np.asarray((1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(np.diag(covariance)))
