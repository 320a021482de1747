"""Results as one page that needs nothing else: an HTML file with its images inside, for any browser, offline.

    values -> figures, tables, notes -> report.html.j2 -> one file

Everything that comes from outside is escaped, images are data URIs, and the page forbids the browser to fetch
anything. Every page says that a virtual stain is no diagnosis; no argument turns that off. `contact_sheet`
lays tiles out in one image, and `markdown_table` gives a table for a README.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from numbers import Integral, Real
from pathlib import Path

import numpy as np
from jinja2 import DictLoader, Environment, StrictUndefined
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from miudiff.errors import DataError
from miudiff.images import Pixels, resize, write_text

BANNER = "Virtual stain - for research use only, not for diagnosis; DAB intensity is not calibrated"

PAGE, TABLE = "report.html.j2", "table.html.j2"
SEEN_BY_BROWSERS = ("PNG", "JPEG", "WEBP")
GAP = 8  # pixels between the tiles of a contact sheet
LETTER = 18  # pixels of its titles
MISSING = "–"

Cell = object


@dataclass(frozen=True)
class Figure:
    """An image with its title and caption: a file, or uint8 [H, W, 3] or [H, W]."""

    title: str
    caption: str
    image: Path | str | Pixels


@dataclass(frozen=True)
class Table:
    """Rows of text, numbers or `statistics.Interval` below a header; `note` stands under the table."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


def write_report(
    path: str | Path,
    title: str,
    lead: str,
    figures: Sequence[Figure] = (),
    tables: Sequence[Table] = (),
    notes: Sequence[str] = (),
) -> None:
    """Write one self-contained HTML page; it appears whole or not at all.

    Args:
        lead: What was measured and what came out, in a sentence or two below the title.
        notes: How to read it, what was left out: a list at the end.

    Raises:
        DataError: A figure's file cannot be read, or the page cannot be written.
        ValueError: A table's row is not as long as its header.
    """
    page = render(
        PAGE,
        {},
        {
            "title": title,
            "lead": lead,
            "banner": BANNER,
            "figures": [(each.title, each.caption, data_uri(each.image)) for each in figures],
            "tables": [
                (each.title, each.header, _cells(each.header, each.rows), each.note) for each in tables
            ],
            "notes": notes,
        },
    )
    write_text(path, page)


def render(template: str, more: Mapping[str, str], values: Mapping[str, object]) -> str:
    """A page of one of the templates here, or of `more`, which may extend `PAGE` and so share its look.

    Args:
        template: Its name.
        more: Further templates by their names.
        values: What it shows; all of it is escaped.
    """
    here = resources.files("miudiff.evaluation")
    sources = {name: here.joinpath(name).read_text(encoding="utf-8") for name in (PAGE, TABLE)}
    # A path with the ending .j2 says nothing to Jinja, so escaping is asked for and not guessed.
    pages = Environment(
        loader=DictLoader({**sources, **more}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return pages.get_template(template).render(values)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """The rows as a Markdown table, columns of numbers set to the right; ends in a newline.

    Raises:
        ValueError: A row is not as long as the header.
    """
    cells = _cells(header, rows)
    numbers = [cells and all(is_number for _, is_number in column) for column in zip(*cells, strict=True)]
    rules = ["---:" if right else "---" for right in numbers or [False] * len(header)]
    lines = [list(header), rules, *([text for text, _ in row] for row in cells)]
    return "".join(f"| {' | '.join(_markdown(text) for text in line)} |\n" for line in lines)


def _markdown(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")


def _cells(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[list[tuple[str, bool]]]:
    """Each cell as (text, whether it is a number)."""
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row of {len(row)} cells below a header of {len(header)}: {row}")
    return [[(_text(cell), not isinstance(cell, str)) for cell in row] for row in rows]


def _text(cell: Cell) -> str:
    if isinstance(cell, Real) and not isinstance(cell, Integral):
        return MISSING if math.isnan(cell) else f"{float(cell):.4g}"
    return MISSING if cell is None else str(cell)


def data_uri(image: Path | str | Pixels) -> str:
    """An image as the address that an `img` takes: a file, or uint8 [H, W, 3] or [H, W].

    Raises:
        DataError: The file cannot be read.
    """
    kind, content = _png(image) if isinstance(image, np.ndarray) else _file(Path(image))
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _png(pixels: Pixels | Image.Image) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    (Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels).save(buffer, "PNG")
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
            return _png(image.convert("RGB"))
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
