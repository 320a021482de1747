"""Beer-Lambert stain model: an image is light times exp(-density), density a sum over stains.

    D = -log10(I / I0) = c . M        (Ruifrok and Johnston 2001)

with M a [stains, 3] matrix of optical densities for red, green and blue, and c the amount of each stain at a pixel.
DAB is not a true absorber: amounts are comparable within one image, not calibrated concentrations.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

HEMATOXYLIN = (0.650, 0.704, 0.286)
EOSIN = (0.072, 0.990, 0.105)
DAB = (0.268, 0.570, 0.776)
# Reference colours of an H&E slide (Macenko et al. 2009): less magenta than Ruifrok's, as scanners show them.
HE_HEMATOXYLIN = (0.563, 0.720, 0.406)
HE_EOSIN = (0.216, 0.801, 0.558)


def stain_matrix(*stains: tuple[float, float, float]) -> Floats:
    """Unit rows of 2 or 3 stains, [3, 3]; with two, the third is the direction neither explains.

    The third row is sqrt(1 - a^2 - b^2) for each colour, as ImageJ's Colour Deconvolution completes a pair.
    """
    rows = np.array(stains, dtype=np.float64)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    if len(rows) == 2:
        rest = np.sqrt(np.clip(1 - (rows**2).sum(axis=0), 0, None))
        rows = np.vstack([rows, rest / np.linalg.norm(rest)])
    return rows


rgb_from_hdab = stain_matrix(HEMATOXYLIN, DAB)
rgb_from_hed = stain_matrix(HEMATOXYLIN, EOSIN)
rgb_from_he = stain_matrix(HE_HEMATOXYLIN, HE_EOSIN)


def optical_density(image: NDArray[np.uint8], light: Floats | float = 255.0) -> Floats:
    """-log10(I / light) of a uint8 image [..., 3], at least 0; a black pixel counts as grey level 1."""
    return np.clip(-np.log10(np.maximum(image.astype(np.float64), 1.0) / light), 0, None)


def separate_stains(image: NDArray[np.uint8], matrix: Floats, light: Floats | float = 255.0) -> Floats:
    """Amounts [..., 3] of each stain of `matrix` in a uint8 image [..., 3]; negative where noise or colour disagree."""
    return optical_density(image, light) @ np.linalg.inv(matrix)


def combine_stains(amounts: Floats, matrix: Floats, light: Floats | float = 255.0) -> NDArray[np.uint8]:
    """The uint8 image [..., 3] that `amounts` [..., stains] of the first rows of `matrix` give."""
    density = amounts @ matrix[: amounts.shape[-1]]
    return np.clip(np.round(light * 10.0**-density), 0, 255).astype(np.uint8)


def background_light(image: NDArray[np.uint8]) -> Floats:
    """The light I0 [3] of an image: the 99th percentile of each colour, so grey glass counts as no stain."""
    return np.percentile(image.reshape(-1, 3), 99, axis=0).clip(1, None)


def dab_map(image: NDArray[np.uint8], light: Floats | float = 255.0) -> Floats:
    """DAB amount [H, W] of an IHC image, at least 0, in optical density."""
    return np.clip(separate_stains(image, rgb_from_hdab, light)[..., 1], 0, None)
