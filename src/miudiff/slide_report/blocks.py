"""One block of a slide: all of its samples at once, summed by region and by square of the maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miudiff.cells import MODERATE, STRONG, WEAK, Bars, Mask
from miudiff.slide_report.area import Area
from miudiff.slide_report.nuclei import Nuclei, find_nuclei, margin
from miudiff.slide_report.parts import Parts
from miudiff.slide_report.plane import Block
from miudiff.slides.scaled import read_scaled
from miudiff.slides.slide import Slide
from miudiff.stains import Floats, dab_map

POSITIVE = WEAK  # density of DAB above which a pixel, and a cell, is positive
CLASSES = (WEAK, MODERATE, STRONG)
BINS, BIN = 31, 0.05  # of the histogram of DAB densities; what is beyond falls into the last

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Sums:
    """Of R regions and K samples, the first of which is the result itself; row 0 is all that was measured.

    Attributes:
        pixels: Tissue of the plane, [R].
        agreed: Of it, what is positive in all samples or in none, [R].
        positive: Pixels of DAB above `POSITIVE`, [R, K].
        dab: Sum of DAB densities, [R, K].
        cells: Cells, [R, K].
        above: Cells above each of `CLASSES`, [R, K, 3].
    """

    pixels: Counts
    agreed: Counts
    positive: Counts
    dab: Floats
    cells: Counts
    above: Counts

    @classmethod
    def zero(cls, regions: int, samples: int) -> Sums:
        """Nothing added yet."""
        return cls(
            pixels=np.zeros(regions, np.int64),
            agreed=np.zeros(regions, np.int64),
            positive=np.zeros((regions, samples), np.int64),
            dab=np.zeros((regions, samples)),
            cells=np.zeros((regions, samples), np.int64),
            above=np.zeros((regions, samples, len(CLASSES)), np.int64),
        )


@dataclass(frozen=True)
class Measured:
    """What was found in one block with tissue.

    Attributes:
        block: Which one.
        regions: The regions that it holds tissue of, 0 for all and then 1 + their numbers.
        sums: For each of them.
        pixels: Tissue by square of the maps, [rows, columns], as below.
        agreed: Of it, what is positive in all samples or in none.
        positive: Of it, what is positive in the result.
        dab: Sums of DAB densities, [K, rows, columns].
        histogram: Pixels of the result by DAB density.
        cells: Those of the result; None if cells are not measured.
    """

    block: Block
    regions: Sequence[int]
    sums: Sums
    pixels: Counts
    agreed: Counts
    positive: Counts
    dab: Floats
    histogram: Counts
    cells: Nuclei | None


def measure_block(
    slides: Sequence[Slide],
    area: Area,
    parts: Parts,
    bars: Bars,
    across: float | None,
    block: Block,
    outlined: bool = False,
) -> Measured | None:
    """Measure a block; None if there is no tissue in it.

    Args:
        slides: Virtual IHC of one size: the result and more samples.
        area: What counts.
        parts: The regions to add up by.
        bars: The light, and what cells are judged by.
        across: Pixels of the plane across a nucleus; None measures no cells.
        block: Which one; it begins at a square of the maps.
        outlined: Trace the cells of the result.

    Raises:
        SlideError: It cannot be read.
    """
    plane, tissue = area.plane, area.tissue(block)
    if not tissue.any():
        return None
    members: list[tuple[int, Mask]] = [(0, tissue)]
    members += [(i + 1, inside) for i, mask in parts.members(block) if (inside := mask & tissue).any()]
    seen = block if across is None else block.grown(margin(across), plane)
    down, along = block.y - seen.y, block.x - seen.x
    core = (slice(down, down + block.height), slice(along, along + block.width))
    sums = Sums.zero(len(members), len(slides))
    sums.pixels[:] = [np.count_nonzero(mask) for _, mask in members]
    everywhere, anywhere = tissue, np.zeros_like(tissue)
    maps: list[Floats] = []
    for k, slide in enumerate(slides):
        pixels = read_scaled(slide, plane.box(seen), seen.width, seen.height)
        density = dab_map(pixels[core], bars.light)
        above = (density > POSITIVE) & tissue
        everywhere, anywhere = everywhere & above, anywhere | above
        maps.append(fold(density * tissue, plane.place))
        found = None
        if across is not None:
            found = find_nuclei(pixels, seen, block, bars, across, tissue, outlined and not k)
        for row, (_, mask) in enumerate(members):
            sums.positive[row, k] = np.count_nonzero(above & mask)
            sums.dab[row, k] = density[mask].sum()
            if found is not None:
                held = mask[found.pixel_of(block)]
                sums.cells[row, k] = np.count_nonzero(held)
                sums.above[row, k] = [np.count_nonzero(found.dab[held] > bound) for bound in CLASSES]
        if not k:
            positive, cells = fold(above, plane.place), found
            bins = np.minimum(density[tissue] / BIN, BINS - 1).astype(np.int64)
            histogram = np.bincount(bins, minlength=BINS)
    agreed = everywhere | (tissue & ~anywhere)
    sums.agreed[:] = [np.count_nonzero(agreed & mask) for _, mask in members]
    return Measured(
        block,
        [index for index, _ in members],
        sums,
        fold(tissue, plane.place),
        fold(agreed, plane.place),
        positive,
        np.stack(maps),
        histogram,
        cells,
    )


def fold(values: NDArray[np.bool_] | Floats, side: int) -> NDArray[Any]:
    """Sums over squares of `side` pixels, [H / side, W / side] rounded up; the last ones may be cut. Of bools, counts."""
    height, width = values.shape
    whole = np.pad(values, ((0, -height % side), (0, -width % side)))
    squares = whole.reshape(whole.shape[0] // side, side, whole.shape[1] // side, side)
    return squares.sum(axis=(1, 3))
