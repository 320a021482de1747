"""Whether the stain is where the true one is, beside how far the H&E's darkness alone would come.

    mask   density of DAB above WEAK                                     Dice, IoU
    r      Pearson correlation of the density, averaged over squares of 2, 8, 32 and 128 µm

Density is that above each picture's own glass, WEAK what makes a cell positive: one bound for pixels and cells. Only the
tissue of either picture counts, also within a square, so glass around it changes nothing.

Dark nuclei and dark cytoplasm are where much DAB is, too, so a method that only turns dark into brown scores well. `Darkness`
takes the H&E's own darkness for DAB: what a method does not beat, it did not learn. Darkness has no unit of DAB, so its bound
is told to it: the one that marks as large a share of the set's tissue as is positive in truth.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from miudiff.cells import (
    WEAK,
    Mask,
    dab_above_glass,
    glass_light,
    surroundings,
    tissue_of_either,
)
from miudiff.evaluation.statistics import is_flat, pearson
from miudiff.evaluation.structure import dice
from miudiff.images import LUMA, Pixels
from miudiff.stains import Floats

SPANS = (2, 8, 32, 128)  # µm a side of a square
SQUARES = 9  # as many of a size must fit into the tissue: 3 x 3, below which a correlation is chance
DARKNESS = "darkness_"  # before a key: the same measure of the H&E's darkness
STEP, LEVELS = 0.005, 512  # of density; the darkest grey level has 2.41


class Darkness(NamedTuple):
    """One H&E image's darkness beside the true DAB.

    Attributes:
        counts: Pixels of tissue of each density of darkness, the negative and the positive ones, [2, LEVELS].
        correlations: As `correlations` gives them.
    """

    counts: NDArray[np.int64]
    correlations: dict[str, float]


def overlap(first: Mask, second: Mask) -> dict[str, float]:
    """Dice and IoU of two masks [H, W] by key; NaN where both are empty, 0 where one is."""
    return _both(dice(first, second))


def correlations(density: Floats, true: Floats, tissue: Mask, mpp: float | None) -> dict[str, float]:
    """Pearson r over tissue of two densities [H, W], averaged over squares of each of `SPANS`, by key; and their mean.

    NaN where a pixel is larger than the square, fewer than `SQUARES` of them fit into the tissue or the true density is
    the same everywhere; the mean is of the others. A density that is the same everywhere beside a true one that is not
    has 0: it tells nothing.

    Args:
        mpp: Micrometres per pixel; without it there is no key.
    """
    if mpp is None:
        return {}
    found = {f"dab_r_{span}um_real": _averaged_r(density, true, tissue, span / mpp) for span in SPANS}
    defined = [value for value in found.values() if not math.isnan(value)]
    return {**found, "dab_r_real": float(np.mean(defined)) if defined else math.nan}


def compare_dab(generated: Pixels, real: Pixels, tissue: Mask, mpp: float | None = None) -> dict[str, float]:
    """`overlap` and `correlations` of the DAB of two uint8 [H, W, 3] within `tissue`."""
    density, true = dab_above_glass(generated), dab_above_glass(real)
    within = overlap((density > WEAK) & tissue, (true > WEAK) & tissue)
    return {**within, **correlations(density, true, tissue, mpp)}


def darkness(image: Pixels) -> Floats:
    """Optical density [H, W] of the luma of uint8 [H, W, 3] above that of its glass, at least 0."""
    weights = np.array(LUMA)
    return np.clip(-np.log10(np.maximum(image @ weights, 1) / (glass_light(image) @ weights)), 0, None)


def look_at_darkness(source: Pixels, real: Pixels, mpp: float | None = None) -> Darkness:
    """The darkness of a uint8 [H, W, 3] H&E image beside the DAB of its true IHC."""
    tissue, dark, true = tissue_of_either(source, real), darkness(source), dab_above_glass(real)
    levels = np.minimum(dark / STEP, LEVELS - 1).astype(np.int64)
    positive = true > WEAK
    counts = [np.bincount(levels[tissue & where], minlength=LEVELS) for where in (~positive, positive)]
    return Darkness(np.stack(counts), correlations(dark, true, tissue, mpp))


def darkness_scores(seen: Sequence[Darkness]) -> list[dict[str, float]]:
    """The measures of `compare_dab` of each image's darkness, their keys beginning with `DARKNESS`.

    One bound serves the whole set: the one that marks as many pixels of tissue as are positive in truth.
    """
    pooled = np.sum([each.counts for each in seen], axis=0)
    marked = [pooled[:, level:].sum() for level in range(LEVELS + 1)]
    bound = int(np.argmin(np.abs(np.array(marked) - pooled[1].sum())))
    return [
        {
            f"{DARKNESS}{key}": value
            for key, value in {**_beyond(each.counts, bound), **each.correlations}.items()
        }
        for each in seen
    ]


def _beyond(counts: NDArray[np.int64], bound: int) -> dict[str, float]:
    """Dice and IoU of the pixels from level `bound` on and the positive ones."""
    total = int(counts[:, bound:].sum() + counts[1].sum())
    return _both(2 * int(counts[1, bound:].sum()) / total if total else math.nan)


def _both(of_dice: float) -> dict[str, float]:
    return {"dab_dice_real": of_dice, "dab_iou_real": of_dice / (2 - of_dice)}


def _averaged_r(density: Floats, true: Floats, tissue: Mask, side: float) -> float:
    if side < 1 or tissue.sum() < SQUARES * side**2:
        return math.nan
    means = [surroundings(each, tissue, side, beyond="constant")[tissue] for each in (density, true)]
    found = pearson(*means)
    return 0.0 if math.isnan(found) and not is_flat(means[1]) else found
