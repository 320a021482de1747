"""How near an image is to its reference: PSNR, VIF, and the correlation of colour histograms.

    PSNR = 10 log₁₀(255² / MSE)
    VIF  = Σ log₁₀(1 + g² σ_r² / (σ_v² + σ_n²)) / Σ log₁₀(1 + σ_r² / σ_n²)      (Sheikh and Bovik 2006)
    Hist = Σ (h − h̄)(k − k̄) / √(Σ (h − h̄)² Σ (k − k̄)²)

VIF, visual information fidelity in the pixel domain, explains the image in each Gaussian window as the
reference times a gain g plus a residue of variance σ_v², seen through noise σ_n² = 2: the information that is
left, over the information that was there. It is **not symmetric**, and libraries differ in their argument
order; here the image always comes first and its reference second. Tell with the number what the reference is:
against the real IHC section VIF is about 0.01 to 0.1, against the H&E that it was made from 0.2 to 0.8.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from miudiff.errors import DataError
from miudiff.images import LUMA, Pixels
from miudiff.stains import Floats

Mask = NDArray[np.bool_]
Counts = NDArray[np.int64]
Space = Literal["rgb", "lab"]

NOISE = 2.0  # σ_n² of the observer, for grey levels 0 to 255
TINY = 1e-10  # variances below it count as none
FLAT = 0.1  # a plane whose values differ by less is of one value, up to rounding
SCALES = 4
SMALLEST = 41  # pixels a side: the least that leaves one window at the fourth scale


def psnr(image: Pixels, reference: Pixels) -> float:
    """Peak signal-to-noise ratio in dB over all pixels and channels of two uint8 [H, W, 3]; symmetric.

    Identical images give infinity. Take the mean over images with `statistics.interval`, which leaves
    infinities out and says how many there were; it is the mean of the PSNRs, not the PSNR of the mean error.

    Raises:
        DataError: The two differ in size.
    """
    _check_pair(image, reference)
    error = float(((image.astype(np.float64) - reference) ** 2).mean())
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def vif(image: Pixels, reference: Pixels) -> float:
    """Pixel-domain VIF of uint8 `image` given `reference`, [H, W, 3]: mean of red, green and blue.

    1 for identical images, about 0 where the reference's structure is lost, above 1 where its contrast is
    enhanced. Equals sewar's `vifp(reference, image)`: sewar takes the *reference first*, so here
    `vif(a, b) == vifp(b, a)`.

    A reference channel of one value holds no information: the ratio 0/0 is then 1 where the image's channel
    is flat too (nothing was to keep, nothing is added) and 0 where it is not.

    Raises:
        DataError: The two differ in size, or are smaller than 41 pixels a side.
    """
    _check_pair(image, reference, SMALLEST)
    pairs = zip(_channels(image), _channels(reference), strict=True)
    return float(np.mean([_vif_plane(of_image, of_reference) for of_image, of_reference in pairs]))


def vif_luma(image: Pixels, reference: Pixels) -> float:
    """Pixel-domain VIF of the luma (ITU-R 601-2), otherwise as `vif`.

    Equals piq's `vif_p(image, reference)`, which takes the image first, as here.

    Raises:
        DataError: The two differ in size, or are smaller than 41 pixels a side.
    """
    _check_pair(image, reference, SMALLEST)
    return _vif_plane(image @ np.array(LUMA), reference @ np.array(LUMA))


def _channels(image: Pixels) -> list[Floats]:
    return [image[..., channel].astype(np.float64) for channel in range(3)]


def _vif_plane(image: Floats, reference: Floats) -> float:
    if np.ptp(reference) < FLAT:
        return float(np.ptp(image) < FLAT)
    kept = total = 0.0
    for scale in range(SCALES):
        window = _gaussian(2 ** (SCALES - scale) + 1)
        if scale:
            image, reference = (_blur(plane, window)[::2, ::2] for plane in (image, reference))
        gain, residue, variance = _window_model(image, reference, window)
        kept += float(np.log10(1 + gain**2 * variance / (residue + NOISE)).sum())
        total += float(np.log10(1 + variance / NOISE).sum())
    return kept / total


def _window_model(image: Floats, reference: Floats, window: Floats) -> tuple[Floats, Floats, Floats]:
    """image = gain · reference + residue in each window: gain, residue's and reference's variance."""
    mean_image, mean_reference = _blur(image, window), _blur(reference, window)
    of_image = np.clip(_blur(image**2, window) - mean_image**2, 0, None)
    of_reference = np.clip(_blur(reference**2, window) - mean_reference**2, 0, None)
    shared = _blur(image * reference, window) - mean_image * mean_reference
    gain = shared / (of_reference + TINY)
    # An inverted or flat window tells nothing of the reference: all its variance is residue.
    gain[(of_reference < TINY) | (of_image < TINY) | (gain < 0)] = 0
    residue = np.clip(np.where(gain == 0, of_image, of_image - gain * shared), TINY, None)
    return gain, residue, np.where(of_reference < TINY, 0, of_reference)


def _gaussian(size: int) -> Floats:
    """A window of `size` pixels with σ = size / 5, one axis of it."""
    place = np.arange(size) - size // 2
    weight = np.exp(-0.5 * (place / (size / 5)) ** 2)
    return np.asarray(weight / weight.sum())


def _blur(plane: Floats, window: Floats) -> Floats:
    """Weighted means over the windows that lie wholly inside."""
    edge = len(window) // 2
    for axis in (0, 1):
        plane = ndimage.correlate1d(plane, window, axis)
    return plane[edge:-edge, edge:-edge]


def histogram_correlation(
    image: Pixels, reference: Pixels, bins: int = 256, space: Space = "rgb", mask: Mask | None = None
) -> float:
    """Correlation of two images' histograms, mean of three channels; symmetric, in [-1, 1].

    The images may differ in size. Glass and its white dominate the value: with a `mask` only its pixels
    count, in both images; an empty one gives NaN. For sets that are not paired, sum `histogram` over each set
    and give the sums to `correlation`.

    Args:
        bins: Equal bins over 0 to 255.
        space: "rgb", or "lab" as 8-bit CIELAB (D65): 2.55 L, a + 128, b + 128.
        mask: [H, W], where to look.
    """
    pairs = zip(histogram(image, bins, space, mask), histogram(reference, bins, space, mask), strict=True)
    return float(np.mean([correlation(of_image, of_reference) for of_image, of_reference in pairs]))


def joint_histogram_correlation(
    image: Pixels, reference: Pixels, bins: int = 32, mask: Mask | None = None
) -> float:
    """Correlation of the joint RGB histograms of `bins`³ cells; otherwise as `histogram_correlation`."""
    return correlation(joint_histogram(image, bins, mask), joint_histogram(reference, bins, mask))


def correlation(first: Counts, second: Counts) -> float:
    """Pearson correlation of two histograms, whatever their totals.

    A histogram with the same count in every bin has no direction to correlate: two of them give 1, one beside
    another shape gives 0. A histogram of no pixels gives NaN. (An image of one colour is no such case: its
    histogram is a peak.)
    """
    if not first.any() or not second.any():
        return float("nan")
    flat = [bool(np.ptp(counts) == 0) for counts in (first, second)]
    if any(flat):
        return float(all(flat))
    one, other = (counts / counts.sum() - 1 / counts.size for counts in (first, second))
    return float((one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum()))


def histogram(image: Pixels, bins: int = 256, space: Space = "rgb", mask: Mask | None = None) -> Counts:
    """Pixels in each bin of each channel, [3, bins]."""
    _check_image(image)
    if space not in get_args(Space):
        raise ValueError(f"colour space {space!r}, expected 'rgb' or 'lab'")
    levels = _levels(_to_lab(image) if space == "lab" else image, bins, mask)
    return np.stack([np.bincount(channel, minlength=bins) for channel in levels.T])


def joint_histogram(image: Pixels, bins: int = 32, mask: Mask | None = None) -> Counts:
    """Pixels in each cell of the colour cube, [bins³], blue fastest."""
    red, green, blue = _levels(image, bins, mask).T
    return np.bincount((red * bins + green) * bins + blue, minlength=bins**3)


def _levels(image: Pixels, bins: int, mask: Mask | None) -> Counts:
    """The bin of each pixel and channel, [pixels, 3]."""
    if not 1 <= bins <= 256:
        raise ValueError(f"{bins} bins, expected 1 to 256: an 8-bit channel has no more values")
    _check_image(image)
    if mask is not None and mask.shape != image.shape[:2]:
        raise DataError(f"mask of {_size(mask)} pixels, image of {_size(image)}; bring them to one size")
    pixels = image.reshape(-1, 3) if mask is None else image[mask]
    return pixels.astype(np.int64) * bins // 256


def _to_lab(image: Pixels) -> Pixels:
    from skimage.color import rgb2lab

    scaled = rgb2lab(image) * (2.55, 1, 1) + (0, 128, 128)
    return np.asarray(np.clip(np.round(scaled), 0, 255), dtype=np.uint8)


def _check_pair(image: Pixels, reference: Pixels, smallest: int = 1) -> None:
    for pixels in (image, reference):
        _check_image(pixels)
    if image.shape != reference.shape:
        sizes = f"image of {_size(image)} pixels, reference of {_size(reference)}"
        raise DataError(f"{sizes}; bring them to one size")
    if min(image.shape[:2]) < smallest:
        raise DataError(f"image of {_size(image)} pixels, expected at least {smallest} a side for VIF")


def _check_image(pixels: Pixels) -> None:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(f"{pixels.dtype} of shape {pixels.shape}, expected uint8 [H, W, 3]")


def _size(pixels: NDArray[np.generic]) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[0]}"
