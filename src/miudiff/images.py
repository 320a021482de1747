"""Pixels in and out, and the few pure maps of an image that every method shares.

Outside the networks an image is uint8 [H, W, 3]; inside it is float32 [B, 3, H, W] in [-1, 1]. `to_tensor` and `to_uint8` are the
only crossings. Reading is strict: what a file holds decides, not its ending, and what cannot be read right
is refused in one line; nothing is ever painted over. What a format shows of damage is known to `formats`.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from miudiff.errors import DataError, unwritable
from miudiff.formats.reading import MAX_BYTES, TIFF, read_plain, read_tiff
from miudiff.formats.reading import MAX_PIXELS as MAX_PIXELS
from miudiff.formats.scale import stated

Pixels = NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".qptiff", ".dcm")
OME = (".ome.tif", ".ome.tiff")
REMEMBERED = 100_000  # files
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2


def read_image(path: str | Path) -> Pixels:
    """The image in `path`, uint8 [H, W, 3].

    Raises:
        DataError: Not there, not an image, damaged, or not 8-bit colour; one line says which and what to do.
    """
    path = Path(path)
    check_regular(path, "an image file")
    try:
        status = path.stat()
        length, stamp = status.st_size, (str(path), status.st_ino, status.st_size, status.st_mtime_ns)
        with path.open("rb") as file:
            head = file.read(32)
            if path.suffix.lower() in SLIDE_SUFFIXES and head:
                raise DataError(
                    f"{path}: is a whole-slide format, expected a tile; export the region as PNG or TIFF first"
                )
            content = head if head[:4] in TIFF or length > MAX_BYTES else head + file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise DataError(f"{path}: the file is empty, expected an image; copy it again")
    if head[:4] not in TIFF and length > MAX_BYTES:
        raise DataError(f"{path}: {length:,} bytes, expected a tile of at most {MAX_BYTES:,}; cut it first")
    check = stamp not in _found_whole
    pixels = read_tiff(path, check) if head[:4] in TIFF else read_plain(path, content, check)
    if len(_found_whole) >= REMEMBERED:
        _found_whole.clear()
    _found_whole.add(stamp)
    return pixels


# Files that were looked at for damage, which costs more than reading them: training reads each again and again.
_found_whole: set[tuple[str, int, int, int]] = set()


def check_regular(path: Path, expected: str) -> None:
    """Raise DataError unless `path` is a regular file: a FIFO, a socket or a device may keep who reads it for ever.

    What cannot be looked at is left to who opens it.
    """
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected {expected}")
    if path.exists() and not path.is_file():
        raise DataError(
            f"{path}: is not a regular file but a FIFO, a socket or a device, expected {expected}"
        )


def irregular(folder: Path) -> list[Path]:
    """What in a folder is named like an image or a slide and is neither a file nor a folder, sorted; hidden ones are left out."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in SUFFIXES + SLIDE_SUFFIXES and not p.name.startswith(".")
        if not p.is_file() and not p.is_dir()
    )


def read_scale(path: str | Path) -> float | None:
    """Micrometres per pixel where the file states them (OME PhysicalSizeX, or a TIFF resolution in cm), else None.

    The dots per inch of PNG and JPEG files are not a physical scale and are not read.

    Raises:
        DataError: The pixels are not square.
    """
    return scale_and_source(Path(path))[0]


def scale_and_source(path: Path) -> tuple[float | None, str]:
    """`read_scale`, and what in the file states it, "" if nothing does."""
    from miudiff.formats import tiff

    try:
        check_regular(path, "an image file")
        with path.open("rb") as file:
            if file.read(4) not in TIFF:
                return None, ""
        with tiff.open_tiff(path) as opened:
            found = stated(opened, opened.series[0].pages[0])
    except Exception:  # an unreadable header states no scale; reading the pixels will say what is wrong
        return None, ""
    if found is None:
        return None, ""
    across, down, source = found
    if not same_scale(across, down):
        raise DataError(f"{path}: {not_square(across, down, source)}")
    return (across + down) / 2, source


def not_square(across: float, down: float, source: str) -> str:
    """What is wrong with pixels of two scales."""
    return (
        f"{across:.4g} um/px across and {down:.4g} down ({source}), expected square pixels; resample it first"
    )


def same_scale(found: float, expected: float, share: float = 0.02) -> bool:
    """Whether two micrometres per pixel are one scale: no further apart than a share of the second."""
    return abs(found - expected) <= share * expected


def write_image(path: str | Path, pixels: Pixels, mpp: float | None = None, comment: str = "") -> None:
    """Write uint8 [H, W, 3] or [H, W] in the format that the ending of `path` names; the file appears whole or not at all.

    JPEG is written at quality 95 without chroma subsampling, because the stain is in the chroma. A TIFF states `mpp`, its
    micrometres per pixel, if that is given; one named .ome.tif is OME-TIFF. PNG, JPEG and TIFF carry the comment.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        _write_tiff(path, pixels, mpp, comment)
        return
    options: dict[str, dict[str, Any]] = {
        ".jpg": {"quality": 95, "subsampling": 0},
        ".webp": {"lossless": True},
    }
    if comment:
        about = PngInfo()
        about.add_text("Comment", comment)
        options[".png"] = {"pnginfo": about}
        options[".jpg"]["comment"] = comment
    options[".jpeg"] = options[".jpg"]
    buffer = io.BytesIO()
    kind = {".jpg": "JPEG"}.get(suffix, suffix[1:].upper())
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: cannot write '{suffix}' files, expected one of {', '.join(SUFFIXES)}")
    Image.fromarray(pixels).save(buffer, kind, **options.get(suffix, {}))
    write_bytes(path, buffer.getvalue())


def _write_tiff(path: Path, pixels: Pixels, mpp: float | None, comment: str) -> None:
    import tifffile

    ome = path.name.lower().endswith(OME)
    scale: dict[str, Any] = {}
    if comment:
        scale = {"metadata": {"Description": comment}} if ome else {"description": comment, "metadata": None}
    if mpp is not None:
        scale |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
        if ome:
            sizes = {
                "PhysicalSizeX": mpp,
                "PhysicalSizeY": mpp,
                "PhysicalSizeXUnit": "µm",
                "PhysicalSizeYUnit": "µm",
            }
            axes = "YXS" if pixels.ndim == 3 else "YX"
            scale["metadata"] = scale.get("metadata", {}) | {"axes": axes, **sizes}
    with atomic(path) as part:
        tifffile.imwrite(
            part,
            pixels,
            photometric="rgb" if pixels.ndim == 3 else "minisblack",
            compression="deflate",
            ome=ome,
            **scale,
        )


def read_comment(path: Path) -> str:
    """What the file says of itself in words, "" where it says nothing or cannot be read."""
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            head = file.read(4)
        if head in TIFF:
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                return tiff.pages[0].description
        with Image.open(path) as image:
            comment = image.info.get("Comment", image.info.get("comment", ""))
        return comment.decode(errors="replace") if isinstance(comment, bytes) else str(comment)
    except Exception:  # whoever reads the pixels says what is wrong with it
        return ""


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, whatever interrupts it."""
    with atomic(path) as part:
        part.write_bytes(content)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 that appears whole or not at all; a file's name that is no text is spelt out in it."""
    write_bytes(path, text.encode(errors="backslashreplace"))


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes `path`'s place when the block ends well, and is removed when it does not."""
    path = Path(path)
    part = path.with_name(part_name(path, str(os.getpid())))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # its folder may be what could not be written
            part.unlink(missing_ok=True)


def remove_parts(path: Path) -> None:
    """Remove what killed processes left of writing `path`; whoever calls it is the only one that writes it."""
    for part in path.parent.glob(part_name(path.with_name(glob.escape(path.name)), "*")):
        part.unlink(missing_ok=True)


def part_name(path: Path, process: str) -> str:
    """What a process calls `path` while it writes it: hidden, and no longer than a disk allows."""
    name = os.fsencode(path.name)
    short = path.name if len(name) < 230 else hashlib.sha256(name).hexdigest()[:16]
    return f".{short}.{process}.part"


def stem(path: Path) -> str:
    """A file's name without its ending, `.ome.tif` being one."""
    for ending in OME:
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def beside(path: Path, ending: str) -> Path:
    """The file beside `path` that has its name and another ending, such as ".report.html"."""
    return path.with_name(stem(path) + ending)


def list_images(folder: str | Path) -> list[Path]:
    """The image files directly in `folder` by their endings, sorted by name; hidden files are left out.

    Raises:
        DataError: No such folder, or no images in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found = sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() in SUFFIXES and not p.name.startswith(".") and p.is_file()
    )
    if not found:
        raise DataError(f"{folder}: no images in it, expected files ending in {', '.join(SUFFIXES)}")
    return found


def to_tensor(pixels: Pixels | Sequence[Pixels]) -> Tensor:
    """uint8 [H, W, 3], or several of one size, to float32 [B, 3, H, W] in [-1, 1]."""
    stack = np.stack([pixels] if isinstance(pixels, np.ndarray) and pixels.ndim == 3 else list(pixels))
    return torch.from_numpy(stack).permute(0, 3, 1, 2).float().div(127.5).sub(1).contiguous()


def to_uint8(images: Tensor) -> list[Pixels]:
    """float [B, 3, H, W] in [-1, 1] to one uint8 [H, W, 3] each; values beyond the range are clipped."""
    return list(quantised(images).cpu().numpy())


def quantised(images: Tensor) -> Tensor:
    """`to_uint8` on the images' own device: uint8 [B, H, W, 3]."""
    scaled = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1)


def luma(images: Tensor) -> Tensor:
    """ITU-R 601-2 luma [B, 1, H, W] of [B, 3, H, W]."""
    return (images * _luma_weights(images.dtype, images.device)).sum(1, keepdim=True)


@lru_cache(maxsize=16)  # an accelerator would be waited for at each copy
def _luma_weights(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(LUMA, dtype=dtype, device=device).view(1, 3, 1, 1)


def to_gray(images: Tensor) -> Tensor:
    """The images without their colour: luma in all three channels, [B, 3, H, W]."""
    return luma(images).expand(-1, 3, -1, -1).contiguous()


def gradient_map(images: Tensor, padding: str = "reflect") -> Tensor:
    """Gradient magnitude by central differences, sqrt(gx^2 + gy^2 + 1e-6) for each channel (SPSR, Ma et al. 2020).

    Args:
        images: [B, C, H, W]; give `luma(images)` for the map that the MI estimator uses.
        padding: "reflect" adds no edge at the border; "constant" pads zeros, as SPSR's code does.
    """
    padded = F.pad(images, (1, 1, 1, 1), mode=padding)
    dx = padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]
    dy = padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]
    return torch.sqrt(dx**2 + dy**2 + 1e-6)


def resize(pixels: Pixels, height: int, width: int) -> Pixels:
    """Resample uint8 [H, W, 3]: area average where it shrinks, bicubic where it grows."""
    if pixels.shape[:2] == (height, width):
        return pixels
    shrinks = height * width < pixels.shape[0] * pixels.shape[1]
    method = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize((width, height), method))
