"""From stained windows to the result's encoded tiles: blend, resample back to level 0, put the glass back, encode."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, pairwise
from math import ceil, floor, prod
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from miudiff.images import Pixels, atomic, write_bytes
from miudiff.slides.frame import Box, Window
from miudiff.slides.pyramid import BlockStore, Layout, fill
from miudiff.slides.sight import MARGIN, OUTSIDE, Rectangle, Sight, painted
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
        self.sight, self.store, self.threads = sight, store, threads
        self._pool = ThreadPoolExecutor(threads, "encode")
        self.halves = Halves(store.folder, store.layout)
        self._there: set[tuple[int, int]] = set()

    def missing(self) -> list[int]:
        """The blocks of level 0 that have to be made for the pyramid to be whole."""
        top = len(self.store.layout.levels) - 1
        return sorted(set().union(*(self._lacking(top, row) for row in range(self.store.layout.rows(top)))))

    def _lacking(self, level: int, row: int) -> set[int]:
        if self._done(level, row):
            return set()
        if level == 0:
            return {row}
        return set().union(*(self._lacking(level - 1, below) for below in self._below(level, row)))

    def _below(self, level: int, row: int) -> list[int]:
        """The blocks of the finer level under a block."""
        return [below for below in (2 * row, 2 * row + 1) if below < self.store.layout.rows(level - 1)]

    def _done(self, level: int, row: int) -> bool:
        """Whether nothing more has to be made of a block: it is there, and the coarser one or what that is made from."""
        if (level, row) in self._there:
            return True
        last = level == len(self.store.layout.levels) - 1
        found = self.store.has(level, row) and (
            last or self.halves.has(level, row) or self._done(level + 1, row // 2)
        )
        if found:  # what was there once is not looked for again
            self._there.add((level, row))
        return found

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

        half = self.halves.empty(0, block)

        def chunk(column: int) -> tuple[list[bytes], list[Rectangle]]:
            left = column * tile
            right = min(left + CHUNK * tile, layout.width)
            pixels, unread = self._pixels(left, top, right, bottom, windows, arrays, bad)
            put_half(half, pixels, left)
            return [self._encoded(pixels[:, x : x + tile]) for x in range(0, right - left, tile)], unread

        done = list(self._pool.map(chunk, range(0, layout.columns(0), CHUNK)))
        if found := sorted({at for _, unread in done for at in unread}):
            write_bytes(self._note(block), json.dumps(found).encode())
        self._keep(0, block, list(chain.from_iterable(tiles for tiles, _ in done)), half)
        self.complete()

    def complete(self) -> None:
        """Make every coarser block that can be made; after a kill some may be missing."""
        for level in range(1, len(self.store.layout.levels)):
            for row in range(self.store.layout.rows(level)):
                below = self._below(level, row)
                if not self._done(level, row) and all(self.halves.has(level - 1, one) for one in below):
                    self._coarser(level, row, below)

    def _coarser(self, level: int, row: int, below: list[int]) -> None:
        """Make a block of the halves of the two under it."""
        tile = self.store.layout.tile
        halves = [self.halves.read(level - 1, one) for one in below]
        half = self.halves.empty(level, row)

        def make(column: int) -> bytes:
            pixels = np.concatenate([one[:, column * tile : (column + 1) * tile] for one in halves])
            put_half(half, pixels, column * tile)
            return self._encoded(pixels)

        tiles = list(self._pool.map(make, range(self.store.layout.columns(level))))
        self._keep(level, row, tiles, half)
        for one in below:
            self.halves.forget(level - 1, one)

    def _keep(self, level: int, row: int, tiles: list[bytes], half: Pixels) -> None:
        if level + 1 < len(self.store.layout.levels):
            self.halves.write(level, row, half)
        self.store.write(level, row, tiles)
        self._there.add((level, row))

    @property
    def unreadable(self) -> list[Rectangle]:
        """What could not be read at level 0 for the blocks that are there."""
        notes = sorted(self.store.folder.glob("unreadable-*.json"))
        return [Rectangle(*at) for note in notes for at in json.loads(note.read_text())]

    def _note(self, block: int) -> Path:
        return self.store.folder / f"unreadable-{block:05d}.json"

    def _span(self, block: int) -> tuple[int, int]:
        """The rows of level 0, first and one past the last, of a block."""
        tile = self.store.layout.tile
        return block * tile, min((block + 1) * tile, self.store.layout.height)

    def _working_rows(self, top: int, bottom: int) -> tuple[int, int]:
        down = self.sight.frame.scale[1]
        return max(floor(top * down) - MARGIN, 0), min(ceil(bottom * down) + MARGIN, self.sight.frame.rows)

    def _pixels(
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
        _frame, box = self.sight.frame, Box(left, top, right, bottom)
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

    def _encoded(self, pixels: Pixels) -> bytes:
        return self.store.compression.encode(fill(pixels, self.store.layout.tile))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class Halves:
    """Blocks at half their size, without loss, as long as the coarser block that is made of them is not there."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout

    def empty(self, level: int, row: int) -> Pixels:
        """Room for the half of a block."""
        return np.zeros(self._shape(level, row), np.uint8)

    def _shape(self, level: int, row: int) -> tuple[int, int, int]:
        if level + 1 == len(self.layout.levels):
            return 0, 0, 3  # nothing is made of the last
        width, height = self.layout.levels[level + 1]
        half = self.layout.tile // 2
        return max(min(half, height - row * half), 1 if height == 1 else 0), width, 3

    def has(self, level: int, row: int) -> bool:
        try:
            return self._path(level, row).stat().st_size == prod(self._shape(level, row))
        except OSError:
            return False

    def write(self, level: int, row: int, half: Pixels) -> None:
        with atomic(self._path(level, row), durable=False) as part:
            half.tofile(part)

    def read(self, level: int, row: int) -> Pixels:
        shape = self._shape(level, row)
        return (
            np.memmap(self._path(level, row), np.uint8, "r", shape=shape)
            if prod(shape)
            else np.zeros(shape, np.uint8)
        )

    def forget(self, level: int, row: int) -> None:
        self._path(level, row).unlink(missing_ok=True)

    def _path(self, level: int, row: int) -> Path:
        return self.folder / f"{level:02d}-{row:06d}.half"


def put_half(half: Pixels, pixels: Pixels, left: int) -> None:
    """Halve a part of a block that begins at column `left`, each pixel the mean of 2 x 2, into the block's half."""
    small = np.asarray(Image.fromarray(pixels).reduce(2))  # rounded half up
    rows, columns = half.shape[0], min(small.shape[1], half.shape[1] - left // 2)
    if rows and columns > 0:  # an odd last line has no partner and is left out
        half[:, left // 2 : left // 2 + columns] = small[:rows, :columns]


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
