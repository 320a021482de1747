"""What one image file is and what is wrong with it: `check` asks this of every file of a data root.

A file is read as training would read it (`images.read_image`), so what passes here can be trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from miudiff.data.splits import digest
from miudiff.errors import DataError
from miudiff.images import LUMA, Pixels, check_regular, read_image, scale_and_source

Level = Literal["error", "warning", "note"]

MIN_SIDE = 32  # no network of the package takes less
DARK = 40  # stained tissue lets light through: medians of real H&E and IHC fields are above 85
EVEN = 3.0  # empty glass varies by about 1 grey level, the emptiest real field by 7
FEW_COLOURS = 32  # a photograph has thousands

CONTENTS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
    b"RIFF": "WEBP",
    b"GIF8": "GIF",
}


@dataclass(frozen=True)
class Finding:
    """One thing that a user should know of one file (or of the root)."""

    level: Level
    path: Path
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {self.path}: {self.message}"


@dataclass(frozen=True)
class FileFacts:
    """What one file is; what could not be found out is None.

    Attributes:
        content: The format that its first bytes say, "PNG", or "unknown".
        mode: Colour model and depth, "RGB, 8 bit".
        size: Width and height in pixels.
        mpp: Micrometres per pixel, where the file states them, and `mpp_from` where in it.
    """

    digest: str | None = None
    content: str = "unknown"
    mode: str | None = None
    size: tuple[int, int] | None = None
    mpp: float | None = None
    mpp_from: str | None = None
    findings: tuple[Finding, ...] = ()


def examine(path: Path) -> FileFacts:
    """What one file is and what is wrong with it; never raises."""
    try:
        check_regular(path, "an image file")
    except DataError as error:
        return FileFacts(findings=(finding_of(path, error),))
    try:
        # Hashing brings the file into the page cache: the disk reads it once.
        content_digest, head = digest(path), _head(path)
    except OSError as error:
        return FileFacts(findings=(Finding("error", path, f"cannot be read ({error.strerror})"),))
    content = next((name for magic, name in CONTENTS.items() if head.startswith(magic)), "unknown")
    mode, size = _header(path, content, head)
    try:
        pixels = read_image(path)
    except DataError as error:
        return FileFacts(content_digest, content, mode, size, findings=(finding_of(path, error),))
    except Exception as error:  # a decoder's own failure: told like every other, and the check goes on
        wrong = Finding("error", path, f"cannot be decoded ({type(error).__name__}: {error})")
        return FileFacts(content_digest, content, mode, size, findings=(wrong,))
    try:
        mpp, mpp_from = scale_and_source(path)
    except DataError as error:
        return FileFacts(content_digest, content, mode, size, findings=(finding_of(path, error),))
    height, width = pixels.shape[:2]
    looks = tuple(Finding(level, path, message) for level, message in _looks(pixels))
    return FileFacts(content_digest, content, mode, (width, height), mpp, mpp_from or None, looks)


def _looks(pixels: Pixels) -> list[tuple[Level, str]]:
    """What the pixels of a readable image tell against it."""
    height, width = pixels.shape[:2]
    if min(height, width) < MIN_SIDE:
        return [("error", f"{width} x {height} pixels, expected at least {MIN_SIDE} on each side")]
    step = max(1, min(height, width) // 256)  # about 256 x 256 samples tell as much as all
    sample = pixels[::step, ::step]
    brightness = sample @ np.array(LUMA)
    if np.median(brightness) < DARK:
        return [("error", "is nearly black for the most part, expected brightfield (fluorescence? a mask?)")]
    if brightness.std() < EVEN:
        # Not by whiteness: the glass of BCI is grey or cream. An even grey may also be tissue out of focus.
        return [("note", f"looks empty: its grey levels vary by {brightness.std():.1f} only")]
    colours = len(np.unique(sample.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1])))
    if colours < FEW_COLOURS:
        return [("warning", f"has only {colours} colours, expected a photograph (a drawing? a mask?)")]
    return []


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(32)


def _header(path: Path, content: str, head: bytes) -> tuple[str | None, tuple[int, int] | None]:
    """Colour model with depth, and size, as the header says; None where it cannot be understood."""
    try:
        if content == "TIFF":
            import tifffile

            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages[0]
                bits = page.bitspersample
                return f"{page.photometric.name}, {bits} bit", (int(page.imagewidth), int(page.imagelength))
        with Image.open(path) as image:
            depth = {"1": 1, "I;16": 16, "I;16B": 16, "I": 32, "F": 32}.get(image.mode, 8)
            bits = head[24] if content == "PNG" and image.mode != "P" else depth
            return f"{image.mode}, {bits} bit", image.size
    except Exception:  # `read_image` says what is wrong with it
        return None, None


def finding_of(path: Path, error: DataError) -> Finding:
    """A reader's error as a finding, which names the file by itself."""
    return Finding("error", path, str(error).removeprefix(f"{path}: "))
