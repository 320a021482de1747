"""TIFF slides that OpenSlide does not know: OME-TIFF, QPTIFF, plain TIFF; tiled or in strips, with or without a pyramid.

Tiles are read one by one, checked and decoded; the latest decoded ones are kept, since neighbouring regions share them.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from miudiff.errors import SlideError
from miudiff.formats.scale import stated
from miudiff.formats.tiff import YCBCR_INSIDE, check_entries, check_metadata, decode, grid, photometric
from miudiff.images import MAX_PIXELS, Pixels
from miudiff.slides.slide import Scale, Slide, Unreadable, isotropic, levels_of, one_line
from miudiff.slides.tiff_tiles import TileData

HELD = 64 * 2**20  # bytes of decoded tiles that are kept


class TiffSlide(Slide):
    """A slide read by tifffile."""

    def __init__(self, path: Path) -> None:
        try:
            tiff = tifffile.TiffFile(path)
        except Exception as error:  # tifffile raises many kinds
            raise SlideError(
                f"{path}: damaged or unreadable TIFF ({one_line(error)}); copy it again"
            ) from error
        try:
            check_metadata(tiff)
            for page in tiff.pages:  # without one that is damaged, another would be taken for the scan
                check_entries(page)
            series = _largest(path, tiff)
            pages = [level.pages[0] for level in series.levels if _colour(level)]
            for page in pages:
                _check_page(path, tiff, page)
            grids = [grid(page) for page in pages]
            if any(one.tile_width * one.tile_height > MAX_PIXELS for one in grids):
                raise SlideError(
                    f"{path}: a tile or strip of more than {MAX_PIXELS:,} pixels; write it in tiles"
                )
            levels = levels_of([(one.width, one.height) for one in grids])
            super().__init__(path, "ome-tiff" if tiff.is_ome else "tiff", levels, _scale(path, tiff, series))
        except SlideError:
            tiff.close()
            raise
        except Exception as error:
            tiff.close()
            raise SlideError(f"{path}: damaged TIFF ({one_line(error)}); copy it again") from error
        self._tiff, self._pages = tiff, pages
        self._tiles = TileData(path, grids)
        self._held_lock = threading.Lock()
        self._held: OrderedDict[tuple[int, int], Pixels] = OrderedDict()
        self._held_bytes = 0

    def close(self) -> None:
        self._tiff.close()
        self._tiles.close()
        with self._held_lock:
            self._held.clear()

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> Pixels:
        grid = self._tiles.grids[level]
        assert grid is not None
        pixels = np.empty((height, width, 3), np.uint8)
        for column, row in grid.touched(x, y, width, height):
            left, top = column * grid.tile_width, row * grid.tile_height
            across = slice(max(left, x), min(left + grid.tile_width, x + width))
            down = slice(max(top, y), min(top + grid.tile_height, y + height))
            tile = self._tile(level, row * grid.columns + column, grid.columns * grid.rows)
            pixels[down.start - y : down.stop - y, across.start - x : across.stop - x] = tile[
                down.start - top : down.stop - top, across.start - left : across.stop - left
            ]
        return pixels

    def _tile(self, level: int, index: int, count: int) -> Pixels:
        """A decoded tile of `count` in a plane, kept or new, uint8 [h, w, 3]."""
        with self._held_lock:
            if (held := self._held.get((level, index))) is not None:
                self._held.move_to_end((level, index))
                return held
        key = self._pages[level].keyframe
        planes = key.samplesperpixel if key.planarconfig == 2 else 1
        parts = [self._decode(level, index + plane * count) for plane in range(planes)]
        tile = parts[0] if planes == 1 else np.concatenate(parts, axis=-1)
        if tile.shape[-1] == 4:
            if (tile[..., 3] != 255).any():
                raise Unreadable("it is transparent, which says nothing of the tissue there")
            tile = np.ascontiguousarray(tile[..., :3])
        with self._held_lock:
            if (level, index) not in self._held:
                self._held[level, index] = tile
                self._held_bytes += tile.nbytes
            while self._held_bytes > HELD and len(self._held) > 1:
                self._held_bytes -= self._held.popitem(last=False)[1].nbytes
        return tile

    def _decode(self, level: int, index: int) -> Pixels:
        found = self._tiles.grids[level]
        assert found is not None
        return decode(self._pages[level], found, self._tiles.read(level, index), index)


def _largest(path: Path, tiff: Any) -> Any:
    """The series of the scan: the one with the largest first level, checked to be 8-bit RGB."""
    if not tiff.pages or not tiff.series:
        raise SlideError(f"{path}: a TIFF without an image; it is cut off or damaged, so copy it again")
    series = max(tiff.series, key=lambda s: s.keyframe.imagewidth * s.keyframe.imagelength)
    key = series.keyframe
    axes = "".join(a for a, n in zip(series.axes, series.shape) if n != 1 or a in "YX")
    what = f"{series.shape} {series.dtype} with axes {series.axes}, {photometric(key)}"
    if series.dtype != np.uint8:
        bits = series.dtype.itemsize * 8
        raise SlideError(
            f"{path}: {bits} bits a channel, expected 8; its white level is not stated, so convert it first"
        )
    if axes in ("YXS", "SYX") and key.samplesperpixel in (3, 4):
        return series
    if photometric(key) == "PALETTE":
        raise SlideError(f"{path}: PALETTE pixels, expected RGB; convert it first")
    if axes == "YX":
        raise SlideError(
            f"{path}: a grey image ({what}), expected RGB colour of a stained section; give its colour scan"
        )
    if set(axes) <= set("CYX"):
        raise SlideError(
            f"{path}: {series.shape[series.axes.index('C')]} separate channels ({what}): fluorescence, or colour written "
            "channel by channel; expected brightfield RGB in one plane; if it is colour, convert it to RGB"
        )
    raise SlideError(f"{path}: {what}, expected one RGB image")


def _colour(level: Any) -> bool:
    return level.keyframe.samplesperpixel in (3, 4) and level.dtype == np.uint8


def _check_page(path: Path, tiff: Any, page: Any) -> None:
    if page is None or page.parent is not tiff:
        raise SlideError(f"{path}: its pixels lie in several files, expected one; convert it to one")
    key = page.keyframe
    colours = photometric(key)
    raw = colours == "YCBCR" and key.compression not in YCBCR_INSIDE  # tifffile hands it on unconverted
    if colours not in ("RGB", "YCBCR") or raw:
        raise SlideError(f"{path}: {colours} pixels, expected RGB; convert it first")


def _scale(path: Path, tiff: Any, series: Any) -> Scale:
    found = stated(tiff, series.levels[0].pages[0])
    return isotropic(path, *found) if found else Scale()
