"""TIFF slides that OpenSlide does not know: OME-TIFF, QPTIFF, plain TIFF; tiled or in strips, with or without a pyramid.

Tiles are read one by one, checked and decoded; the latest decoded ones are kept, since neighbouring regions share them.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from miudiff.errors import SlideError
from miudiff.images import MAX_PIXELS, Pixels
from miudiff.slides.slide import Scale, Slide, Unreadable, isotropic, levels_of, one_line
from miudiff.slides.tiff_tiles import TileData, grid

# tifffile tells of damage in its log, which nobody may have set up; what matters of it becomes an error here
logging.getLogger("tifffile").addHandler(logging.NullHandler())

HELD = 64 * 2**20  # bytes of decoded tiles that are kept
MICROMETRES = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4, "in": 25400.0,
}  # fmt: skip
APERIO_YCBCR = 33003  # JPEG 2000 of YCbCr, whatever the photometric tag says
JPEG = (6, 7, 34892, 33007)  # compression tags that need the tables of the page


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
        page = self._pages[level]
        data = self._tiles.read(level, index)
        options = {"jpegtables": page.jpegtables} if page.keyframe.compression in JPEG else {}
        try:
            array: Any = page.keyframe.decode(data, index, **options)[0]
        except Exception as error:  # the codecs raise many kinds
            raise Unreadable(f"its tile {index} is damaged: {one_line(error)}") from error
        tile = np.ascontiguousarray(array[0])
        return rgb_from_ycbcr(tile) if page.keyframe.compression == APERIO_YCBCR else tile


def rgb_from_ycbcr(pixels: Pixels) -> Pixels:
    """RGB of full-range YCbCr (ITU-R BT.601), uint8 [H, W, 3], rounded as OpenSlide rounds."""
    luma, blue, red = (pixels[..., i].astype(np.float64) for i in range(3))
    blue, red = blue - 128, red - 128
    parts = 1.402 * red, -0.34414 * blue - 0.71414 * red, 1.772 * blue
    rgb = np.stack([luma + np.floor(part + 0.5) for part in parts], axis=-1)
    return rgb.clip(0, 255).astype(np.uint8)


def _largest(path: Path, tiff: Any) -> Any:
    """The series of the scan: the one with the largest first level, checked to be 8-bit RGB."""
    if not tiff.pages or not tiff.series:
        raise SlideError(f"{path}: a TIFF without an image; it is cut off or damaged, so copy it again")
    series = max(tiff.series, key=lambda s: s.keyframe.imagewidth * s.keyframe.imagelength)
    key = series.keyframe
    axes = "".join(a for a, n in zip(series.axes, series.shape) if n != 1 or a in "YX")
    what = f"{series.shape} {series.dtype} with axes {series.axes}, {key.photometric.name}"
    if series.dtype != np.uint8:
        bits = series.dtype.itemsize * 8
        raise SlideError(
            f"{path}: {bits} bits a channel, expected 8; its white level is not stated, so convert it first"
        )
    if axes in ("YXS", "SYX") and key.samplesperpixel in (3, 4):
        return series
    if axes == "YX":
        raise SlideError(f"{path}: a grey image ({what}), expected RGB colour of a stained section")
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
    photometric = key.photometric.name
    raw = photometric == "YCBCR" and key.compression not in JPEG  # tifffile hands it on unconverted
    if photometric not in ("RGB", "YCBCR") or raw:
        raise SlideError(f"{path}: {photometric} pixels, expected RGB; convert it first")


def _scale(path: Path, tiff: Any, series: Any) -> Scale:
    key = series.keyframe
    if tiff.is_ome:
        found = _ome_size(tiff.ome_metadata, key.imagewidth, key.imagelength)
        if found is not None:
            scale = isotropic(path, *found, "OME PhysicalSizeX")
            if scale.mpp is not None:
                return scale
    tags = key.tags
    if "XResolution" in tags and "ResolutionUnit" in tags and int(tags["ResolutionUnit"].value) == 3:
        (n, d), (m, e) = (tags[f"{axis}Resolution"].value for axis in "XY")
        if n and m:
            return isotropic(path, 1e4 * d / n, 1e4 * e / m, "TIFF XResolution in pixels per cm")
    return Scale()


def _ome_size(xml: str, width: int, height: int) -> tuple[float, float] | None:
    """PhysicalSizeX and Y in micrometres of the image of this size."""
    try:
        root = ElementTree.fromstring(xml.encode())
    except ElementTree.ParseError:
        return None
    for pixels in root.iterfind(".//{*}Pixels"):
        if (pixels.get("SizeX"), pixels.get("SizeY")) != (str(width), str(height)):
            continue
        sizes = []
        for axis in "XY":
            factor = MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            size = pixels.get(f"PhysicalSize{axis}")
            if factor is None or size is None:
                return None
            try:
                sizes.append(float(size) * factor)
            except ValueError:
                return None
        return sizes[0], sizes[1]
    return None
