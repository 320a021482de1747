"""What the colours of a picture say: a section stained with hematoxylin and eosin, or something else.

A pixel's optical densities r, g, b of mean D give a place in the plane of van der Laak's hue-saturation-density model,

    x = r / D - 1        y = (g - b) / (sqrt(3) D)

in which a dye is one direction whatever its amount. Hematoxylin lies near (0, 0.4), eosin left of and above it, DAB at (-0.5, -0.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from miudiff.images import Pixels, resize
from miudiff.stains import background_light, optical_density

Floats = NDArray[np.float32]

LONGEST = 512  # pixels of a side that colours are looked at in
SHORTEST = 64  # of a strip, which would be blurred to its mean colour
STROKE = 4  # pixels, not shrunk, from the middle of a printed stroke to the paper
ROWS = 2_000_000  # pixels of which print is looked for; of a larger picture every so many rows
DARKEST_GLASS = 150.0  # grey level; what is darker is stain or no brightfield
STAINED = 0.07  # mean optical density of what is more than glass and noise
TILT = 0.4  # of x in the eosin index: hematoxylin differs from scanner to scanner along (1, 0.4)


class Colours(NamedTuple):
    """Shares are of 0 to 1.

    Attributes:
        dark: The share of pixels that are nearly black.
        drawn: The share of what is no glass that lies in exactly even areas.
        printed: Black pixels next to white ones, as of print, as a share of what is not white.
        tissue: The share of pixels that are stained.
        ink: The share of what is stained that is green, which no mixture of hematoxylin and eosin is.
        brown: The share of the dye that is brown.
        eosin: The eosin index y - 0.4 x, the median of what is stained: low where there is no eosin.
    """

    dark: float
    drawn: float
    printed: float
    tissue: float
    ink: float
    brown: float
    eosin: float


def colours_of(samples: Sequence[Pixels]) -> Colours:
    """The colours of uint8 [H, W, 3] pictures of one image or slide, with one light for all of them."""
    small = [_small(sample) for sample in samples]
    light = np.maximum(background_light(np.concatenate([one.reshape(-1, 3) for one in small])), DARKEST_GLASS)
    density = np.concatenate([_density(one, light) for one in small])
    mean = (density[:, 0] + density[:, 1] + density[:, 2]) / 3
    stained = mean > STAINED
    pixels = sum(len(one) * one.shape[1] for one in small)
    dark = sum(int((_extremes(one)[1] < 40).sum()) for one in small) / pixels
    drawn, printed = _drawn(small), _printed(samples)
    if not stained.any():
        return Colours(dark, drawn, printed, 0.0, 0.0, 0.0, 1.0)
    amount = mean[stained]
    x, y = _plane(density[stained], amount)
    return Colours(
        dark,
        drawn,
        printed,
        float(stained.mean()),
        float(((x > 0.5) & (y < 0)).mean()),
        float(amount[(x < -0.2) & (y < -0.1)].sum() / amount.sum()),
        float(np.median(y - TILT * x)),
    )


def _plane(density: Floats, amount: Floats) -> tuple[Floats, Floats]:
    return density[:, 0] / amount - 1, (density[:, 1] - density[:, 2]) / (3**0.5 * amount)


def _small(sample: Pixels) -> Pixels:
    height, width = sample.shape[:2]
    factor = max(1.0, min(max(height, width) / LONGEST, min(height, width) / SHORTEST))
    return resize(sample, max(1, round(sample.shape[0] / factor)), max(1, round(sample.shape[1] / factor)))


def _density(small: Pixels, light: NDArray[np.floating]) -> Floats:
    """Optical density of every pixel, smoothed over 3 x 3 against the noise of a camera or a JPEG, [pixels, 3]."""
    smooth = ndimage.uniform_filter(small, (3, 3, 1)).reshape(-1, 3)
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    table = optical_density(levels, light).astype(
        np.float32
    )  # a logarithm for each level, not for each pixel
    return np.stack([table[:, c][smooth[:, c]] for c in range(3)], axis=-1)


def _extremes(picture: Pixels) -> tuple[Pixels, Pixels]:
    """The least and the largest colour of each pixel; numpy is ten times slower along an axis of three."""
    red, green, blue = (picture[..., c] for c in range(3))
    return np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)


def _drawn(small: Sequence[Pixels]) -> float:
    even = coloured = 0
    for one in small:
        inner = one[1:, 1:]
        agree = (inner == one[:-1, 1:]) & (inner == one[1:, :-1])
        same = agree[..., 0] & agree[..., 1] & agree[..., 2]
        low, high = _extremes(inner)
        no_glass = (low <= 180) | (high - low >= 20)
        even += int((same & no_glass).sum())
        coloured += int(no_glass.sum())
    return even / coloured if coloured else 0.0


def _printed(samples: Sequence[Pixels]) -> float:
    strokes = ground = 0
    for one in samples:
        rows = one[:: max(1, one.shape[0] * one.shape[1] // ROWS)]
        low, high = _extremes(rows)
        black, white = (high < 50) & (high - low < 20), low > 225
        beside = white[:, 2 * STROKE :] | white[:, : -2 * STROKE]
        strokes += int((black[:, STROKE:-STROKE] & beside).sum())
        ground += int((~white).sum())
    return strokes / ground if ground else 0.0
