"""Whether the tissue is still the same: SSIM, edges and nuclei, of a virtual stain beside its H&E.

A virtual stain may change every colour and must change no structure. The true IHC is another section, so its
nuclei are other nuclei: structure is measured against the H&E, on what both stains show.
"""

from __future__ import annotations

import numpy as np
from skimage.metrics import structural_similarity

from miudiff.cells import Mask
from miudiff.evaluation.statistics import pearson
from miudiff.images import Pixels, gradient_map, luma, to_tensor
from miudiff.stains import rgb_from_hdab, rgb_from_he, separate_stains

WINDOW = 7  # pixels a side of SSIM's uniform window: scikit-image's default


def ssim(image: Pixels, reference: Pixels) -> float:
    """SSIM of two uint8 [H, W, 3]: scikit-image, uniform 7 x 7 window, range 255, mean of R, G and B; symmetric."""
    return float(structural_similarity(reference, image, win_size=WINDOW, data_range=255, channel_axis=-1))


def ssim_hematoxylin(ihc: Pixels, he: Pixels) -> float:
    """SSIM of the hematoxylin of a uint8 IHC and of a uint8 H&E image, each separated from its other stain.

    Densities are cut to [0, 1] and the range is 1; window as in `ssim`.
    """
    pair = [
        np.clip(separate_stains(image, matrix)[..., 0], 0, 1)
        for image, matrix in ((he, rgb_from_he), (ihc, rgb_from_hdab))
    ]
    return float(structural_similarity(*pair, win_size=WINDOW, data_range=1))


def gradient_correlation(image: Pixels, reference: Pixels) -> float:
    """Pearson correlation over pixels of the gradient magnitudes of the lumas, in [-1, 1]; symmetric.

    NaN where one of the two has no contrast in it.
    """
    edges = [gradient_map(luma(to_tensor(pixels))).numpy().ravel() for pixels in (image, reference)]
    return pearson(*edges)


def dice(first: Mask, second: Mask) -> float:
    """2 |A ∩ B| / (|A| + |B|) of two masks; NaN where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else float("nan")
