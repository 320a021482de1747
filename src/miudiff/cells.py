"""Where tissue, cells and positive cells are: thresholds of colour deconvolution, a watershed, no network.

    cell      beyond Otsu's threshold in DAB, or in the hematoxylin above that of the surroundings
    index     cells whose mean DAB is above WEAK / cells                                    (Ki-67 index)
    H-score   100 · (share above WEAK + share above MODERATE + share above STRONG)          (0 to 300)

Both scores are of cells found in the picture alone; `docs/metrics.md` says how far they are from hand-drawn
nuclei. The index means something for a nuclear marker only. The unit of length is the nucleus, `diameter`
pixels across, because only the caller can know the scale.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.segmentation import watershed

from miudiff.images import Pixels
from miudiff.stains import (
    Floats,
    background_light,
    dab_map,
    optical_density,
    rgb_from_hdab,
    rgb_from_he,
    separate_stains,
)

Mask = NDArray[np.bool_]
Labels = NDArray[np.int32]

NUCLEUS = 8.0  # µm across
CELL = 16  # pixels across a nucleus of 8 µm at 0.5 µm per pixel
# Densities between which Otsu's threshold may lie. Hematoxylin: fainter is the noise of glass, denser is stain
# even in a tile that is nothing else. DAB: fainter is its veil on stroma, and what a score calls weak is a cell.
HEMATOXYLIN_BOUNDS, DAB_BOUNDS = (0.03, 0.6), (0.1, 0.2)
BROWNER = 0.9  # DAB of a nucleus, in that of the two nuclei around it, at least
PALER = 0.95  # the same of a nucleus within stained cytoplasm, at most
GLASS = 150.0  # grey level of the darkest glass
WEAK, MODERATE, STRONG = 0.2, 0.4, 0.6  # mean DAB density of a cell, QuPath's default classes
AROUND = 10.0  # nuclei across: the square that a pixel's surroundings are the mean of
TISSUE = 0.05  # mean optical density of the three colours, above that of the glass


class Bars(NamedTuple):
    """What an image's cells are judged by; given for all parts of one section, the parts are judged alike.

    Attributes:
        light: The light I0 of each colour, [3].
        dab: The density of DAB beyond which a pixel is of a cell.
        hematoxylin: The same of hematoxylin above that of the surroundings.
    """

    light: Floats
    dab: float
    hematoxylin: float


class Positivity(NamedTuple):
    """How many cells an IHC image has, which share is positive, and how much; NaN where there are no cells."""

    cells: int
    positive: float
    h_score: float


def tissue_mask(image: Pixels) -> Mask:
    """Tissue of uint8 [H, W, 3], bool [H, W]: what is darker than the image's own glass.

    The glass may be grey or cream. In a tile without any the palest tissue passes for it.
    """
    density = optical_density(image, glass_light(image)).mean(axis=-1)
    return np.asarray(ndimage.gaussian_filter(density, 2) > TISSUE)


def tissue_of_either(first: Pixels, second: Pixels) -> Mask:
    """Tissue of one or the other of two uint8 [H, W, 3] of one size, bool [H, W]: where a comparison of both looks.

    Stain on the other picture's glass counts against a picture; what is glass in both does not count at all.
    """
    return tissue_mask(first) | tissue_mask(second)


def dab_above_glass(image: Pixels) -> Floats:
    """Density of DAB in uint8 [H, W, 3] above that of its own glass, [H, W], at least 0: what WEAK is a bound of."""
    return dab_map(image, glass_light(image))


def cell_mask(image: Pixels, diameter: float = CELL, bars: Bars | None = None) -> Mask:
    """Stained cells of a uint8 [H, W, 3] IHC image, bool [H, W]: beyond Otsu in DAB or in hematoxylin.

    Dark DAB leaks into the hematoxylin channel and would set the bar too high for pale blue nuclei: the
    threshold of hematoxylin is that of the pixels away from DAB, and stroma is often bluish: what counts is
    the hematoxylin above that of the surroundings. Specks and pinholes are undone. In a pale section the mask
    hangs on few grey levels: give the IOD without a mask beside the one with it.

    Args:
        diameter: Pixels across a nucleus; a speck or pinhole is less than a quarter of its area.
        bars: Those of `find_bars` for an image that is a part of a section; None finds the image's own.
    """
    hematoxylin, dab = _amounts(image, glass_light(image) if bars is None else bars.light, diameter)
    brown = dab > (_otsu(dab, DAB_BOUNDS) if bars is None else bars.dab)
    away = _away(brown, diameter)
    if not away.any():
        return without_specks(brown, diameter)
    above = hematoxylin - surroundings(hematoxylin, away, AROUND * diameter)
    bar = _otsu(above[away].clip(0)) if bars is None else bars.hematoxylin
    return without_specks(brown | (above > bar), diameter)


def stained_nuclei(image: Pixels, diameter: float = CELL, light: Floats | None = None) -> Mask:
    """Nuclei of a uint8 [H, W, 3] IHC image whose antigen is one of nuclei, bool [H, W]: `cell_mask`, and browner than what is around.

    Where all is brown, cytoplasm and stroma too, `cell_mask` takes it all. Args as for `blue_nuclei`.
    """
    _, dab = _amounts(image, glass_light(image) if light is None else light, diameter)
    around = surroundings(dab, np.ones(dab.shape, bool), 2 * diameter)
    stained = (dab > DAB_BOUNDS[0]) & (dab < BROWNER * around)
    return without_specks(cell_mask(image, diameter) & ~stained, diameter)


def find_bars(parts: Sequence[tuple[Pixels, Mask]], diameter: float = CELL) -> Bars:
    """What the cells of one section are judged by, from a few parts of it.

    A part by itself gives what `cell_mask` finds for it without bars.

    Args:
        parts: uint8 [H, W, 3] IHC images of any sizes, each with the pixels [H, W] to look at.
        diameter: Pixels across a nucleus.

    Raises:
        ValueError: There is no pixel to look at.
    """
    looked_at = [image[where] for image, where in parts if where.any()]
    if not looked_at:
        raise ValueError("no pixels to find bars in")
    light = np.maximum(background_light(np.concatenate(looked_at)), GLASS)
    amounts = [_amounts(image, light, diameter) for image, _ in parts]
    masks = [where for _, where in parts]
    dab_bar = _otsu(np.concatenate([dab[where] for (_, dab), where in zip(amounts, masks)]), DAB_BOUNDS)
    above = []
    for (hematoxylin, dab), where in zip(amounts, masks):
        away = _away(dab > dab_bar, diameter)
        difference = hematoxylin - surroundings(hematoxylin, away, AROUND * diameter)
        above.append(difference[away & where].clip(0))
    together = np.concatenate(above)
    return Bars(light, dab_bar, _otsu(together) if together.size else HEMATOXYLIN_BOUNDS[1])


def blue_nuclei(image: Pixels, diameter: float = CELL, light: Floats | None = None) -> Mask:
    """Nuclei of a uint8 [H, W, 3] IHC image whose DAB lies beside them, bool [H, W].

    Away from DAB a nucleus has more hematoxylin than its surroundings. Within DAB it has less DAB than they have, and a larger
    share of its stain is hematoxylin. Args as for `cell_mask`.
    """
    blue, brown = _amounts(image, glass_light(image) if light is None else light, diameter)
    tissue = tissue_mask(image)
    stained = tissue & (brown > DAB_BOUNDS[1])
    pale = tissue & ~stained
    found = np.zeros(tissue.shape, bool)
    if pale.any():
        above = blue - surroundings(blue, pale, 2.5 * diameter)
        # The root of it, so that a few dense nuclei do not set a bar too high for all others.
        bar = threshold_otsu(np.sqrt(above[pale].clip(0))) ** 2
        found |= pale & (above > np.clip(bar, 0.02, HEMATOXYLIN_BOUNDS[1]))
    if stained.any():
        share = _smooth(blue / (blue + brown + 0.02), diameter)
        bluer = share - surroundings(share, stained, 2 * diameter)
        bar = max(0.03, 0.8 * float(threshold_otsu(bluer[stained].clip(0))))
        around = surroundings(brown, stained, 2 * diameter)
        found |= stained & (bluer > bar) & (brown < PALER * around)
    return without_specks(found, diameter)


def nuclei_of_he(image: Pixels, diameter: float = CELL) -> Mask:
    """Nuclei of a uint8 [H, W, 3] H&E image, bool [H, W]: beyond Otsu in hematoxylin."""
    hematoxylin = _smooth(separate_stains(image, rgb_from_he, glass_light(image))[..., 0], diameter)
    return without_specks(hematoxylin > _otsu(hematoxylin), diameter)


def cell_labels(image: Pixels, diameter: float = CELL) -> Labels:
    """`cell_mask` as single cells: [H, W], 1, 2, ... and 0 beside cells."""
    return split_cells(cell_mask(image, diameter), diameter)


def split_cells(mask: Mask, diameter: float = CELL) -> Labels:
    """A mask split by a watershed of the distance to its border: [H, W], 1, 2, ... and 0 beside cells.

    The split decides how many cells there are, not which pixels belong to one: IOD is the same with and
    without it.
    """
    # What lies outside of the image counts as no cell: else an image that is all cell has no border at all.
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    distance = ndimage.gaussian_filter(distance, diameter / 16) * mask
    islands, _ = ndimage.label(mask)
    rows, columns = _peaks(distance, islands, max(round(diameter / 2), 1))
    seeds = np.zeros(mask.shape, np.int32)
    seeds[rows, columns] = np.arange(1, len(rows) + 1)
    return np.asarray(watershed(-distance, seeds, mask=mask), dtype=np.int32)


def _peaks(height: Floats, islands: Labels, apart: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the highest pixels [peaks] of each island [H, W] within `apart`, island by island, the highest first.

    The peaks of skimage's `peak_local_max`, which goes from island to island in Python and holds the interpreter meanwhile: a
    slide has a million of them.
    """
    inner = np.pad(height, 1, constant_values=-np.inf)
    beside = (inner[:-2, 1:-1], inner[2:, 1:-1], inner[1:-1, :-2], inner[1:-1, 2:])
    rows, columns = np.nonzero((islands > 0) & np.logical_and.reduce([height >= other for other in beside]))
    # Of these few alone it is seen whether any pixel of their island is higher in the square around them.
    heights, labels = np.pad(height, apart), np.pad(islands, apart)
    side = np.arange(2 * apart + 1)
    highest = []
    for i in range(0, len(rows), 4096):
        square = rows[i : i + 4096, None, None] + side[:, None], columns[i : i + 4096, None, None] + side
        own = labels[square] == islands[rows[i : i + 4096], columns[i : i + 4096]][:, None, None]
        highest.append(np.where(own, heights[square], -np.inf).max(axis=(1, 2)))
    found = height[rows, columns] == np.concatenate([*highest, np.empty(0)])
    rows, columns = rows[found], columns[found]
    island, value = islands[rows, columns], height[rows, columns]
    order = np.lexsort((columns, rows, -value, island))
    rows, columns, island, value = (of[order] for of in (rows, columns, island, value))
    # Two of one island that are as high as each other may lie closer.
    as_high = np.flatnonzero((island[1:] == island[:-1]) & (value[1:] == value[:-1])) + 1
    kept = np.ones(len(rows), bool)
    for tie in as_high:
        alike = kept[:tie] & (island[:tie] == island[tie]) & (value[:tie] == value[tie])
        down, across = (abs(of[:tie][alike] - of[tie]) for of in (rows, columns))
        kept[tie] = not (np.maximum(down, across) < apart).any()
    return rows[kept], columns[kept]


def positivity(image: Pixels, labels: Labels) -> Positivity:
    """Share of positive cells and H-score of a uint8 [H, W, 3] IHC image with the cells `labels` [H, W]."""
    cells = int(labels.max())
    if not cells:
        return Positivity(0, float("nan"), float("nan"))
    dab = dab_above_glass(image)
    means = np.asarray(ndimage.mean(dab, labels, np.arange(1, cells + 1)))
    above = [float((means > bound).mean()) for bound in (WEAK, MODERATE, STRONG)]
    return Positivity(cells, above[0], 100 * sum(above))


def _amounts(image: Pixels, light: Floats, diameter: float) -> tuple[Floats, Floats]:
    """Hematoxylin and DAB [H, W], smoothed."""
    amounts = separate_stains(image, rgb_from_hdab, light)
    return _smooth(amounts[..., 0], diameter), _smooth(amounts[..., 1], diameter)


def _away(brown: Mask, diameter: float) -> Mask:
    return ~ndimage.binary_dilation(brown, iterations=max(round(diameter / 8), 1))


def glass_light(image: Pixels) -> Floats:
    """The light I0 of each colour, [3], of uint8 [H, W, 3]: that of its glass, or of the palest that it has."""
    # Glass is grey in many scans; but what is darker than GLASS is stain, even where all of the tile is.
    return np.maximum(background_light(image), GLASS)


def _smooth(amount: Floats, diameter: float) -> Floats:
    return np.asarray(ndimage.gaussian_filter(np.clip(amount, 0, None), diameter / 16))


def surroundings(amount: Floats, where: Mask, side: float, beyond: str = "reflect") -> Floats:
    """Mean over a square of `side` pixels around each pixel, of the pixels of `where` alone, [H, W].

    Args:
        beyond: What lies outside of the image: SciPy's mode; "constant" takes nothing from there.
    """
    # A box costs the same for every size; a Gaussian of such a width would take most of the time.
    size = max(round(side), 1)
    weight = ndimage.uniform_filter(where.astype(np.float64), size, mode=beyond)
    summed = ndimage.uniform_filter(amount * where, size, mode=beyond)
    return np.asarray(summed / np.maximum(weight, 1e-6))


def _otsu(amount: Floats, bounds: tuple[float, float] = HEMATOXYLIN_BOUNDS) -> float:
    return float(np.clip(threshold_otsu(amount), *bounds))


def without_specks(mask: Mask, diameter: float) -> Mask:
    """The mask [H, W] without specks and pinholes of less than a quarter of a nucleus' area."""
    speck = np.pi * diameter**2 / 16
    return ~_without_small(~_without_small(mask, speck), speck)


def _without_small(mask: Mask, area: float) -> Mask:
    labels, _ = ndimage.label(mask)
    keep = np.bincount(labels.ravel()) >= area
    keep[0] = False
    return np.asarray(keep[labels])
