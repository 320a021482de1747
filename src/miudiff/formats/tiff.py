"""One page of a TIFF, checked and decoded tile by tile; strips are tiles as wide as the page.

The tags of a page must agree with each other: as many tiles as its size asks for, each with data in the
file. A tile must decode to its size exactly, no byte more or less, and its own header, if it has one, must
state that size. What each compression shows besides is in the files beside this one.
"""

from __future__ import annotations

import logging
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from miudiff.formats import Unreadable, jpeg, jpeg2000, one_line, webp

# tifffile tells of damage in its log, which nobody may have set up; what matters of it becomes an error here
logging.getLogger("tifffile").addHandler(logging.NullHandler())

Pixels = NDArray[np.uint8]

MOST_PLANES = 10_000  # of an OME-TIFF: beyond it tifffile takes minutes and gigabytes to list them
NONE, OLD_JPEG, WEBP = 1, 6, 50001  # compression tags
JPEG = (7, 33007, 34892)
APERIO_YCBCR = 33003  # JPEG 2000 of YCbCr, whatever the colours by their tag
JPEG_2000 = (APERIO_YCBCR, 33004, 33005, 34712)
# Tags of one value: width, height, compression, colours, bit order, samples, strips, planes, predictor, tiles.
SINGLE = (256, 257, 259, 262, 266, 277, 278, 284, 317, 322, 323)
OTHERS = (
    OLD_JPEG,
    22610,
    34887,
    34933,
    34934,
    50002,
    52546,
)  # JPEG XR, LERC, PNG, JPEG XL: left to their decoders
YCBCR_INSIDE = (OLD_JPEG, *JPEG, *JPEG_2000, WEBP)  # these turn YCbCr to RGB themselves
LOSSLESS: dict[int, Callable[..., bytes | bytearray]] = {
    5: imagecodecs.lzw_decode,
    8: imagecodecs.zlib_decode,
    32946: imagecodecs.zlib_decode,
    32773: imagecodecs.packbits_decode,
    34925: imagecodecs.lzma_decode,
    50000: imagecodecs.zstd_decode,
    34926: imagecodecs.zstd_decode,
}


@contextmanager
def open_tiff(path: Path) -> Iterator[Any]:
    """tifffile's view of a file, whose OME metadata are not absurd. Raises whatever tifffile raises, or `Unreadable`."""
    with tifffile.TiffFile(path) as tiff:
        check_metadata(tiff)
        yield tiff


def check_metadata(tiff: Any) -> None:
    """Raise `Unreadable` if the OME metadata state more planes than can be listed."""
    for pixels in re.findall(r"<(?:\w+:)?Pixels\b[^>]*", tiff.ome_metadata or ""):
        planes = 1
        for size in re.findall(r'\bSize[CZT]="(\d{1,20})"', pixels):
            planes *= max(1, int(size))
        if planes > MOST_PLANES:
            raise Unreadable(f"its OME metadata state {planes:,} planes, expected one image")


@dataclass(frozen=True)
class Grid:
    """The tiles of one page, or its strips.

    Attributes:
        samples: Of a pixel in one tile.
        planes: Colours that have tiles of their own, one plane after the other; 1 where a tile holds all.
        lengths: Bytes of each tile's data.
        tables: Of JPEG tiles, where the page keeps them apart.
        palette: The colour of each value, uint8 [256, 3], where tiles hold numbers of colours.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    samples: int
    planes: int
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    compression: int
    tables: bytes | None
    palette: Pixels | None
    tiled: bool

    @property
    def columns(self) -> int:
        return -(-self.width // self.tile_width)

    @property
    def rows(self) -> int:
        return -(-self.height // self.tile_height)

    def touched(self, x: int, y: int, width: int, height: int) -> Iterator[tuple[int, int]]:
        """Column and row of each tile that a region touches."""
        for row in range(y // self.tile_height, -(-(y + height) // self.tile_height)):
            for column in range(x // self.tile_width, -(-(x + width) // self.tile_width)):
                yield column, row

    def seen(self, index: int) -> tuple[int, int]:
        """Width and height of what a tile shows of the page; the rest of it is filling."""
        row, column = divmod(index % (self.columns * self.rows), self.columns)
        return (
            min(self.tile_width, self.width - column * self.tile_width),
            min(self.tile_height, self.height - row * self.tile_height),
        )


def grid(page: Any) -> Grid:
    """The tiles of a page of tifffile's.

    Raises:
        Unreadable: Its tags do not agree, so that it is not known which pixel lies where.
    """
    key = page.keyframe
    check_entries(page)
    width, height, samples = int(key.imagewidth), int(key.imagelength), int(key.samplesperpixel)
    tile_width = int(key.tilewidth if key.is_tiled else width)
    tile_height = int(key.tilelength if key.is_tiled else min(key.rowsperstrip, height))
    if min(width, height, tile_width, tile_height, samples) < 1:
        raise Unreadable(
            f"its tags state {width} x {height} pixels in tiles of {tile_width} x {tile_height}, {samples} samples"
        )
    if key.planarconfig not in (1, 2):
        raise Unreadable(f"its tags state an unknown order of colours ({int(key.planarconfig)})")
    compression = int(key.compression)
    if compression not in (NONE, WEBP, *LOSSLESS, *JPEG, *JPEG_2000, *OTHERS):
        raise Unreadable(f"its tags state the compression {compression}, which no colour image has")
    planes = samples if key.planarconfig == 2 else 1
    found = Grid(
        width=width,
        height=height,
        tile_width=tile_width,
        tile_height=tile_height,
        samples=samples // planes,
        planes=planes,
        offsets=np.array(page.dataoffsets, np.int64),
        lengths=np.array(page.databytecounts, np.int64),
        compression=compression,
        tables=page.jpegtables,
        palette=_palette(key),
        tiled=bool(key.is_tiled),
    )
    expected = found.columns * found.rows * planes
    counts = {len(found.offsets), len(found.lengths), *_counts(page)}
    if counts != {expected}:
        raise Unreadable(
            f"its tags state {expected:,} tiles, but places and lengths of {' and '.join(f'{n:,}' for n in sorted(counts))}"
        )
    if found.compression == NONE:
        for index in {0, expected // planes - 1}:  # tiles have one size but for the last strip
            if found.lengths[index]:  # none: no data, which is told where they are read
                _check_length(found, index, int(found.lengths[index]))
    return found


def check_entries(page: Any) -> None:
    """Raise `Unreadable` if an entry that says how pixels lie cannot be read: tifffile goes on without it."""
    tags = getattr(page, "tags", None)
    if tags is None:  # a page that repeats the entries of another
        return
    file = page.parent
    file.filehandle.seek(page.offset)
    number = struct.unpack(file.tiff.tagnoformat, file.filehandle.read(file.tiff.tagnosize))[0]
    entries = file.filehandle.read(number * file.tiff.tagsize)
    for at in range(0, len(entries) - 1, file.tiff.tagsize):
        code = struct.unpack(file.byteorder + "H", entries[at : at + 2])[0]
        if code in SINGLE and (code not in tags or tags[code].count != 1):
            raise Unreadable(f"its tag {code} is damaged")


def _counts(page: Any) -> list[int]:
    """How many places and lengths the tags themselves state: tifffile makes do with other numbers."""
    tags = getattr(page, "tags", {})
    return [tags[code].count for code in (273, 279, 324, 325) if code in tags]


def photometric(key: Any) -> str:
    """How samples become colours, by the name of its tag; a number if it has none."""
    return str(getattr(key.photometric, "name", key.photometric))


def _palette(key: Any) -> Pixels | None:
    if photometric(key) != "PALETTE":
        return None
    colours = np.asarray(key.colormap)
    if colours.shape != (3, 256):
        raise Unreadable(f"its palette is {colours.shape}, expected 256 colours")
    return (colours.T >> 8).astype(np.uint8)


def decode(page: Any, grid: Grid, data: bytes, index: int) -> Pixels:
    """The pixels of a tile from its data, uint8 [h, w, samples or 3 of a palette]; `damage` has seen nothing wrong with them.

    Raises:
        Unreadable: They cannot be decoded, or are not those of a tile of this size.
    """
    if grid.compression == NONE or grid.compression in LOSSLESS:
        tile = _lossless(page.keyframe, grid, data, index)
        return tile if grid.palette is None else grid.palette[tile[..., 0]]
    tables = {"jpegtables": grid.tables} if grid.compression in (OLD_JPEG, *JPEG) else {}
    try:
        tile = page.keyframe.decode(data, index, **tables)[0][0]
    except Exception as error:  # the codecs raise many kinds
        raise Unreadable(one_line(error)) from error
    _check_size(grid, index, tile.shape[1], tile.shape[0])
    tile = np.ascontiguousarray(tile)
    return jpeg2000.rgb_from_ycbcr(tile) if grid.compression == APERIO_YCBCR else tile


def damage(grid: Grid, data: bytes, index: int, thorough: bool = True) -> str:
    """What the data of a tile show of damage, "" if nothing is seen; `thorough` is that of `jpeg.damage`."""
    try:
        if grid.compression in JPEG:
            whole = jpeg.joined(data, grid.tables)
            header = jpeg.read_header(whole)
            _check_size(grid, index, header.width, header.height)
            if header.components != grid.samples:
                return f"its JPEG has {header.components} colours, expected {grid.samples}"
            return jpeg.damage(whole, thorough)
        if grid.compression in JPEG_2000:
            _check_size(grid, index, *jpeg2000.size(data))
            return jpeg2000.damage(data)
        if grid.compression == WEBP:
            _check_size(grid, index, *webp.size(data))
            return webp.damage(data)
    except Unreadable as error:
        return str(error)
    except (IndexError, ValueError, struct.error):
        return "its header is damaged"
    return ""


def _lossless(key: Any, grid: Grid, data: bytes | bytearray, index: int) -> Pixels:
    if key.fillorder != 1 or key.predictor not in (1, 2):
        raise Unreadable(
            f"bit order {int(key.fillorder)}, predictor {int(key.predictor)}: expected 1, and 1 or 2"
        )
    most = grid.tile_width * grid.tile_height * grid.samples
    if grid.compression != NONE:
        try:  # one byte more than there should be shows that there are too many
            data = LOSSLESS[grid.compression](data, out=most + 1)
        except Exception as error:  # the codecs raise many kinds
            raise Unreadable(f"its data are damaged ({one_line(error)})") from error
    rows = _check_length(grid, index, len(data))
    tile = np.frombuffer(data, np.uint8, rows * grid.tile_width * grid.samples)
    tile = tile.reshape(rows, grid.tile_width, grid.samples)
    return np.add.accumulate(tile, axis=1, dtype=np.uint8) if key.predictor == 2 else tile


def _check_length(grid: Grid, index: int, length: int) -> int:
    """The rows of a tile of so many bytes. Raises `Unreadable` if they are no whole tile."""
    row, rows = grid.tile_width * grid.samples, grid.tile_height if grid.tiled else grid.seen(index)[1]
    more = (
        grid.samples if grid.compression == NONE else 1
    )  # some writers fill raw samples up to an even length
    if 0 <= length - rows * row < more:
        return rows
    raise Unreadable(
        f"its tile {index} holds {length:,} bytes of pixels, expected {rows * row:,} by the tags"
    )


def _check_size(grid: Grid, index: int, width: int, height: int) -> None:
    """Raise `Unreadable` unless a tile of this size is whole, or all that is seen of it."""
    across, down = grid.seen(index)
    if width not in (grid.tile_width, across) or height not in (grid.tile_height, down):
        raise Unreadable(
            f"its tile {index} is {width} x {height} pixels, expected {grid.tile_width} x {grid.tile_height} by the tags"
        )


def read_page(path: Path, page: Any, check: bool = True) -> NDArray[np.uint8]:
    """All pixels of a page, uint8 [height, width, colours]; without `check`, its tiles are known to be whole.

    Raises:
        Unreadable: A tile is missing or damaged, or the tags do not agree.
    """
    found = grid(page)
    length = path.stat().st_size
    # All of it is looked at before memory is taken for the pixels.
    if not (found.offsets > 0).all() or not (found.lengths > 0).all():
        raise Unreadable("some of its tiles have no data")
    if (found.offsets + found.lengths > length).any():
        raise Unreadable("it ends before some of its tiles")
    colours = 3 if found.palette is not None else found.samples * found.planes
    pixels = np.empty((found.height, found.width, colours), np.uint8)
    with path.open("rb") as file:
        for index, (offset, count) in enumerate(zip(found.offsets, found.lengths, strict=True)):
            file.seek(offset)
            data = file.read(count)
            if check and (reason := damage(found, data, index)):
                raise Unreadable(reason)
            tile = decode(page, found, data, index)
            plane, place = divmod(index, found.columns * found.rows)
            row, column = divmod(place, found.columns)
            across, down = found.seen(index)
            top, left = row * found.tile_height, column * found.tile_width
            of_plane = slice(plane, plane + 1) if found.planes > 1 else slice(None)
            pixels[top : top + down, left : left + across, of_plane] = tile[:down, :across]
    return pixels
