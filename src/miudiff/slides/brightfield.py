"""Whether a slide was taken by transmitted light: stains then darken a bright ground. Fluorescence shines on a dark one."""

from __future__ import annotations

import contextlib
from itertools import product

import numpy as np

from miudiff.errors import SlideError
from miudiff.images import LUMA, Pixels
from miudiff.slides.slide import RegionError, Slide

WHOLE = 4_000_000  # pixels of a level that are read at once; a larger one is sampled
WINDOW, WINDOWS = 256, 8
ENOUGH = 400_000  # pixels to judge by
# 187 real brightfield fields, dense tumours without glass among them, have a median luma of at least 0.21 and a least channel
# that is at least 0.57 in one pixel of twenty; a DAPI scan has 0.01 and 0.00.
DARK, DIM = 0.12, 0.3
UNLIT = 3 / 255  # some writers leave black what was never scanned


def check_brightfield(slide: Slide) -> None:
    """Refuse a slide that is no brightfield colour scan, by looking at all of it coarsely or at places all over it.

    Raises:
        SlideError: Its ground is dark, or it has no colour.
    """
    seen = np.concatenate([window.reshape(-1, 3) for window in _windows(slide)])
    levels = seen[:: max(1, len(seen) // ENOUGH)].astype(np.float32) / 255
    lit = levels[levels.max(-1) > UNLIT]
    if not len(lit):
        raise SlideError(f"{slide.path}: all black, expected a brightfield scan of a stained section")
    luma = lit @ np.array(LUMA, np.float32)
    median, bright = float(np.median(luma)), float(np.percentile(lit.min(-1), 95))
    if median < DARK or bright < DIM:
        raise SlideError(
            f"{slide.path}: its ground is dark (median brightness {median:.0%}): a fluorescence or darkfield scan, expected a "
            "brightfield scan of an H&E section"
        )
    if float(luma.std()) > 0.02 and not (lit.max(-1) - lit.min(-1)).any():
        raise SlideError(
            f"{slide.path}: a grey image stored as RGB, expected colour of a stained section; give its colour scan"
        )


def _windows(slide: Slide) -> list[Pixels]:
    """All of a small level, or windows spread over the smallest; damaged ones left out."""
    level = len(slide.levels) - 1
    while level and slide.levels[level].width * slide.levels[level].height < 256**2:
        level -= 1
    size = slide.levels[level]
    if size.width * size.height <= WHOLE:
        with contextlib.suppress(RegionError):  # damage is for those to report who need the place
            return [slide.read(0, 0, size.width, size.height, level)]
    w, h = min(WINDOW, size.width), min(WINDOW, size.height)
    windows, failure = [], None
    for i, j in product(range(WINDOWS), repeat=2):
        y, x = (
            (side - length) * (2 * n + 1) // (2 * WINDOWS)
            for side, length, n in ((size.height, h, i), (size.width, w, j))
        )
        try:
            windows.append(slide.read(x, y, w, h, level))
        except RegionError as error:
            failure = error
    if not windows and failure is not None:
        raise failure
    return windows
