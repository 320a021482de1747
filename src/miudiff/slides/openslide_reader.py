"""Slides that OpenSlide reads.

OpenSlide decodes strictly: what is damaged is an error. After an error a handle fails for good, for every thread, so what failed
is tried again on a new handle, which takes the place of the old one if it can read. It does not see tiles whose data go on after
the picture is full, so where it shows which tiles it reads, in Aperio's files, they are checked first.

OpenSlide takes places in whole pixels of level 0. On a level whose downsample is not a whole number, as of nearly every Aperio
pyramid, these are fractions of a pixel, and it interpolates. Aperio's tiles are therefore decoded by tifffile there, once its
pixels are seen to equal OpenSlide's; other makers' blocks are read with a margin, since interpolation leaves their edge half empty.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from miudiff.errors import SlideError
from miudiff.images import Pixels
from miudiff.slides.slide import RegionError, Scale, Slide, Unreadable, isotropic, levels_of, one_line
from miudiff.slides.tiff_reader import TiffSlide
from miudiff.slides.tiff_tiles import Grid, TileData, level_grids

log = logging.getLogger(__name__)

# These keep no tile for a place that holds no picture; a hole in a file of any other maker is damage.
SPARSE = ("mirax", "ventana", "leica", "hamamatsu", "dicom", "philips", "zeiss", "trestle", "sakura")
BLOCK = 512  # pixels read from OpenSlide at once; see `_read`
MARGIN = 2  # pixels around a block that its interpolation looks at
COMPARED, TRIED = (
    256,
    16,
)  # side of the squares by which two decoders are compared, and how many may be unreadable


def detect(path: Path) -> str | None:
    """The maker by OpenSlide's name, None if OpenSlide does not know the file."""
    try:
        return openslide.OpenSlide.detect_format(path)
    except openslide.OpenSlideError:
        return None


class OpenSlideSlide(Slide):
    """A slide read by OpenSlide."""

    def __init__(self, path: Path) -> None:
        try:
            handle = openslide.OpenSlide(path)
            properties = dict(handle.properties)
        except (openslide.OpenSlideError, OSError) as error:
            reason = one_line(error).removeprefix(f"Reading {path}: ")
            raise SlideError(f"{path}: cannot be opened ({reason}); copy the slide again") from error
        super().__init__(
            path,
            properties.get(openslide.PROPERTY_NAME_VENDOR, "openslide"),
            levels_of(handle.level_dimensions),
            _scale(path, properties),
            properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER, ""),
        )
        self.fingerprint = properties.get(openslide.PROPERTY_NAME_QUICKHASH1, "")
        self._handle: openslide.OpenSlide | None = handle
        self._exact = handle.level_downsamples
        self._lock = threading.Lock()
        aperio = self.format == "aperio"
        self._tiles = _tiles(path, handle.level_dimensions) if aperio else None
        drifts = [level for level, factor in enumerate(self._exact) if not float(factor).is_integer()]
        self._direct = _Direct(path, handle, drifts if aperio else [])
        self._interpolated = frozenset(drifts) - frozenset(self._direct.levels)
        self._sparse = self.format.startswith(SPARSE)
        colour = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        self._ground = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)], np.float32)

    def close(self) -> None:
        with self._lock:
            self._handle = None  # closed when the last thread that reads from it lets go
        self._direct.close()
        if self._tiles is not None:
            self._tiles.close()

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> Pixels:
        if level in self._direct.levels:
            return self._direct.read(x, y, width, height, level)
        if self._tiles is not None:
            self._tiles.check(x, y, width, height, level)
        # What a pixel becomes must not depend on the region asked for, so blocks that are interpolated are read whole, always at
        # the same places. Others are cut to the region; small ones save time because they stay in the processor's cache.
        size = self.levels[level]
        pixels = np.empty((height, width, 3), np.uint8)
        for top in range(y - y % BLOCK, y + height, BLOCK):
            for left in range(x - x % BLOCK, x + width, BLOCK):
                x0, x1 = max(left, x), min(left + BLOCK, x + width)
                y0, y1 = max(top, y), min(top + BLOCK, y + height)
                if level in self._interpolated:
                    w, h = min(BLOCK, size.width - left), min(BLOCK, size.height - top)
                    part = self._with_margin(left, top, w, h, level)[
                        y0 - top : y1 - top, x0 - left : x1 - left
                    ]
                else:
                    part = self._block(x0, y0, x1 - x0, y1 - y0, level)
                pixels[y0 - y : y1 - y, x0 - x : x1 - x] = part
        return pixels

    def _with_margin(self, x: int, y: int, width: int, height: int, level: int) -> Pixels:
        """A block without its neighbours' influence on its edge, which holds half a pixel of nothing otherwise."""
        size = self.levels[level]
        left, top = max(x - MARGIN, 0), max(y - MARGIN, 0)
        right, bottom = min(x + width + MARGIN, size.width), min(y + height + MARGIN, size.height)
        wide = self._block(left, top, right - left, bottom - top, level)
        return wide[y - top : y - top + height, x - left : x - left + width]

    def _block(self, x: int, y: int, width: int, height: int, level: int) -> Pixels:
        factor = self._exact[level]
        place, size = (round(x * factor), round(y * factor)), (width, height)
        with self._lock:
            handle = self._handle
        if handle is None:
            raise ValueError("the slide is closed")
        try:
            return self._flat(handle.read_region(place, level, size))
        except openslide.OpenSlideError:
            pass  # perhaps another thread's: a handle that nobody shares tells
        try:
            fresh = openslide.OpenSlide(self.path)
            pixels = self._flat(fresh.read_region(place, level, size))
        except openslide.OpenSlideError as error:
            raise Unreadable(str(error)) from error
        with self._lock:
            if self._handle is handle:
                self._handle = fresh
        return pixels

    def _flat(self, image: Image.Image) -> Pixels:
        """RGBA without its alpha: where nothing was scanned, the slide's ground."""
        if image.getchannel("A").getextrema()[0] == 255:
            raw = image.tobytes("raw", "RGB")  # quicker than an array of RGBA and a copy of its RGB
            return np.frombuffer(raw, np.uint8).reshape(image.height, image.width, 3)
        pixels = np.asarray(image)
        if not self._sparse:
            if (pixels[..., 3] == 0).any():
                raise Unreadable("a tile has no data")
            return np.ascontiguousarray(
                pixels[..., :3]
            )  # the level's last pixels are covered in part, in their own colour
        share = pixels[..., 3:].astype(np.float32) / 255
        return np.rint(pixels[..., :3] * share + self._ground * (1 - share)).astype(np.uint8)


class _Direct:
    """Levels of a file that tifffile decodes to the pixels that OpenSlide shows at their upper left corner and along it.

    Args:
        levels: OpenSlide's numbers of the levels that are wanted; those of them that can be had are in `levels`.
    """

    def __init__(self, path: Path, handle: openslide.OpenSlide, levels: Sequence[int]) -> None:
        self.levels: dict[int, int] = {}
        self._slide: TiffSlide | None = None
        if not levels:
            return
        with contextlib.suppress(SlideError):  # OpenSlide reads what tifffile does not
            self._slide = TiffSlide(path)
            sizes = [(level.width, level.height) for level in self._slide.levels]
            for level in levels:
                if (size := handle.level_dimensions[level]) in sizes:
                    number = sizes.index(size)
                    if _same_pixels(handle, level, self._slide, number):
                        self.levels[level] = number

    def read(self, x: int, y: int, width: int, height: int, level: int) -> Pixels:
        assert self._slide is not None
        return self._slide.read(x, y, width, height, self.levels[level])

    def close(self) -> None:
        if self._slide is not None:
            self._slide.close()


def _same_pixels(handle: openslide.OpenSlide, level: int, slide: TiffSlide, number: int) -> bool:
    """Whether two readers decode a level alike, by the first square of its upper edge that can be read."""
    width, height = handle.level_dimensions[level]
    for left in range(0, min(width, COMPARED * TRIED), COMPARED):
        w, h = min(COMPARED, width - left), min(COMPARED, height)
        try:
            pixels = slide.read(left, 0, w, h, number)
        except RegionError:
            continue
        try:  # from the origin, the one place that is whole on every level
            seen = np.asarray(handle.read_region((0, 0), level, (left + w, h)))
        except openslide.OpenSlideError:
            return False
        return bool((seen[:, left:, :3] == pixels).all())
    return False


def _tiles(path: Path, sizes: Sequence[tuple[int, int]]) -> TileData:
    """The tiles of each level that is a page of tiles.

    Raises:
        SlideError: The tags of a page contradict each other: OpenSlide goes on over that.
    """
    grids: list[Grid | None] = [None] * len(sizes)
    try:
        grids = level_grids(path, sizes)
    except Unreadable as error:
        raise SlideError(f"{path}: damaged ({error}); copy the slide again") from error
    except Exception:  # one check more, no condition to read: OpenSlide has opened the file
        log.info("%s: its tiles cannot be listed, and are not checked before they are decoded", path)
    return TileData(path, grids)


def _scale(path: Path, properties: dict[str, str]) -> Scale:
    try:
        across = float(properties[openslide.PROPERTY_NAME_MPP_X])
        down = float(properties[openslide.PROPERTY_NAME_MPP_Y])
        return isotropic(path, across, down, "openslide.mpp-x")
    except (KeyError, ValueError):
        pass
    try:
        if properties["tiff.ResolutionUnit"] == "centimeter":
            across, down = (1e4 / float(properties[f"tiff.{axis}Resolution"]) for axis in "XY")
            return isotropic(path, across, down, "TIFF XResolution in pixels per cm")
    except (KeyError, ValueError, ZeroDivisionError):
        pass
    return Scale()
