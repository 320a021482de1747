"""Some windows of a slide in place of all, for a preview or to look at: the densest, spread over its tissue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from miudiff.images import Pixels
from miudiff.slides.frame import Frame, Window
from miudiff.slides.overview import TissueMap
from miudiff.slides.regions import Polygon, Regions
from miudiff.slides.scaled import Read, read_scaled
from miudiff.slides.sight import MARGIN, Sight
from miudiff.slides.slide import Slide

SAMPLE = 512  # pixels of a side
FINEST = 0.5  # micrometres per pixel


def densest(frame: Frame, windows: Sequence[Window], tissue: TissueMap, count: int) -> list[Window]:
    """The densest window of each of `count` parts of a slide that hold as much tissue; a function of its arguments alone.

    Args:
        windows: To choose from, in reading order; where there are no more than `count`, all of them.
        count: At least 1.
    """
    found = _spread(list(windows), np.array([_share(frame, at, tissue) for at in windows]), count)
    return sorted(found)


def _share(frame: Frame, window: Window, tissue: TissueMap) -> float:
    """The share of a window that is tissue, 0 to 1."""
    height, width = frame.size
    box = frame.box(window.left, window.top, window.left + width, window.top + height)
    return 1 - float(tissue.in_box(*box).mean(dtype=np.float64)) / 255


def _spread(windows: list[Window], shares: NDArray[np.float64], count: int) -> list[Window]:
    """Halve the windows across their longer side, and the count with their tissue, until one is left to each part."""
    if count >= len(windows):
        return windows
    if count == 1:
        return [windows[int(shares.argmax())]]
    rows, columns = (np.array([at[axis] for at in windows]) for axis in (0, 1))
    order = np.lexsort((columns, rows) if np.ptp(rows) >= np.ptp(columns) else (rows, columns))
    first = count // 2
    mass = np.cumsum(shares[order])
    cut = int(np.searchsorted(mass, mass[-1] * first / count)) + 1
    cut = min(
        max(cut, first), len(windows) - (count - first)
    )  # each part has as many windows as it is to give
    parts = ((order[:cut], first), (order[cut:], count - first))
    return [one for part, n in parts for one in _spread([windows[i] for i in part], shares[part], n)]


def only(sight: Sight, windows: Sequence[Window]) -> Sight:
    """The slide with these windows alone to be stained; all else is left out, as what lies outside of regions is.

    Within the slide a window is shown without the margin that resampling needs, where its neighbour is not stained.
    """
    frame = sight.frame
    height, width = frame.size
    polygons = []
    for number, at in enumerate(windows, 1):
        end, under = at.left + width, at.top + height
        left, top, right, bottom = frame.box(
            at.left and at.left + MARGIN,
            at.top and at.top + MARGIN,
            end if end >= frame.columns else end - MARGIN,
            under if under >= frame.rows else under - MARGIN,
        )
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)
        polygons.append(Polygon(f"field {number}", (corners,)))
    return replace(sight, regions=Regions(tuple(polygons)), chosen=frozenset(windows))


def tissue_samples(
    slide: Slide,
    mpp: float | None,
    tissue: TissueMap,
    regions: Regions | None = None,
    read: Read | None = None,
    count: int = 6,
) -> tuple[list[Pixels], float | None]:
    """Up to `count` dense places of a slide, spread over its tissue, and their scale; none where there is no tissue.

    A function of its arguments alone. Pixels finer than FINEST are shrunk to it; a scale that is not known stays so.

    Args:
        mpp: Micrometres per pixel of level 0.
        regions: Only places that touch them.
        read: Reads instead of `slide.read`.

    Raises:
        SlideError: A place cannot be read.
    """
    step = max(1.0, FINEST / mpp) if mpp else 1.0
    width, height = (min(SAMPLE, max(1, int(side / step))) for side in (slide.width, slide.height))
    across, down = round(width * step), round(height * step)
    places, shares = [], []
    for top in range(0, max(slide.height - down, 0) + 1, down):
        for left in range(0, max(slide.width - across, 0) + 1, across):
            share = 1 - float(tissue.in_box(left, top, left + across, top + down).mean()) / 255
            if share > 0 and (regions is None or regions.mask(left, top, 8, 8, max(across, down) / 8).any()):
                places.append(Window(top // down, left // across, left, top))
                shares.append(share)
    chosen = _spread(places, np.array(shares), count)
    boxes = [(at.left, at.top, at.left + across, at.top + down) for at in chosen]
    return [read_scaled(slide, box, width, height, read) for box in boxes], mpp and mpp * step
