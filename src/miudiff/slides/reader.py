"""Opening a slide: which library reads a file, and what is no slide at all."""

from __future__ import annotations

from pathlib import Path

from miudiff.errors import DataError, SlideError
from miudiff.formats.reading import TIFF
from miudiff.images import SLIDE_SUFFIXES, Pixels, check_regular, read_image
from miudiff.slides.brightfield import check_brightfield
from miudiff.slides.marked import read_marked, read_scaled_marked
from miudiff.slides.scaled import read_scaled
from miudiff.slides.slide import Level, RegionError, Scale, Slide

__all__ = [
    "ImageSlide",
    "Level",
    "RegionError",
    "Slide",
    "check_brightfield",
    "open_slide",
    "read_marked",
    "read_scaled",
    "read_scaled_marked",
]

LARGE = 4096 * 4096  # pixels beyond which a TIFF is handled as a slide, even without a pyramid


def open_slide(path: str | Path) -> Slide:
    """Open a slide or a plain image.

    OpenSlide reads what it knows the maker of; every other TIFF is read by tifffile, other images whole.

    Raises:
        SlideError: It is not there, no slide, damaged, or not 8-bit colour.
    """
    path = Path(path)
    try:
        check_regular(path, "a slide")
        with path.open("rb") as file:
            head = file.read(4)
    except DataError as error:
        raise SlideError(str(error)) from error
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise SlideError(f"{path}: the file is empty, expected a slide; copy it again")
    from miudiff.slides import openslide_reader

    if openslide_reader.detect(path) not in (None, "generic-tiff"):
        return openslide_reader.OpenSlideSlide(path)
    if head in TIFF:
        from miudiff.slides.tiff_reader import TiffSlide

        return TiffSlide(path)
    if (
        path.suffix.lower() in SLIDE_SUFFIXES
    ):  # the main file of some makers is a small JPEG beside the slide's own files
        raise SlideError(
            f"{path}: no reader knows its content; it is damaged, or files that belong to it are missing: copy all of it again"
        )
    return ImageSlide(path)


def is_slide(path: Path) -> bool:
    """Whether a file is handled as a slide: a scanner's format, or a TIFF with a pyramid or of more than LARGE pixels."""
    if path.suffix.lower() in SLIDE_SUFFIXES:
        return True
    if path.suffix.lower() not in (".tif", ".tiff") or not path.is_file():
        return False
    from miudiff.formats.tiff import open_tiff

    try:
        with open_tiff(path) as tiff:
            series = tiff.series[0]
            return len(series.levels) > 1 or series.keyframe.imagewidth * series.keyframe.imagelength > LARGE
    except Exception:  # what is no TIFF is told by who reads it
        return False


class ImageSlide(Slide):
    """A plain image, held whole; it states no scale."""

    def __init__(self, path: Path) -> None:
        try:
            self._pixels = read_image(path)
        except DataError as error:
            raise SlideError(str(error)) from error
        height, width = self._pixels.shape[:2]
        super().__init__(path, "image", [Level(width, height, 1.0)], Scale())

    def close(self) -> None:
        pass

    def _read(self, x: int, y: int, width: int, height: int, level: int) -> Pixels:
        return self._pixels[y : y + height, x : x + width].copy()
