"""Slides that OpenSlide reads.

OpenSlide decodes strictly: what is damaged is an error. After an error a handle fails for good, for every thread, so what failed
is tried again on a new handle, which takes the place of the old one if it can read.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import openslide
from PIL import Image

from miudiff.errors import SlideError
from miudiff.images import Pixels
from miudiff.slides.slide import Scale, Slide, Unreadable, isotropic, levels_of, one_line

# These keep no tile for a place that holds no picture; a hole in a file of any other maker is damage.
SPARSE = ("mirax", "ventana", "leica", "hamamatsu", "dicom", "philips", "zeiss", "trestle", "sakura")
BLOCK = 512  # pixels of a level whose factor is not whole; see `_read`


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
        self._handle: openslide.OpenSlide | None = handle
        self._exact = handle.level_downsamples
        self._lock = threading.Lock()
        self._sparse = self.format.startswith(SPARSE)
        colour = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
        self._ground = np.array([int(colour[i : i + 2], 16) for i in (0, 2, 4)], np.float32)

    def close(self) -> None:
        with self._lock:
            self._handle = None  # closed when the last thread that reads from it lets go

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> Pixels:
        if float(self._exact[level]).is_integer():
            return self._block(x, y, width, height, level)
        # OpenSlide takes places in whole pixels of level 0, which are fractions of a pixel here, and interpolates. What a pixel
        # gets must not depend on the region asked for, so such a level is read in blocks that lie always at the same places.
        pixels = np.empty((height, width, 3), np.uint8)
        size = self.levels[level]
        for top in range(y - y % BLOCK, y + height, BLOCK):
            for left in range(x - x % BLOCK, x + width, BLOCK):
                block = self._block(
                    left, top, min(BLOCK, size.width - left), min(BLOCK, size.height - top), level
                )
                across = slice(max(left, x) - x, min(left + BLOCK, x + width) - x)
                down = slice(max(top, y) - y, min(top + BLOCK, y + height) - y)
                pixels[down, across] = block[
                    down.start + y - top : down.stop + y - top,
                    across.start + x - left : across.stop + x - left,
                ]
        return pixels

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
            raw = bytearray(
                image.tobytes("raw", "RGB")
            )  # half the time of an array of RGBA and a copy of its RGB
            return np.frombuffer(raw, np.uint8).reshape(image.height, image.width, 3)
        if not self._sparse:
            raise Unreadable("a tile has no data")
        pixels = np.asarray(image)
        share = pixels[..., 3:].astype(np.float32) / 255
        return np.rint(pixels[..., :3] * share + self._ground * (1 - share)).astype(np.uint8)


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
