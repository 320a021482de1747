"""What a window of a slide costs beside the network, measured on a few windows with their H&E in place of a stain."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from miudiff.errors import SlideError
from miudiff.slides.blocks import Encoder
from miudiff.slides.encoding import Compression
from miudiff.slides.frame import Window
from miudiff.slides.pyramid import BlockStore, Layout
from miudiff.slides.sight import Sight

MEASURED = 5  # windows; the first of them pays for what is set up
COARSER = 4 / 3  # all levels of a pyramid, over its finest


def seconds_beside(sight: Sight, compression: Compression, windows: Sequence[Window]) -> float:
    """The median of one thread's seconds for a window: it is read and put into the result, if it is to be stained, and encoded.

    Args:
        windows: All of a kind, stained or not; a few spread over them are measured. Of none, it is 0.
    """
    count = min(MEASURED, len(windows))
    layout = Layout(sight.slide.width, sight.slide.height)
    store = BlockStore(Path(), layout, compression)  # nothing is written
    found = []
    with contextlib.closing(Encoder(sight, store, 1)) as encoder:
        for i in range(count):
            window = windows[(2 * i + 1) * len(windows) // (2 * count)]
            with contextlib.suppress(SlideError):  # the run tells what cannot be read, when it comes there
                found.append(_seconds_of(encoder, window))
    return statistics.median(found) if found else 0.0


def _seconds_of(encoder: Encoder, window: Window) -> float:
    sight, frame, store = encoder.sight, encoder.sight.frame, encoder.store
    height, width = frame.size
    step_y, step_x = max(height - frame.overlap, 1), max(width - frame.overlap, 1)
    box = frame.box(window.left, window.top, window.left + step_x, window.top + step_y)
    left, top, right, bottom = (int(edge) for edge in box)
    began = time.monotonic()
    windows, arrays = [], {}
    if sight.needs(window):
        windows = [(window.row, 0, window)]
        arrays = {window.row: np.stack(sight.windows([window])[0])}
    pixels, _ = encoder.pixels(left, top, right, bottom, windows, arrays, [])
    made = time.monotonic()
    side = min(store.layout.tile, *pixels.shape[:2])
    store.compression.encode(np.ascontiguousarray(pixels[:side, :side]))
    tiles = pixels.shape[0] * pixels.shape[1] / side**2
    return made - began + (time.monotonic() - made) * tiles * COARSER
