"""The encoded tiles of a TIFF slide, checked before anyone decodes them: there, whole, and ending where they should."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from miudiff.formats import Unreadable
from miudiff.formats.tiff import Grid, damage, grid, open_tiff, photometric

__all__ = ["JPEG", "Grid", "TileData", "grid", "level_grids"]

JPEG = 7  # the compression tag


def level_grids(path: Path, sizes: Sequence[tuple[int, int]]) -> list[Grid | None]:
    """The tiles of each level of these sizes, None for one that no tiled page has.

    For a reader that decodes by itself: what the tags of a page say is checked here, since such a reader may go on
    over what contradicts itself.

    Raises:
        Unreadable: The tags of a tiled page do not agree, or state pixels that are no colour.
    """
    found: dict[tuple[int, int], Grid] = {}
    with open_tiff(path) as tiff:
        for page in tiff.pages:
            if page.is_tiled:
                if (colours := photometric(page.keyframe)) not in ("RGB", "YCBCR"):
                    raise Unreadable(f"its tags state {colours} pixels, expected RGB")
                one = grid(page)
                found.setdefault((one.width, one.height), one)
    return [found.get(size) for size in sizes]


class TileData:
    """The data of the tiles of several pages of a file; safe to use from several threads."""

    def __init__(self, path: Path, grids: Sequence[Grid | None]) -> None:
        self.grids = tuple(grids)
        self._whole = [np.zeros(0 if g is None else len(g.offsets), bool) for g in grids]
        self._file = path.open("rb")
        self._lock = threading.Lock()

    def close(self) -> None:
        self._file.close()

    def read(self, level: int, index: int) -> bytes:
        """The data of a tile. Raises `Unreadable` where they are missing or damaged, OSError where the file cannot be read."""
        grid = self.grids[level]
        if grid is None:
            raise ValueError(f"the tiles of level {level} are not known")
        offset, length = self._place(grid, index)
        with self._lock:
            self._file.seek(offset)
            data = self._file.read(length)
        if len(data) < length:
            raise Unreadable(f"the file ends {length - len(data):,} bytes before the end of its tile {index}")
        if not self._whole[level][index]:
            if reason := damage(grid, data, index, thorough=False):
                raise Unreadable(f"{reason} in its tile {index}")
            self._whole[level][index] = True
        return data

    def check(self, x: int, y: int, width: int, height: int, level: int) -> None:
        """Raise `Unreadable` if a tile that the region touches is missing or damaged; each is looked at once."""
        grid = self.grids[level]
        if grid is None:
            return
        for column, row in grid.touched(x, y, width, height):
            if not self._whole[level][index := row * grid.columns + column]:
                self.read(level, index)

    def _place(self, grid: Grid, index: int) -> tuple[int, int]:
        known = index < min(len(grid.offsets), len(grid.lengths))
        if not known or not grid.offsets[index] or not grid.lengths[index]:
            raise Unreadable(f"its tile {index} has no data")
        return int(grid.offsets[index]), int(grid.lengths[index])
