"""Pictures of a page: as addresses that hold them, and many of them laid out in one."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from miudiff.errors import DataError
from miudiff.images import Pixels, resize

SEEN_BY_BROWSERS = ("PNG", "JPEG", "WEBP")
QUALITY = 88  # of a JPEG, without chroma subsampling: the stain is in the chroma
GAP = 8  # pixels between the tiles of a contact sheet
LETTER = 18  # pixels of its titles


def data_uri(image: Path | str | Pixels, photo: bool = False) -> str:
    """An image as the address that an `img` takes.

    Args:
        image: A file, which stays as it is, or uint8 [H, W, 3] or [H, W].
        photo: Pixels become a JPEG, which is smaller, and not a PNG, which is exact.

    Raises:
        DataError: The file cannot be read.
    """
    if isinstance(image, np.ndarray):
        kind, content = _encoded(Image.fromarray(image), photo)
    else:
        kind, content = _file(Path(image))
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _encoded(image: Image.Image, photo: bool = False) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    if photo:
        image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
        return "image/jpeg", buffer.getvalue()
    image.save(buffer, "PNG")
    return "image/png", buffer.getvalue()


def _file(path: Path) -> tuple[str, bytes]:
    """A file's bytes as they are where browsers know its format; else its first image as PNG."""
    try:
        if path.suffix.lower() == ".svg":
            return "image/svg+xml", path.read_bytes()
        with Image.open(path) as image:
            image.load()
            if image.format in SEEN_BY_BROWSERS:
                return Image.MIME[image.format], path.read_bytes()
            return _encoded(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: is not an image, expected PNG, JPEG, WebP, TIFF or SVG") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or "damaged or cut off"
        raise DataError(f"{path}: the figure cannot be read ({reason})") from error


def contact_sheet(
    rows: Sequence[Sequence[Pixels]],
    column_titles: Sequence[str],
    row_titles: Sequence[str],
    side: int = 256,
) -> Pixels:
    """Tiles in rows and columns on white with titles, those of the rows turned: uint8 [H, W, 3].

    Args:
        rows: uint8 [H, W, 3] each, of any size.
        column_titles: In ASCII, all that Pillow's own font is sure to know; what is too long is cut.
        row_titles: The same, from below upwards.
        side: Each tile is resampled so that its longer side has as many pixels, and centred in its cell.

    Raises:
        ValueError: Rows and titles do not fit together, or there is nothing to show.
    """
    if not rows or not column_titles or len(rows) != len(row_titles):
        found = f"{len(rows)} rows, {len(row_titles)} row titles, {len(column_titles)} column titles"
        raise ValueError(f"{found}; expected as many titles as rows, and at least one tile")
    if any(len(row) != len(column_titles) for row in rows):
        raise ValueError(f"rows of {[len(row) for row in rows]} tiles below {len(column_titles)} titles")
    margin, step = LETTER + 2 * GAP, side + GAP
    sheet = Image.new("RGB", (margin + len(column_titles) * step, margin + len(rows) * step), "white")
    for column, title in enumerate(column_titles):
        sheet.paste(_title(title, side), (margin + column * step, GAP // 2))
    for line, (row, title) in enumerate(zip(rows, row_titles, strict=True)):
        top = margin + line * step
        sheet.paste(_title(title, side).transpose(Image.Transpose.ROTATE_90), (GAP // 2, top))
        for column, tile in enumerate(row):
            shown, left = _fit(tile, side), margin + column * step
            sheet.paste(shown, (left + (side - shown.width) // 2, top + (side - shown.height) // 2))
    return np.asarray(sheet)


def _fit(tile: Pixels, side: int) -> Image.Image:
    height, width = tile.shape[:2]
    scale = side / max(height, width)
    height, width = (max(round(length * scale), 1) for length in (height, width))
    return Image.fromarray(resize(tile, height, width))


def _title(text: str, width: int) -> Image.Image:
    """A line of text in the middle of `width` pixels, cut with "..." where it is longer."""
    font, text = ImageFont.load_default(LETTER), " ".join(text.split())
    strip = Image.new("RGB", (width, LETTER + GAP), "white")
    draw = ImageDraw.Draw(strip)
    shorter = (f"{text[:length]}..." for length in range(len(text) - 1, -1, -1))
    shown = next((line for line in (text, *shorter) if draw.textlength(line, font) <= width), "")
    draw.text((width / 2, strip.height / 2), shown, "black", font, "mm")
    return strip
