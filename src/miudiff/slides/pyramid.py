"""A slide in the making: the grid of its pyramid, its encoded tiles, and the rows of tiles that are done.

A tile is encoded once, when its pixels are known, and only its bytes move from then on: into the block of its row, from there
into the file that is wanted (`ome_tiff`, `ome_zarr`). A block is there whole or not at all, so what a killed run leaves is what
the next one begins with; and as a coarser level is made from blocks alone, it is the same whenever and wherever it is made.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image

from miudiff.errors import SlideError
from miudiff.images import Pixels, atomic
from miudiff.slides.encoding import Compression, fill

SMALLEST = 1024  # a level no longer than this is the last: it opens at once, whole
Map = Callable[[Callable[[int], bytes], Iterable[int]], Iterable[bytes]]  # as of an executor; keeps the order


@dataclass(frozen=True)
class Layout:
    """The levels of a pyramid and the square tiles of each; level 0 is the full resolution.

    Args:
        width: Of level 0 in pixels.
        height: Of level 0 in pixels.
        tile: Side of a tile, a multiple of 16; made smaller where the image does not fill one.
    """

    width: int
    height: int
    tile: int = 512

    def __post_init__(self) -> None:
        if min(self.width, self.height) < 1 or self.tile < 16 or self.tile % 16:
            raise ValueError(f"{self}: sides of at least 1 and tiles of a multiple of 16 are needed")
        enough = -(-max(self.width, self.height) // 16) * 16
        # libvips refuses a tile that is much larger than its image.
        object.__setattr__(self, "tile", min(self.tile, enough))

    @cached_property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each level: half of the one before, rounded down but never to 0."""
        sizes = [(self.width, self.height)]
        while max(sizes[-1]) > SMALLEST:
            sizes.append((max(1, sizes[-1][0] // 2), max(1, sizes[-1][1] // 2)))
        return tuple(sizes)

    def factor(self, level: int) -> tuple[int, int]:
        """How many pixels of level 0, (across, down), one of `level` covers; its size tells only nearly, for what is rounded down."""
        return 2 ** min(level, self.width.bit_length() - 1), 2 ** min(level, self.height.bit_length() - 1)

    def columns(self, level: int) -> int:
        """How many tiles one row of `level` has."""
        return -(-self.levels[level][0] // self.tile)

    def rows(self, level: int) -> int:
        """How many rows of tiles, which are its blocks, `level` has."""
        return -(-self.levels[level][1] // self.tile)

    def half(self, level: int, row: int) -> tuple[int, int, int]:
        """Shape of what a row adds to the coarser level; no pixels at the last level, or where an odd last line is left out."""
        if level + 1 == len(self.levels):
            return 0, 0, 3
        width, height = self.levels[level + 1]
        return max(0, min(self.tile // 2, height - row * self.tile // 2)), width, 3


class Block(Sequence[bytes]):
    """The encoded tiles of one row, each read from the file, and checked, when it is asked for; beyond them, its half."""

    def __init__(self, path: Path, starts: Sequence[int], checks: Sequence[int], has_half: bool) -> None:
        self.path, self.starts, self.checks, self.has_half = path, starts, checks, has_half

    @property
    def lengths(self) -> list[int]:
        """Bytes of each tile."""
        return [end - start for start, end in pairwise(self.starts[:-1])]

    def __len__(self) -> int:
        return len(self.checks) - 1

    def __iter__(self) -> Iterator[bytes]:
        return (self.read(index) for index in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        which = range(len(self))[index]
        return self.read(which) if isinstance(which, int) else [self.read(i) for i in which]

    def read(self, index: int) -> bytes:
        """Tile `index`, or the half where it is `len(self)`.

        Raises:
            SlideError: It is not what was written, or the file is gone.
        """
        start, end = self.starts[index : index + 2]
        try:
            with self.path.open("rb") as file:  # no handle is kept: a large slide has many blocks
                file.seek(start)
                data = file.read(end - start)
        except OSError as error:
            raise SlideError(f"{self.path}: cannot be read ({error.strerror})") from error
        if len(data) != end - start or zlib.crc32(data) != self.checks[index]:
            raise SlideError(
                f"{self.path}: damaged in part {index}; remove this file and run the same command again"
            )
        return data


class BlockStore:
    """A folder with one file for each finished row of tiles: a block.

    A block holds its encoded tiles and, until the coarser level has it, its half: the means of 2 x 2 pixels as they were before
    compression, so that no level is made from another's losses. It begins with a key made from all that it depends on and an
    index. A file that has another key, whose index does not add up or whose length is not what the index says, counts as not
    there, and is written over.

    Args:
        folder: Made when the first block is written. Different blocks may be written from many processes at once.
        layout: The pyramid whose rows these are.
        compression: How the tiles are encoded.
        identity: What else the pixels depend on (source, weights, seed); blocks of another identity count as not there.
    """

    MAGIC = b"miudiff block 1\n"

    def __init__(
        self, folder: str | Path, layout: Layout, compression: Compression, identity: str = ""
    ) -> None:
        self.folder, self.layout, self.compression = Path(folder), layout, compression
        self.identity = identity

    def path(self, level: int, row: int) -> Path:
        """The file of a block."""
        return self.folder / f"{level:02d}-{row:06d}.block"

    def has(self, level: int, row: int) -> bool:
        """Whether the block is there, whole, and one of this store: nothing of it need be made again."""
        block = self._open(level, row)
        return block is not None and (
            block.has_half or level + 1 == len(self.layout.levels) or self.has(level + 1, row // 2)
        )

    def tiles(self, level: int, row: int) -> Block:
        """The encoded tiles of a block, left to right.

        Raises:
            SlideError: It is not there; or, when a tile is asked for, it is damaged.
        """
        block = self._open(level, row)
        if block is None:
            raise SlideError(
                f"{self.path(level, row)}: not there or not of this job; run the same command again"
            )
        return block

    def half(self, level: int, row: int) -> Pixels:
        """What a block adds to the coarser level, uint8 [rows, width, 3].

        Raises:
            SlideError: It is not there or damaged.
        """
        block = self.tiles(level, row)
        if not block.has_half:
            raise SlideError(f"{block.path}: its half is gone; run the same command again")
        return np.frombuffer(block.read(len(block)), np.uint8).reshape(self.layout.half(level, row))

    def write(self, level: int, row: int, tiles: Sequence[bytes], half: Pixels) -> None:
        """Write a block, as `write_strip` makes it; it appears whole or not at all.

        Raises:
            DataError: It cannot be written, as on a full disk.
        """
        expected = self.layout.columns(level), self.layout.half(level, row)
        if (found := (len(tiles), half.shape)) != expected:
            raise ValueError(f"tiles and half {found} for row {row} of level {level}, expected {expected}")
        parts = [*tiles, half.tobytes()]
        index = np.array([[len(part), zlib.crc32(part)] for part in parts], "<u4").tobytes()
        head = self.MAGIC + self._key(level, row) + index
        with atomic(self.path(level, row)) as path, path.open("wb") as file:
            file.write(head + zlib.crc32(head).to_bytes(4, "little"))
            file.writelines(parts)

    def drop_half(self, level: int, row: int) -> None:
        """Give the space of a half back, once the coarser level has it."""
        block = self.tiles(level, row)
        with contextlib.suppress(OSError):  # a saving, no need
            os.truncate(block.path, block.starts[len(block)])

    def _key(self, level: int, row: int) -> bytes:
        return hashlib.sha256(
            repr((self.identity, self.layout, self.compression, level, row)).encode()
        ).digest()

    def _open(self, level: int, row: int) -> Block | None:
        path, before = self.path(level, row), len(self.MAGIC) + 32
        start = before + 8 * (self.layout.columns(level) + 1) + 4
        try:
            with path.open("rb") as file:
                head = file.read(start)
                length = file.seek(0, os.SEEK_END)
        except OSError:  # most often there is none yet
            return None
        if len(head) < start or zlib.crc32(head[:-4]).to_bytes(4, "little") != head[-4:]:
            return None
        if not head.startswith(self.MAGIC + self._key(level, row)):
            return None
        lengths, checks = np.frombuffer(head[before:-4], "<u4").reshape(-1, 2).T.tolist()
        starts = list(accumulate(lengths, initial=start))
        return Block(path, starts, checks, length == starts[-1]) if length in starts[-2:] else None


def write_strip(store: BlockStore, level: int, row: int, strip: Pixels, map: Map = map) -> None:
    """Encode and write one block from its pixels.

    Args:
        store: Where the block goes.
        level: 0 for the full resolution; `halve` makes the others.
        row: Which row of tiles.
        strip: uint8 [height, width, 3], as wide as the level, as high as a tile or what is left of the level.
        map: Makes the tiles; `ThreadPoolExecutor.map` does so on several cores.

    Raises:
        DataError: The block cannot be written.
    """
    layout, tile = store.layout, store.layout.tile
    width, height = layout.levels[level]
    if strip.shape != (expected := (min(tile, height - row * tile), width, 3)):
        raise ValueError(f"strip {strip.shape} for row {row} of level {level}, expected {expected}")
    half = np.empty(layout.half(level, row), np.uint8)

    def make(column: int) -> bytes:
        pixels = strip[:, column * tile : (column + 1) * tile]
        # A column of tiles is two of the coarser level's half tiles; `into` is empty where an odd last pixel is left out.
        into = half[:, column * tile // 2 : (column + 1) * tile // 2]
        if into.size:
            into[:] = _mean(pixels, into.shape[0], into.shape[1])
        return store.compression.encode(fill(pixels, tile))

    store.write(level, row, list(map(make, range(layout.columns(level)))), half)


def halve(store: BlockStore, level: int, row: int, map: Map = map) -> None:
    """Make block `row` of `level` from the two rows of the finer level that lie under it: each pixel the mean of 2 x 2.

    The halves that it is made from are dropped.

    Args:
        store: Holds blocks (level - 1, 2 row) and (level - 1, 2 row + 1), if the finer level has the latter.
        level: At least 1.
        row: Which row of tiles.
        map: Makes the tiles; `ThreadPoolExecutor.map` does so on several cores.

    Raises:
        SlideError: A finer block is missing or damaged.
        DataError: The block cannot be written.
    """
    finer = [r for r in (2 * row, 2 * row + 1) if r < store.layout.rows(level - 1)]
    strip = np.concatenate([store.half(level - 1, r) for r in finer])
    write_strip(store, level, row, strip, map)
    for r in finer:
        store.drop_half(level - 1, r)


def _mean(pixels: Pixels, height: int, width: int) -> Pixels:
    """The means of 2 x 2, rounded half up: [height, width, 3]. A side of one pixel, which has no partner, stays."""
    return np.asarray(Image.fromarray(pixels[: 2 * height, : 2 * width]).reduce(2))
