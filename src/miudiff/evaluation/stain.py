"""How much DAB: ImageJ's integrated optical density, and how far a virtual stain's is from the real one's.

The recipe is that of Fiji's menus, step by step, since published numbers come from there:

    OD'  = −255 ln((I + 1) / 255) / ln 255          Colour Deconvolution, "H DAB", for each of R, G, B
    c    = (OD' · M⁻¹)_DAB                          rows of M: hematoxylin, DAB, what neither explains
    v    = round(min(255, 255^(1 − c / 255)))       the 8-bit picture "Colour_2"
    OD   = log₁₀(255 / v), v = 0 counted as 0.5     Calibrate, "Uncalibrated OD"
    IOD  = Σ OD                                     Measure, "IntDen"

The IOD deviation is the signed sum over a test set of IOD(virtual) − IOD(real); papers give it in units of
10⁷. A sum grows with the pixels, so images of any size are brought to 1024 pixels on their longer side, the
size that published numbers are of, **by resampling** before measuring (`at_side`); at its own size a tile of
256 gives about a sixteenth. `panel` measures both.

DAB does not follow Beer-Lambert: an IOD compares sections stained and scanned alike, and is no amount of
antigen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from miudiff.evaluation.statistics import pearson
from miudiff.images import Pixels, resize
from miudiff.stains import Floats, combine_stains, rgb_from_hdab

SIDE = 1024  # the tile that published sums are of


class IodDeviation(NamedTuple):
    """What a set of virtual stains has of DAB beside the real ones; see `summarise_iod`."""

    dev_sum: float
    dev_sum_1e7: float
    dev_per_image_mean: float
    pearson_r: float
    images: int


def dab_density(image: Pixels) -> Floats:
    """Uncalibrated optical density [H, W] of DAB in uint8 [H, W, 3], 0 to 2.71, whose sum is the IOD."""
    return np.asarray(_OD_OF_LEVEL[_dab_picture(image)])


def dab_image(image: Pixels) -> Pixels:
    """The image with only its DAB left, in DAB's own colour, for figures: uint8 [H, W, 3]."""
    return combine_stains(dab_density(image)[..., None], rgb_from_hdab[1:2])


def integrated_optical_density(image: Pixels) -> float:
    """Sum of `dab_density` over uint8 [H, W, 3]: density times pixels."""
    return float(dab_density(image).sum())


def field_error(generated: float, real: float) -> float:
    """|generated − real| / real of two IODs, in per cent; NaN where the real one is 0."""
    return 100 * abs(generated - real) / real if real > 0 else float("nan")


def _dab_picture(image: Pixels) -> Pixels:
    """The 8-bit picture of DAB that Colour Deconvolution gives, [H, W]: 255 where there is none."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{image.dtype} of shape {image.shape}, expected uint8 [H, W, 3]")
    # The amount is a sum over colours of what hangs on the 8-bit value alone: three tables, two additions.
    amount = sum(_AMOUNT_OF_LEVEL[channel][image[..., channel]] for channel in range(3))
    light = 255 ** (1 - np.asarray(amount) / 255)
    # Halves go up, as in Java.
    return np.asarray(np.floor(np.clip(light, 0, 255) + 0.5), dtype=np.uint8)


def _amount_of_level() -> Floats:
    """DAB that each 8-bit value of each colour stands for, [3, 256]."""
    density = -255 * np.log((np.arange(256) + 1) / 255) / np.log(255)
    return np.asarray(np.linalg.inv(rgb_from_hdab)[:, 1:2] * density)


def _od_of_level() -> Floats:
    """ImageJ's "Uncalibrated OD" of each 8-bit value."""
    level = np.arange(256.0)
    level[0] = 0.5
    return np.asarray(np.log10(255 / level))


_AMOUNT_OF_LEVEL, _OD_OF_LEVEL = _amount_of_level(), _od_of_level()


def at_side(image: Pixels, side: int = SIDE) -> Pixels:
    """The image with `side` pixels on its longer side: bicubic where it grows, area mean where it shrinks."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    return resize(image, max(round(height * scale), 1), max(round(width * scale), 1))


def summarise_iod(table: Floats) -> IodDeviation:
    """What the IODs of each virtual stain and of its real partner, [images, 2], say.

    `dev_sum` is Σ(virtual − real), signed, over the set; `dev_sum_1e7` the same in units of 10⁷;
    `dev_per_image_mean` the sum over the images. `pearson_r` is the correlation over images (NaN for fewer
    than 2, or where one side is the same in all).
    """
    fake, real = table.T
    deviation = fake - real
    total = float(deviation.sum())
    return IodDeviation(total, total / 1e7, total / len(table), pearson(fake, real), len(table))
