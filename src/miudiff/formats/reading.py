"""A whole image file as RGB pixels: checked by its format's file, decoded by Pillow or tile by tile, or refused."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from miudiff.errors import DataError
from miudiff.formats import bmp, jpeg, one_line, png, tiff, webp

# Pillow warns on stderr of what is here read or refused, in one line: large images, metadata that nobody needs.
warnings.filterwarnings("ignore", module=r"PIL\.")

Pixels = NDArray[np.uint8]

TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # what a TIFF or BigTIFF begins with
MAX_PIXELS = 150_000_000  # 12,000 x 12,000: beyond it a file is a slide, not a tile
MAX_BYTES = 4 * MAX_PIXELS + 2**26  # of a file that is no TIFF
DAMAGE = {"PNG": png.damage, "JPEG": jpeg.damage, "BMP": bmp.damage, "WEBP": webp.damage}
OTHER_COLOURS = ("CMYK", "LAB", "HSV", "YCbCr", "CIELAB", "ICCLAB", "ITULAB")  # Pillow's and tifffile's names


def read_plain(path: Path, content: bytes, check: bool) -> Pixels:
    """What is no TIFF: checked by its format's file in `formats`, then decoded by Pillow."""
    if content[:8] == png.SIGNATURE and content[24:25] == b"\x10":  # Pillow drops the lower byte in silence
        raise _too_deep(path, 16)
    try:
        with Image.open(io.BytesIO(content), formats=list(DAMAGE)) as image:  # reads the header
            _check_tile(path, image.width, image.height)
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise DataError(f"{path}: holds {frames} frames, expected one image")
            if image.mode in OTHER_COLOURS:
                raise DataError(f"{path}: {image.mode} pixels, expected RGB")
            if check and (reason := DAMAGE.get(image.format or "", jpeg.damage)(content)):
                raise DataError(f"{path}: damaged or cut off ({reason}); copy it again")
            image.load()
            mode = image.mode
            if mode == "P" or (mode == "RGB" and "transparency" in image.info):
                mode = "RGBA" if "transparency" in image.info else "RGB"
            return _colour(path, np.asarray(image if mode == image.mode else image.convert(mode)), mode)
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path}: is not an image (its content is no known format), expected PNG, JPEG, BMP, WebP or TIFF"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too many pixels for a tile; cut it first") from error
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds
        raise DataError(f"{path}: damaged or cut off ({one_line(error)}); copy it again") from error


def read_tiff(path: Path, check: bool) -> Pixels:
    try:
        with tiff.open_tiff(path) as file:
            series = file.series[0]
            key = series.keyframe
            photometric = tiff.photometric(key)
            _check_one_image(path, file.series, key, photometric)
            _check_tile(path, key.imagewidth, key.imagelength)
            parts = [tiff.read_page(path, page, check) for page in series.pages]
            pixels = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    except DataError:
        raise
    except Exception as error:  # tifffile raises many kinds
        raise DataError(f"{path}: damaged or unreadable TIFF ({one_line(error)}); copy it again") from error
    return _colour(path, pixels, photometric)


def _check_one_image(path: Path, series: Sequence[Any], key: Any, photometric: str) -> None:
    """Raise DataError if a TIFF holds something else than one RGB image of 8 bits."""
    first = series[0]
    bits = key.bitspersample if isinstance(key.bitspersample, int) else max(key.bitspersample)
    if bits != 8 or first.dtype != np.uint8:
        raise _too_deep(path, bits)
    axes = "".join(axis for axis, n in zip(first.axes, first.shape, strict=True) if n != 1 or axis in "YXS")
    ycbcr = photometric == "YCBCR" and key.compression not in tiff.YCBCR_INSIDE
    if ycbcr or photometric not in ("RGB", "YCBCR", "PALETTE", "MINISBLACK"):
        raise DataError(f"{path}: {photometric} pixels, expected RGB; convert it first")
    colours = axes in ("YX", "YXS", "SYX", "CYX", "IYX") and len(first.pages) <= 4
    if not colours or (axes[0] != "Y" and first.shape[first.axes.index(axes[0])] not in (3, 4)):
        raise DataError(f"{path}: TIFF with axes {axes} and {photometric} pixels, expected one RGB image")
    others = [other for other in series[1:] if not other.keyframe.is_reduced]
    if others and first.kind in ("generic", "uniform", "shaped"):
        raise DataError(f"{path}: holds {1 + len(others)} images, expected one; export the one that is meant")


def _check_tile(path: Path, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path}: {width} x {height} pixels, expected a tile of at most {MAX_PIXELS:,}; cut it first, "
            "or write it as a tiled TIFF to translate it as a slide"
        )


def _colour(path: Path, array: NDArray[np.generic], mode: str) -> Pixels:
    if array.dtype != np.uint8:
        bits = array.dtype.itemsize * 8 if array.dtype != np.bool_ else 1
        raise _too_deep(path, bits)
    if array.ndim == 2 or array.shape[-1] == 1 or mode == "LA":
        raise DataError(
            f"{path}: a grey image ({mode}), expected RGB colour of a stained section; give its colour scan"
        )
    if array.shape[-1] == 4 and mode in ("RGBA", "RGB", "P", "YCBCR"):
        if (array[..., 3] != 255).any():
            share = (array[..., 3] != 255).mean()
            raise DataError(
                f"{path}: {share:.2%} of its pixels are transparent, which says nothing of the tissue there; flatten or cut it first"
            )
        array = array[..., :3]
    if array.ndim != 3 or array.shape[-1] != 3 or mode in OTHER_COLOURS:
        raise DataError(f"{path}: {mode} with shape {array.shape}, expected RGB")
    return np.ascontiguousarray(array, dtype=np.uint8)


def _too_deep(path: Path, bits: int) -> DataError:
    why = "its white level is not stated, so convert it first"
    return DataError(f"{path}: {bits} bits a channel, expected 8; {why}")
