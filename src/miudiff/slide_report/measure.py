"""Going over a slide block by block and adding up what is found.

Nothing here grows with the slide but the maps, whose squares grow with it, a row of sums for each region, and 32 bytes a cell.
Blocks are measured by several threads and added in their order, so the sums are the same every time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from miudiff.cells import Bars, find_bars
from miudiff.evenly import evenly
from miudiff.slide_report.area import Area
from miudiff.slide_report.blocks import BINS, Counts, Measured, Sums, measure_block
from miudiff.slide_report.nuclei import Nuclei, diameter
from miudiff.slide_report.parts import Parts
from miudiff.slide_report.plane import BLOCK, Block
from miudiff.slides.scaled import read_scaled
from miudiff.slides.slide import Slide
from miudiff.stains import Floats

LOOKED_AT, LOOK = 16, 512  # squares, and pixels a side, that the bars are found on: 200 MB
FOLD = 16  # pixels that are judged as one when such squares are chosen
OUTLINES = 200_000  # cells whose outlines are kept; a slide with more has points
WORKERS = 4  # a block takes about 100 MB


@dataclass(frozen=True)
class Maps:
    """A value for each square of the plane, [rows, columns]; NaN where a square holds no tissue.

    Attributes:
        pixels: Tissue of the plane, whole numbers.
        dab: Mean DAB density of the result.
        positive: Share of it that is positive.
        spread: Standard deviation over samples of the mean DAB density; None for one sample.
        agreed: Share of the tissue where all samples agree; None for one sample.
    """

    pixels: Counts
    dab: Floats
    positive: Floats
    spread: Floats | None
    agreed: Floats | None


@dataclass(frozen=True)
class Found:
    """What was measured.

    Attributes:
        bars: What cells are judged by, and the light; None if there is no tissue.
        across: Pixels of the plane across a nucleus; None if cells were not measured.
        sums: By region.
        maps: By square.
        histogram: Tissue pixels of the result by DAB density.
        cells: Those of the result; without outlines if there are more than `OUTLINES`.
    """

    bars: Bars | None
    across: float | None
    sums: Sums
    maps: Maps
    histogram: Counts
    cells: Nuclei


def measure(
    slides: Sequence[Slide], area: Area, parts: Parts, say: Callable[[str], None], size: int = BLOCK
) -> Found:
    """Measure a slide and its samples.

    Args:
        slides: Virtual IHC of one size: the result and more samples.
        area: What counts.
        parts: The regions to add up by.
        say: Takes a line now and then.
        size: Pixels of a block's side, a multiple of the plane's `place`.

    Raises:
        SlideError: A block cannot be read.
    """
    plane, across = area.plane, diameter(area.plane)
    bars = find_bars_of(slides[0], area, across)
    total = Sums.zero(len(parts.names) + 1, len(slides))
    pixels, positive, agreed = (np.zeros(plane.grid, np.int64) for _ in range(3))
    dab, spread = np.zeros(plane.grid), np.full(plane.grid, np.nan)
    histogram = np.zeros(BINS, np.int64)
    cells: list[Nuclei] = []
    counted = 0
    blocks = list(plane.blocks(size)) if bars is not None else []

    def one(block: Block) -> Measured | None:
        assert bars is not None
        return measure_block(slides, area, parts, bars, across, block, counted <= OUTLINES)

    for number, found in enumerate(_in_order(one, blocks), 1):
        if number % max(len(blocks) // 4, 16) == 0:
            say(f"measured {number} of {len(blocks)} blocks")
        if found is None:
            continue
        place = _place(found, plane.place)
        pixels[place], positive[place], agreed[place] = found.pixels, found.positive, found.agreed
        dab[place] = found.dab[0]
        if len(slides) > 1:
            spread[place] = (found.dab / np.maximum(found.pixels, 1)).std(axis=0, ddof=1)
        _add(total, found)
        histogram += found.histogram
        if found.cells is not None:
            cells.append(found.cells if counted <= OUTLINES else found.cells.without_outlines())
            few, counted = counted <= OUTLINES, counted + len(found.cells)
            if few and counted > OUTLINES:
                cells = [each.without_outlines() for each in cells]
    several = len(slides) > 1
    empty = pixels == 0
    maps = Maps(
        pixels,
        _share(dab, pixels),
        _share(positive, pixels),
        np.where(empty, np.nan, spread) if several else None,
        _share(agreed, pixels) if several else None,
    )
    return Found(bars, across, total, maps, histogram, Nuclei.together(cells))


def find_bars_of(slide: Slide, area: Area, across: float | None) -> Bars | None:
    """The light of a slide and the bars of its cells, from squares spread over its tissue; None without tissue."""
    plane = area.plane
    fold = min(FOLD, plane.width, plane.height)
    shares = [(block, float(area.tissue(block, fold).mean())) for block in plane.blocks(LOOK)]
    full = max((share for _, share in shares), default=0.0)
    rich = [block for block, share in shares if share and share >= full / 2]
    if not rich:
        return None
    # Of tissue alone: where glass was kept it is the H&E's, whose light may be another than the stain's.
    looked_at = [
        (read_scaled(slide, plane.box(block), block.width, block.height), area.tissue(block))
        for block in evenly(rich, LOOKED_AT)
    ]
    if not any(mask.any() for _, mask in looked_at):
        return None
    return find_bars(looked_at, across) if across is not None else find_bars(looked_at)


def _in_order(one: Callable[[Block], Measured | None], blocks: Sequence[Block]) -> Iterator[Measured | None]:
    """Each block's measures, made by several threads; the first failure ends them all."""
    with ThreadPoolExecutor(min(os.cpu_count() or 1, WORKERS)) as threads:
        try:
            yield from threads.map(one, blocks)
        except BaseException:
            threads.shutdown(cancel_futures=True)
            raise


def _place(found: Measured, side: int) -> tuple[slice, slice]:
    """Where a block's squares lie in the maps."""
    row, column = found.block.y // side, found.block.x // side
    rows, columns = found.pixels.shape
    return slice(row, row + rows), slice(column, column + columns)


def _add(total: Sums, found: Measured) -> None:
    at, part = list(found.regions), found.sums
    total.pixels[at] += part.pixels
    total.agreed[at] += part.agreed
    total.positive[at] += part.positive
    total.dab[at] += part.dab
    total.cells[at] += part.cells
    total.above[at] += part.above


def _share(values: Counts | Floats, pixels: Counts) -> Floats:
    return np.where(pixels > 0, values / np.maximum(pixels, 1), np.nan)
