"""What the grain of a picture says: whether it is in focus, and whether its nuclei are of the size that its scale states.

Both come from differences of Gaussians: the contrast of what is about so many micrometres across. Neither asks how strong
the stain is, because a contrast is set against another of the same picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from miudiff.images import LUMA, Pixels, resize
from miudiff.stains import background_light

Floats = NDArray[np.float32]

WORKING = 0.5  # micrometres per pixel: finer pictures are shrunk to it
SIDE = 512  # pixels of the part that is looked at
LEAST = 60.0  # micrometres of a side in which there are nuclei enough
COARSEST = 0.7  # micrometres per pixel at which focus still shows
FINE, COARSE = (
    (0.35, 0.5),
    (1.4, 2.0),
)  # micrometres: sigmas of the two differences whose contrasts are compared
SIZES = tuple(2.0 * 2 ** (step / 2) for step in range(9))  # micrometres across, 2 to 32
STRONG = 99  # percentile: the nuclei among all that a difference shows
ROUND = 2 * 2**0.5  # a disc is this many sigmas across where a difference of Gaussians answers it most


def part(samples: Sequence[Pixels], mpp: float) -> tuple[list[Pixels], float]:
    """The densest part of SIDE x SIDE of each picture, and their scale, not finer than WORKING."""
    factor = min(1.0, mpp / WORKING)
    return [_densest(_shrunk(one, factor)) for one in samples], mpp / factor


def _shrunk(sample: Pixels, factor: float) -> Pixels:
    return resize(sample, *(max(1, round(side * factor)) for side in sample.shape[:2]))


def _densest(picture: Pixels) -> Pixels:
    """The part on a grid of half its side that is darkest in mean; the first of several."""
    tops, lefts = (
        sorted({*range(0, side - SIDE, SIDE // 2), max(side - SIDE, 0)}) for side in picture.shape[:2]
    )
    if len(tops) == len(lefts) == 1:
        return picture[:SIDE, :SIDE]
    grey = picture[::8, ::8].mean(axis=-1)
    span = SIDE // 8
    places = [(top, left) for top in tops for left in lefts]
    top, left = min(places, key=lambda at: grey[at[0] // 8 :, at[1] // 8 :][:span, :span].mean())
    return picture[top : top + SIDE, left : left + SIDE]


def sharpness(parts: Sequence[Pixels], mpp: float) -> float:
    """The contrast of the finest detail that all scanners show over that of four times its size; NaN at a scale too coarse."""
    if mpp > COARSEST:
        return float("nan")
    fine = coarse = 0.0
    for one in parts:
        density = _density(one, LUMA)
        half = _halved(density)  # fine enough for the coarse pair
        fine_pair = [_blurred(density, sigma / mpp) for sigma in FINE]
        coarse_pair = [_blurred(half, sigma / (2 * mpp)) for sigma in COARSE]
        stained = coarse_pair[1] > 0.07
        fine += float((_halved((fine_pair[0] - fine_pair[1]) ** 2)[stained]).sum())
        coarse += float(((coarse_pair[0] - coarse_pair[1])[stained] ** 2).sum())
    return (fine / coarse) ** 0.5 if coarse > 0 else float("nan")


def nuclear_size(parts: Sequence[Pixels], mpp: float) -> float:
    """Micrometres across what stands out most in the hematoxylin, taken from red; NaN where nothing does, or in a small field."""
    if min(min(one.shape[:2]) for one in parts) * mpp < LEAST:
        return float("nan")
    strength = np.sum([contrasts(one, mpp) for one in parts], axis=0)
    if strength.sum() <= 0:
        return float("nan")
    middle = np.log2(SIZES[:-1]) + 0.25
    return float(2 ** (middle @ strength / strength.sum()))


def contrasts(picture: Pixels, mpp: float) -> NDArray[np.float64]:
    """How strongly dark discs of each size between SIZES stand out in red, [len(SIZES) - 1]."""
    before, pixel, sigma = _density(picture, (1.0, 0.0, 0.0)), mpp, 0.0  # sigma in micrometres
    found: list[float] = []
    for size in SIZES:
        after = size / ROUND / 2**0.25
        while sigma / pixel > 3 and min(before.shape) > 32:
            before, pixel = _halved(before), 2 * pixel
        smooth = _blurred(before, (after**2 - sigma**2) ** 0.5 / pixel)
        step = max(
            1, before.shape[0] // (SIDE // 2)
        )  # a quarter of the finest pixels tells the percentile as well
        difference = (before[::step, ::step] - smooth[::step, ::step]).ravel()
        found.append(max(float(np.percentile(difference, STRONG)), 0.0))
        before, sigma = smooth, after
    return np.array(found[1:])


def _density(picture: Pixels, weights: tuple[float, float, float]) -> Floats:
    """Optical density of a weighted mean of the three colours, [H, W]."""
    light = np.maximum(background_light(picture), 150) @ np.array(weights)
    grey = picture.astype(np.float32) @ np.array(weights, np.float32)
    return np.asarray(np.clip(-np.log10(np.maximum(grey, 1) / light), 0, None), np.float32)


def _blurred(density: Floats, sigma: float) -> Floats:
    """Gaussian; of less than a third of a pixel nothing shows."""
    return density if sigma < 0.3 else ndimage.gaussian_filter(density, sigma, truncate=3)


def _halved(density: Floats) -> Floats:
    height, width = density.shape[0] // 2 * 2, density.shape[1] // 2 * 2
    even = density[:height, :width]
    return np.asarray((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4, np.float32)
