"""Whether the tissue is still the same: SSIM, edges and nuclei of a virtual stain beside its H&E, sharpness beside true IHC.

A virtual stain may change every colour and must change no structure. The true IHC is another section, so its
nuclei are other nuclei: structure is measured against the H&E, on what both stains show. How sharp a section is has no place:
the power of its luma at the size of nuclei is held against the true IHC, for blur raises what is measured pixel by pixel.
"""

from __future__ import annotations

import numpy as np
from scipy import fft, ndimage
from skimage.metrics import structural_similarity

from miudiff.cells import Mask
from miudiff.evaluation.statistics import pearson
from miudiff.images import LUMA, Pixels, gradient_map, luma, to_tensor
from miudiff.stains import Floats, rgb_from_hdab, rgb_from_he, separate_stains

WINDOW = 7  # pixels a side of SSIM's uniform window: scikit-image's default
EDGE = 2.0  # µm: finer edges are grain of the scan and of the network
NUCLEAR_BAND = (2.5, 8.0)  # µm: periods of what a nucleus looks like, from its chromatin to its width
CONTRAST = 1e-6  # grey levels squared: mean power below it is the rounding of a flat image


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


def coarse_gradient_correlation(image: Pixels, reference: Pixels, tissue: Mask, mpp: float) -> float:
    """Pearson r over `tissue` of gradient magnitudes of the lumas of two uint8 [H, W, 3], averaged over 2 µm; symmetric.

    The gradient is that from one square of 2 µm to the next but one. NaN where a pixel is larger than that, or one of the
    two has no contrast.
    """
    if mpp > EDGE:
        return float("nan")
    side = round(EDGE / mpp)
    return pearson(
        *(_coarse_gradient(pixels @ np.array(LUMA), side)[tissue] for pixels in (image, reference))
    )


def _coarse_gradient(plane: Floats, side: int) -> Floats:
    mean = ndimage.uniform_filter(plane, side, mode="nearest")
    step = np.zeros(2 * side + 1)
    step[0], step[-1] = -1, 1
    return np.hypot(*(ndimage.correlate1d(mean, step, axis, mode="nearest") for axis in (0, 1)))


def sharpness(image: Pixels, reference: Pixels, tissue: Mask, mpp: float) -> float:
    """Power of luma at periods of 2.5 to 8 µm within `tissue`, of uint8 [H, W, 3] over that of a reference.

    1 for an image as sharp as its reference, less where it is blurred, more where it is noisy. NaN where a pixel is too
    large to show the shortest period (1.25 µm), where there is no tissue, or the reference is flat.
    """
    if 2 * mpp > NUCLEAR_BAND[0] or not tissue.any():
        return float("nan")
    power, of_reference = (float((_nuclear_band(p, mpp)[tissue] ** 2).mean()) for p in (image, reference))
    return power / of_reference if of_reference > CONTRAST else float("nan")


def _nuclear_band(image: Pixels, mpp: float) -> Floats:
    """Luma [H, W] with the periods of `NUCLEAR_BAND` alone."""
    # Cosines mirror the image at its border, where a Fourier transform would see an edge.
    spectrum = fft.dctn(image @ np.array(LUMA), norm="ortho")
    down, across = (np.arange(side) / (2 * side * mpp) for side in spectrum.shape)
    frequency = np.hypot(down[:, None], across)
    longest, shortest = 1 / NUCLEAR_BAND[1], 1 / NUCLEAR_BAND[0]
    return np.asarray(
        fft.idctn(np.where((frequency >= longest) & (frequency <= shortest), spectrum, 0), norm="ortho")
    )


def dice(first: Mask, second: Mask) -> float:
    """2 |A ∩ B| / (|A| + |B|) of two masks; NaN where both are empty."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else float("nan")
