"""From stained windows to the result's encoded tiles: blend, resample back to level 0, put the glass back, encode."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from math import ceil, floor
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from miudiff.images import Pixels
from miudiff.slides.frame import Box, Window
from miudiff.slides.pyramid import BlockStore, halve, write_strip
from miudiff.slides.sight import (
    MARGIN,
    OUTSIDE,
    Rectangle,
    Sight,
    painted,
    read_rectangles,
    write_rectangles,
)
from miudiff.tiling import window as share_of

CHUNK = 4  # tiles that are blended and resampled together


class Rows(Protocol):
    """Stained rows of windows."""

    def windows(self, row: int) -> list[Window]: ...

    def read(self, row: int) -> NDArray[np.uint8]: ...

    def bad(self, row: int) -> list[Rectangle]: ...


class Encoder:
    """Makes the blocks of a result: rows of encoded tiles, level 0 from stained windows, each coarser level from the halves of the one below.

    Args:
        store: Where blocks are kept; those that are there are not made again.
        threads: Tiles are made by so many at once.
    """

    def __init__(self, sight: Sight, store: BlockStore, threads: int = 2) -> None:
        self.sight, self.store = sight, store
        self._pool = ThreadPoolExecutor(threads, "encode")
        self._there: set[tuple[int, int]] = set()

    def missing(self) -> list[int]:
        """The blocks of level 0 that have to be made for the pyramid to be whole."""
        # All are looked for: a coarser block may be there without those that it was made from.
        return [row for row in range(self.store.layout.rows(0)) if not self._has(0, row)]

    def _below(self, level: int, row: int) -> list[int]:
        """The blocks of the finer level under a block."""
        return [below for below in (2 * row, 2 * row + 1) if below < self.store.layout.rows(level - 1)]

    def _has(self, level: int, row: int) -> bool:
        """Whether a block is there; what was there once is not looked for again."""
        if (level, row) not in self._there and self.store.has(level, row):
            self._there.add((level, row))
        return (level, row) in self._there

    def needs(self, block: int) -> range:
        """The rows of windows that a block of level 0 is made from."""
        top, bottom = self._working_rows(*self._span(block))
        return self.sight.frame.rows_over(top, bottom)

    def encode(self, block: int, rows: Rows) -> None:
        """Make a block of level 0, and those of higher levels that can be made with it."""
        tile, layout = self.store.layout.tile, self.store.layout
        top, bottom = self._span(block)
        needed = self.needs(block)
        windows = [(row, i, window) for row in needed for i, window in enumerate(rows.windows(row))]
        arrays = {row: rows.read(row) for row in needed}
        bad = list(chain.from_iterable(rows.bad(row) for row in needed))

        strip = np.empty((bottom - top, layout.width, 3), np.uint8)

        def chunk(left: int) -> list[Rectangle]:
            right = min(left + CHUNK * tile, layout.width)
            strip[:, left:right], unread = self.pixels(left, top, right, bottom, windows, arrays, bad)
            return unread

        parts = list(self._pool.map(chunk, range(0, layout.width, CHUNK * tile)))
        if found := list(chain.from_iterable(parts)):
            write_rectangles(self._note(block), found)
        write_strip(self.store, 0, block, strip, self._pool.map)
        self._go_up(0, block)

    def complete(self) -> None:
        """Make every coarser block that can be made and is not there; after a kill some may be missing."""
        for level in range(1, len(self.store.layout.levels)):
            for row in range(self.store.layout.rows(level)):
                self._halve(level, row)

    def _go_up(self, level: int, row: int) -> None:
        """Make the coarser blocks that a new block completes."""
        if level + 1 < len(self.store.layout.levels) and self._halve(level + 1, row // 2):
            self._go_up(level + 1, row // 2)

    def _halve(self, level: int, row: int) -> bool:
        """Make a coarser block if it is not there and those under it are."""
        if self._has(level, row) or not all(self._has(level - 1, one) for one in self._below(level, row)):
            return False
        halve(self.store, level, row, self._pool.map)
        return True

    @property
    def unreadable(self) -> list[Rectangle]:
        """What could not be read at level 0 for the blocks that are there."""
        notes = sorted(self.store.folder.glob("unreadable-*.json"))
        return [at for note in notes for at in read_rectangles(note)]

    def _note(self, block: int) -> Path:
        return self.store.folder / f"unreadable-{block:05d}.json"

    def _span(self, block: int) -> tuple[int, int]:
        """The rows of level 0, first and one past the last, of a block."""
        tile = self.store.layout.tile
        return block * tile, min((block + 1) * tile, self.store.layout.height)

    def _working_rows(self, top: int, bottom: int) -> tuple[int, int]:
        down = self.sight.frame.scale[1]
        return max(floor(top * down) - MARGIN, 0), min(ceil(bottom * down) + MARGIN, self.sight.frame.rows)

    def pixels(
        self,
        left: int,
        top: int,
        right: int,
        bottom: int,
        windows: list[tuple[int, int, Window]],
        arrays: dict[int, NDArray[np.uint8]],
        bad: list[Rectangle],
    ) -> tuple[Pixels, list[Rectangle]]:
        """A rectangle of the result, and what of level 0 could not be read for it."""
        box = Box(left, top, right, bottom)
        height, width = bottom - top, right - left
        asked = self.sight.asked_for(box) if self.sight.regions is not None else None
        unread: list[Rectangle] = []
        if asked is not None and not asked.any():
            result = np.full((height, width, 3), OUTSIDE, np.uint8)
        else:
            glass = self.sight.glass.resampled(box, width, height) if self.sight.glass else None
            source = None
            if glass is not None and (glass > 0).any():
                source, unread = self.sight.level0(left, top, width, height)
            if source is not None and glass is not None and (glass == 1).all():
                result = source
            else:
                result = self._stained(box, windows, arrays)
                if source is not None and glass is not None:
                    share = glass[..., None]
                    result = np.round(result * (1 - share) + source * share).astype(np.uint8)
            if asked is not None:
                result = np.where(asked[..., None], result, np.uint8(OUTSIDE))
        return painted(result, left, top, [*bad, *unread]), unread

    def _stained(
        self, box: Box, windows: list[tuple[int, int, Window]], arrays: dict[int, NDArray[np.uint8]]
    ) -> Pixels:
        """The blended windows over a box of whole pixels of level 0."""
        frame = self.sight.frame
        across, down = frame.scale
        left = max(floor(box.left * across) - MARGIN, 0)
        right = min(ceil(box.right * across) + MARGIN, frame.columns)
        top, bottom = self._working_rows(int(box.top), int(box.bottom))
        plane = blend(windows, arrays, frame.size, frame.overlap, (left, top, right, bottom))
        width, height = int(box.right - box.left), int(box.bottom - box.top)
        if (across, down) == (1.0, 1.0):
            y, x = int(box.top) - top, int(box.left) - left
            return plane[y : y + height, x : x + width]
        inside = (
            box.left * across - left,
            box.top * down - top,
            min(box.right * across - left, right - left),
            min(box.bottom * down - top, bottom - top),
        )
        method = Image.Resampling.BICUBIC if across * down < 1 else Image.Resampling.BOX
        return np.asarray(Image.fromarray(plane).resize((width, height), method, box=inside))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def blend(
    windows: Iterable[tuple[int, int, Window]],
    arrays: dict[int, NDArray[np.uint8]],
    size: tuple[int, int],
    overlap: int,
    plane: tuple[int, int, int, int],
) -> Pixels:
    """The rectangle `plane` (left, top, right, bottom) of stained windows, blended as `tiling.over_tiles` does.

    Most places lie in one window alone and are copied. Places that no window covers are 0; nothing of the result comes from them.

    Args:
        windows: (row, its place in the row's array, window) of each, in reading order.
        arrays: The windows of each row, [n, h, w, 3].
        size: (h, w) of a window.
    """
    left, top, right, bottom = plane
    height, width = size
    near = [
        (arrays[row][i], window)
        for row, i, window in windows
        if window.left < right
        and window.left + width > left
        and window.top < bottom
        and window.top + height > top
    ]
    result = np.zeros((bottom - top, right - left, 3), np.uint8)
    share = share_of(height, width, overlap)[..., None]
    across = _cuts((window.left for _, window in near), width, left, right)
    for y0, y1 in pairwise(_cuts((window.top for _, window in near), height, top, bottom)):
        beside = [one for one in near if one[1].top <= y0 and y1 <= one[1].top + height]
        for x0, x1 in pairwise(across):
            over = [one for one in beside if one[1].left <= x0 and x1 <= one[1].left + width]
            parts = [
                (pixels, np.s_[y0 - at.top : y1 - at.top, x0 - at.left : x1 - at.left]) for pixels, at in over
            ]
            here = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
            if len(parts) == 1:
                result[here] = parts[0][0][parts[0][1]]
            elif parts:
                (pixels, part), *others = parts
                total, weight = pixels[part] * share[part], share[part]
                for pixels, part in others:
                    total += pixels[part] * share[part]
                    weight = weight + share[part]
                total /= weight
                result[here] = np.rint(total, out=total)  # of weights that add up to 1: no clipping
    return result


def _cuts(begins: Iterable[int], side: int, first: int, last: int) -> list[int]:
    """Where the windows over a line change, from `first` to `last`."""
    found = {edge for begin in begins for edge in (begin, begin + side) if first < edge < last}
    return sorted({first, last} | found)
