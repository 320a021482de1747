"""Where an H&E image shows glass and no tissue: there is nothing there to stain.

A network that was trained on tissue paints some on an empty field, along the blocks of a JPEG perhaps. Glass is bright or grey, without
colour, flat, and wider than lumina and fat cells, which belong to the tissue and are translated with it. Each pixel is judged by its surroundings alone, so a tile of a slide gets the
glass that the whole slide would give it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from miudiff.images import LUMA, Pixels

WIDTH = 80.0  # micrometres: what is narrower belongs to the tissue
SPECK = 330.0  # square micrometres with its rough surroundings: dust, smaller than a lone cell with its
GRAIN = 1.0  # micrometres: smaller differences are the noise of a camera or of a JPEG
# Bounds of luma, of the largest difference of two colours, and of luma's spread in the surroundings, each of 0 to 1. Scanners
# differ in the grey of their glass: a darker one has to be flatter and greyer to be no tissue.
BRIGHT, GREY = (0.75, 0.07, 0.03), (0.4, 0.05, 0.02)
DYED = 0.15  # largest difference of two colours from which a speck is stained


def glass(image: Pixels, mpp: float | None) -> NDArray[np.float32]:
    """How much each pixel of an H&E image is glass, [H, W] in [0, 1]; it rises over a few pixels, inside the glass.

    Args:
        image: uint8 [H, W, 3].
        mpp: Its micrometres per pixel; None takes a pixel as one.
    """
    radius, grain = 0.5 * WIDTH / (mpp or 1.0), max(1.0, GRAIN / (mpp or 1.0))
    levels = np.asarray(image, np.float32) / 255
    smooth = np.stack([ndimage.gaussian_filter(levels[..., c], grain) for c in range(3)], axis=-1)
    luma = smooth @ np.array(LUMA, np.float32)
    chroma = smooth.max(-1) - smooth.min(-1)
    mean, square = (ndimage.gaussian_filter(power, 3 * grain) for power in (luma, luma**2))
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    found = np.zeros(luma.shape, bool)
    for least, colour, rough in (BRIGHT, GREY):
        found |= (luma > least) & (chroma < colour) & (spread < rough)
    filled = _without_dust(found, SPECK / (mpp or 1.0) ** 2)
    wide = _opened(filled, radius)
    # What is small and has a dye's colour is no dust but a lone cell: the glass around it stays, and the cell is stained.
    wide &= ~ndimage.binary_dilation(filled & ~found & (chroma > DYED), iterations=max(1, round(2 * grain)))
    return np.clip(2 * ndimage.gaussian_filter(wide.astype(np.float32), 2 * grain) - 1, 0, 1)


def _without_dust(mask: NDArray[np.bool_], area: float) -> NDArray[np.bool_]:
    """The mask with its holes of less than `area` pixels filled."""
    labels, _ = ndimage.label(~mask)
    small = np.bincount(labels.ravel()) < area
    small[0] = True  # the mask itself
    return small[labels]


def _opened(mask: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """What a disc of `radius` can cover without leaving the mask; beyond the image the mask goes on as at its border."""
    margin = int(np.ceil(2 * radius))
    wide = np.pad(mask, margin, mode="edge")
    # Both transforms give 0 everywhere for a mask without a border, so all and nothing are told apart first.
    core = ndimage.distance_transform_edt(wide) > radius if not wide.all() else wide
    if not core.any():
        return np.zeros_like(mask)
    reached = ndimage.distance_transform_edt(~core) <= radius
    return np.asarray(reached[margin:-margin, margin:-margin])


def with_glass(stained: Pixels, image: Pixels, empty: NDArray[np.float32]) -> Pixels:
    """`stained` with the pixels of `image` where it is empty glass; `empty` is of any size."""
    height, width = image.shape[:2]
    share = np.asarray(Image.fromarray(empty).resize((width, height), Image.Resampling.BILINEAR))[..., None]
    return np.round(stained * (1 - share) + image * share).clip(0, 255).astype(np.uint8)
