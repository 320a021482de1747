"""How near two sets are, whatever their pairs: Fréchet and kernel distance of an encoder's features.

    FID = |μ − ν|² + tr(Σ + Τ − 2 (Σ Τ)^½)                                            (Heusel et al. 2017)
    KID = mean k(x, x') + mean k(y, y') − 2 mean k(x, y),  k(x, y) = (x · y / D + 1)³  (Bińkowski et al. 2018)

KID leaves x = x' out, so it is unbiased and may be below 0; FID is biased upwards in small sets. Both hang on
the encoder: compare values of one encoder, one preprocessing and one number of images only.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from miudiff.errors import DataError
from miudiff.stains import Floats

ENOUGH = 500  # images below which an FID is not worth quoting
SUBSETS, SUBSET = 100, 1000  # of the kernel distance


class KernelDistance(NamedTuple):
    """Mean over subsets and their standard deviation; 0 where one subset holds all."""

    mean: float
    std: float


def frechet_distance(first: Floats, second: Floats) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features [N, D] and [M, D]; at least 0.

    With Σ = AᵀA and Τ = BᵀB the eigenvalues of ΣΤ are the squared singular values of ABᵀ: no matrix root is
    taken, and sets of fewer images than features need no small number on the diagonal.
    """
    first, second = _features(first), _features(second)
    (mean, root), (other_mean, other_root) = _moments(first), _moments(second)
    spread = (root**2).sum() + (other_root**2).sum()
    shared = np.linalg.svd(root @ other_root.T, compute_uv=False).sum()
    return float(max(((mean - other_mean) ** 2).sum() + spread - 2 * shared, 0.0))


def _moments(features: Floats) -> tuple[Floats, Floats]:
    """Mean [D] and a matrix A [min(N, D), D] with AᵀA the covariance."""
    mean = features.mean(axis=0)
    centred = (features - mean) / np.sqrt(len(features) - 1)
    return mean, np.asarray(np.linalg.qr(centred, mode="r"))


def kernel_distance(first: Floats, second: Floats, seed: int = 0) -> KernelDistance:
    """Kernel distance of two sets of features [N, D] and [M, D]: unbiased cubic MMD².

    Where a set has more than 1000, both are told by 100 drawn subsets of at most 1000, else at once and whole.
    """
    first, second = _features(first), _features(second)
    if max(len(first), len(second)) <= SUBSET:
        return KernelDistance(_squared_mmd(first, second), 0.0)
    random = np.random.default_rng(seed)
    found = [
        _squared_mmd(
            *(
                each[random.choice(len(each), min(len(each), SUBSET), replace=False)]
                for each in (first, second)
            )
        )
        for _ in range(SUBSETS)
    ]
    return KernelDistance(float(np.mean(found)), float(np.std(found)))


def _squared_mmd(first: Floats, second: Floats) -> float:
    width = first.shape[1]

    def kernel(one: Floats, other: Floats) -> Floats:
        return np.asarray((one @ other.T / width + 1) ** 3)

    def within(features: Floats) -> float:
        values = kernel(features, features)
        return float((values.sum() - np.trace(values)) / (len(features) * (len(features) - 1)))

    return within(first) + within(second) - 2 * float(kernel(first, second).mean())


def _features(features: Floats) -> Floats:
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"features of shape {features.shape}, expected [N, D] with at least 2 images")
    return features.astype(np.float64)


def read_features(path: Path) -> Floats:
    """Features [N, D] that another program took: an .npy array, or an .npz with one array.

    Raises:
        DataError: Not there, not numbers, not one row for each image, or not finite.
    """
    try:
        with path.open("rb") as file:
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                array = content
            elif len(content.files) == 1:
                array = content[content.files[0]]
            else:
                names = ", ".join(content.files)
                raise DataError(f"{path}: holds the arrays {names}, expected one of features [N, D]")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path}: is no array of numbers, expected .npy or .npz with features [N, D]"
        ) from error
    if array.ndim != 2 or len(array) < 2 or array.dtype.kind not in "fiu":
        found = f"{array.dtype} of shape {array.shape}"
        raise DataError(f"{path}: {found}, expected numbers [N, D], one row for each of at least 2 images")
    if not np.isfinite(array).all():
        raise DataError(f"{path}: holds NaN or infinity, expected finite features; take them again")
    return np.asarray(array, dtype=np.float64)
