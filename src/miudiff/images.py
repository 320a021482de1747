"""Pixels in and out, and the few pure maps of an image that every method shares.

Outside the networks an image is uint8 [H, W, 3]; inside it is float32 [B, 3, H, W] in [-1, 1]. `to_tensor` and `to_uint8` are the
only crossings. Reading is strict: what a file holds decides, not its ending, and what cannot be read right is refused in one
line; nothing is ever painted over.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from miudiff.errors import DataError

Pixels = NDArray[np.uint8]

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".qptiff", ".dcm")
OME = (".ome.tif", ".ome.tiff")
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # what a TIFF or BigTIFF begins with
MAX_PIXELS = 150_000_000  # 12,000 x 12,000: beyond it a file is a slide, not a tile
OTHER_COLOURS = ("CMYK", "LAB", "HSV", "YCbCr", "CIELAB", "ICCLAB", "ITULAB")  # Pillow's and tifffile's names
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2


def read_image(path: str | Path) -> Pixels:
    """The image in `path`, uint8 [H, W, 3].

    Raises:
        DataError: Not there, not an image, damaged, or not 8-bit colour; one line says which and what to do.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected an image file")
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise DataError(f"{path}: the file is empty, expected an image; copy it again")
    if path.suffix.lower() in SLIDE_SUFFIXES:
        raise DataError(
            f"{path}: is a whole-slide format, expected a tile; export the region as PNG or TIFF first"
        )
    if head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:25] == b"\x10":  # Pillow drops the lower byte in silence
        raise _too_deep(path, 16)
    return _read_tiff(path) if head[:4] in TIFF else _read_pillow(path)


def _read_pillow(path: Path) -> Pixels:
    try:
        with Image.open(path) as image:
            image.verify()  # the check sums of a PNG, which decoding passes over
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {image.width} x {image.height} pixels, expected a tile of at most {MAX_PIXELS:,}; cut it first"
                )
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise DataError(f"{path}: holds {frames} frames, expected one image")
            image.load()
            mode = image.mode
            if mode == "P" or (mode == "RGB" and "transparency" in image.info):
                mode = "RGBA" if "transparency" in image.info else "RGB"
            return _colour(path, np.asarray(image if mode == image.mode else image.convert(mode)), mode)
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path}: is not an image (its content is no known format), expected PNG, JPEG or TIFF"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too many pixels for a tile; cut it first") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: damaged or cut off ({_one_line(error)}); copy it again") from error


def _read_tiff(path: Path) -> Pixels:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            series = tiff.series[0]
            if series.size > 3 * MAX_PIXELS:
                raise DataError(
                    f"{path}: {series.shape} samples is a slide, expected a tile of at most {MAX_PIXELS:,} pixels; cut it first"
                )
            page = series.pages[0]
            photometric = getattr(getattr(page, "photometric", None), "name", "?")
            # tifffile hands on palette indices and raw YCbCr as they are; Pillow resolves or refuses them.
            if photometric == "PALETTE" or (photometric == "YCBCR" and page.compression.name == "NONE"):
                return _read_pillow(path)
            length = path.stat().st_size
            # A decoder may paint what is missing of a tile grey or black instead of failing.
            if any(not n or at + n > length for at, n in zip(page.dataoffsets, page.databytecounts)):
                raise DataError(f"{path}: damaged or cut off (some of its tiles have no data); copy it again")
            array = series.asarray()
            axes = series.axes
    except DataError:
        raise
    except Exception as error:  # tifffile and its codecs raise many kinds
        raise DataError(f"{path}: damaged or unreadable TIFF ({_one_line(error)})") from error
    keep = tuple(i for i, n in enumerate(array.shape) if n != 1 or axes[i] in "YXS")
    array, axes = array.reshape([array.shape[i] for i in keep]), "".join(axes[i] for i in keep)
    if axes[:-2] in ("S", "C", "I") and array.shape[0] in (3, 4):
        array = np.moveaxis(array, 0, -1)
    if photometric == "MINISWHITE" or array.ndim > 3:
        raise DataError(f"{path}: TIFF with axes {axes} and {photometric} pixels, expected one RGB image")
    return _colour(path, array, photometric)


def _colour(path: Path, array: NDArray[np.generic], mode: str) -> Pixels:
    if array.dtype != np.uint8:
        bits = array.dtype.itemsize * 8 if array.dtype != np.bool_ else 1
        raise _too_deep(path, bits)
    if array.ndim == 2 or array.shape[-1] == 1 or mode == "LA":
        raise DataError(f"{path}: a grey image ({mode}), expected RGB colour of a stained section")
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


def read_scale(path: str | Path) -> float | None:
    """Micrometres per pixel where the file states it (OME PhysicalSizeX, or a TIFF resolution in cm), else None.

    The dots per inch of PNG and JPEG files are not a physical scale and are not read.
    """
    import tifffile

    path = Path(path)
    if path.suffix.lower() not in (".tif", ".tiff"):
        return None
    try:
        with tifffile.TiffFile(path) as tiff:
            if tiff.ome_metadata:
                size = re.search(r'PhysicalSizeX="([0-9.eE+-]+)"', tiff.ome_metadata)
                unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', tiff.ome_metadata)
                factor = {"µm": 1.0, "um": 1.0, "μm": 1.0, "nm": 1e-3, "mm": 1e3}.get(
                    unit[1] if unit else "µm"
                )
                if size and factor and float(size[1]) > 0:
                    return float(size[1]) * factor
            tags = tiff.pages[0].tags
            if "XResolution" in tags and "ResolutionUnit" in tags and int(tags["ResolutionUnit"].value) == 3:
                numerator, denominator = tags["XResolution"].value
                scale = 1e4 * denominator / numerator if numerator else 0.0
                return (
                    scale if 0.01 < scale < 20 else None
                )  # coarser is a printing resolution, not an optical one
    except Exception:  # an unreadable header states no scale; reading the pixels will say what is wrong
        return None
    return None


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
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
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
    scaled = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return list(scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())


def luma(images: Tensor) -> Tensor:
    """ITU-R 601-2 luma [B, 1, H, W] of [B, 3, H, W]."""
    weights = torch.tensor(LUMA, dtype=images.dtype, device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
