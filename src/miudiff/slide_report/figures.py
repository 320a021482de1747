"""The pictures of the page: overviews with the regions on them, maps in colour, a histogram."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from miudiff.evaluation.cells import MODERATE, STRONG, WEAK, Mask
from miudiff.evaluation.report import MISSING, data_uri
from miudiff.images import Pixels, resize
from miudiff.slide_report.blocks import BIN, BINS, Counts
from miudiff.slide_report.colours import LOST, NOTHING, Scale, enlarge
from miudiff.slide_report.parts import Parts
from miudiff.slide_report.plane import Plane
from miudiff.slide_report.table import Row
from miudiff.slides.marked import read_scaled_marked
from miudiff.slides.regions import Regions, Ring
from miudiff.slides.slide import Slide
from miudiff.stains import Floats

LONGEST = 1000  # pixels of a picture
NAMED = 80  # regions that are named on a picture; more could not be read
LETTER, LINE = 26, 2  # pixels
INK, PAPER = (30, 28, 26), (255, 255, 255)
LENGTHS = tuple(step * 10.0**power for power in range(0, 5) for step in (1, 2, 5))  # µm of scale bars


@dataclass(frozen=True)
class Picture:
    """An image of the page.

    Attributes:
        title: Above it.
        caption: Below it.
        source: The image itself, a data URI.
        bar: The colours of its scale, a data URI; "" if it has none.
        low: What the scale begins with.
        high: What it ends with.
        crisp: Whether its pixels are to be seen as squares.
    """

    title: str
    caption: str
    source: str
    bar: str = ""
    low: str = ""
    high: str = ""
    crisp: bool = False


@dataclass(frozen=True)
class Histogram:
    """What the page draws as a histogram, in its own pixels.

    Attributes:
        bars: Left, top, width and height of each, and whether it is of positive pixels.
        ticks: Places and texts below.
        left: Where the axes cross.
        base: The same downwards.
        top: The share that the highest bar stands for.
    """

    bars: Sequence[tuple[float, float, float, float, bool]]
    ticks: Sequence[tuple[float, str]]
    left: float
    base: float
    top: str
    width: ClassVar[float] = 640.0
    height: ClassVar[float] = 194.0


def overview(slide: Slide, lost: Regions | None, mpp: float | None, titles: tuple[str, str]) -> Picture:
    """A slide as a whole with a scale bar, what could not be read in grey."""
    pixels, damaged = _small(slide)
    height, width = pixels.shape[:2]
    if lost is not None:
        damaged = damaged | lost.mask(0, 0, width, height, slide.width / width)
    shown = np.where(damaged[..., None], np.uint8(LOST[0]), pixels)
    drawn = _scale_bar(shown, mpp * slide.width / width if mpp else None)
    return Picture(*titles, _jpeg(drawn))


def regions_on(slide: Slide, rows: Sequence[Row], parts: Parts, titles: tuple[str, str]) -> Picture:
    """The regions that were measured on a paler slide, each with its name if there are not too many."""
    pixels, _ = _small(slide)
    pale = (255 - (255 - pixels.astype(np.int64)) * 0.45).astype(np.uint8)
    image = Image.fromarray(pale)
    _outline(image, rows, parts, image.width / slide.width, lambda row: row.name, lambda row: INK)
    return Picture(*titles, _jpeg(np.asarray(image)))


def colour_map(
    values: Floats, plane: Plane, lost: Mask | None, scale: Scale, titles: tuple[str, str], percent: bool
) -> Picture:
    """A map [rows, columns] in colour with its scale."""
    painted = scale.paint(values)
    if lost is not None:
        painted[lost & np.isnan(values)] = LOST
    factor = max(1, round(LONGEST * plane.place / max(plane.width, plane.height)))
    per = plane.place / factor
    shown = enlarge(painted, factor)[: round(plane.height / per) or 1, : round(plane.width / per) or 1]
    return replace(_with_bar(shown, scale, titles, percent), crisp=True)


def region_map(
    values: Sequence[float], rows: Sequence[Row], parts: Parts, plane: Plane, scale: Scale,
    titles: tuple[str, str], percent: bool,
) -> Picture:  # fmt: skip
    """The regions filled with the colours of their values, and the values written in them."""
    factor = min(1.0, LONGEST / max(plane.width, plane.height)) / plane.step
    width, height = (max(1, round(side * plane.step * factor)) for side in (plane.width, plane.height))
    image = Image.new("RGB", (width, height), NOTHING)
    draw = ImageDraw.Draw(image)
    for value, row in zip(values, rows, strict=True):
        if row.index is not None and np.isfinite(value):
            colour = tuple(int(c) for c in scale.paint(np.array([[value]]))[0, 0])
            outline, *holes = parts.rings(row.index)
            draw.polygon(_points(outline, factor), fill=colour)
            for hole in holes:
                draw.polygon(_points(hole, factor), fill=NOTHING)
    shown = dict(zip((row.name for row in rows), values, strict=True))
    dark = 0.5 * (scale.low + scale.high)
    _outline(
        image,
        rows,
        parts,
        factor,
        lambda row: f"{row.name}\n{_value(shown[row.name], percent)}".removesuffix(f"\n{MISSING}"),
        lambda row: PAPER if shown[row.name] > dark else INK,
    )
    return _with_bar(np.asarray(image), scale, titles, percent)


def histogram(counts: Counts) -> Histogram | None:
    """The share of tissue by DAB density; None without tissue."""
    total = int(counts.sum())
    if not total:
        return None
    left, base = 46.0, 156.0
    step, top = (Histogram.width - left) / BINS, float(counts.max()) / total
    bars = []
    for number, count in enumerate(counts):
        size = count / total / top * (base - 12)
        positive = number * BIN >= WEAK - 1e-9
        bars.append((left + number * step, base - size, step - 1.5, size, positive))
    last = (BINS - 1) * BIN
    ticks = [(density, f"{density:g}") for density in (0.0, WEAK, MODERATE, STRONG, 1.0)]
    places = [(left + density / BIN * step, text) for density, text in [*ticks, (last, f"{last:g}+")]]
    return Histogram(bars, places, left, base, f"{100 * top:.2g} %")


def _small(slide: Slide) -> tuple[Pixels, Mask]:
    factor = max(1.0, max(slide.width, slide.height) / LONGEST)
    width, height = (max(1, round(side / factor)) for side in (slide.width, slide.height))
    return read_scaled_marked(slide, (0, 0, slide.width, slide.height), width, height)


def _with_bar(shown: Pixels, scale: Scale, titles: tuple[str, str], percent: bool) -> Picture:
    bar = resize(scale.table()[None], 8, 256)
    # 1 % of a map lies beyond its scale, so its end is "and more" unless there is nothing more
    more = "" if percent and scale.high >= 1 else " and more"
    low, high = _value(scale.low, percent), _value(scale.high, percent) + more
    return Picture(*titles, data_uri(shown), data_uri(bar), low, high)


def _value(value: float, percent: bool) -> str:
    if not np.isfinite(value):
        return MISSING
    return f"{100 * value:.2g} %" if percent else f"{value:.3g}"


def _outline(
    image: Image.Image, rows: Sequence[Row], parts: Parts, factor: float,
    label: Callable[[Row], str], ink: Callable[[Row], tuple[int, int, int]],
) -> None:  # fmt: skip
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(LETTER)
    regions = [row for row in rows if row.index is not None]
    for row in regions:
        for ring in parts.rings(row.index or 0):
            points = _points(ring, factor)
            draw.line([*points, points[0]], INK, LINE)
    if len(regions) > NAMED:
        return
    for row in regions:
        outline = parts.rings(row.index or 0)[0] * factor
        centre = (outline.min(axis=0) + outline.max(axis=0)) / 2
        draw.multiline_text(
            (float(centre[0]), float(centre[1])), _ascii(label(row)), ink(row), font, "mm", align="center"
        )  # fmt: skip


def _points(ring: Ring, factor: float) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in ring * factor]


def _ascii(text: str) -> str:
    """What Pillow's own font is sure to know."""
    return text.encode("ascii", "replace").decode()


def _scale_bar(pixels: Pixels, mpp: float | None) -> Pixels:
    """With a bar of a round length in its lower left corner; as it is without a scale."""
    height, width = pixels.shape[:2]
    if mpp is None or width < 120 or height < 60:
        return pixels
    micrometres = max((each for each in LENGTHS if each / mpp <= width / 4), default=LENGTHS[0])
    length = micrometres / mpp
    text = f"{micrometres / 1000:g} mm" if micrometres >= 1000 else f"{micrometres:g} um"
    image = Image.fromarray(pixels)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(LETTER)
    across = max(length, draw.textlength(text, font))
    draw.rectangle((10, height - 56, 26 + across, height - 10), PAPER)
    draw.rectangle((18, height - 22, 18 + length, height - 17), INK)
    draw.text((18 + across / 2, height - 39), text, INK, font, "mm")
    return np.asarray(image)


def _jpeg(pixels: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=88, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
