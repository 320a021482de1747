"""The pictures of the page: overviews with the regions on them, maps in colour, a histogram."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from miudiff.cells import MODERATE, STRONG, WEAK, Mask
from miudiff.images import Pixels, resize
from miudiff.pages.parts import MISSING
from miudiff.pages.pictures import data_uri
from miudiff.slide_report.area import Area
from miudiff.slide_report.blocks import BIN, BINS, Counts
from miudiff.slide_report.colours import LOST, NOTHING, Scale, enlarge
from miudiff.slide_report.parts import Parts
from miudiff.slide_report.table import Row
from miudiff.slides.marked import read_scaled_marked
from miudiff.slides.regions import Ring
from miudiff.slides.slide import Slide
from miudiff.slides.stained import WHOLE, stained_box, where
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
        inset: A small picture of where on the slide it lies, a data URI; "" if it is all of it.
    """

    title: str
    caption: str
    source: str
    bar: str = ""
    low: str = ""
    high: str = ""
    crisp: bool = False
    inset: str = ""


@dataclass(frozen=True)
class View:
    """What the pictures show of the slide, in pixels of level 0."""

    left: int
    top: int
    width: int
    height: int


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


def view_of(area: Area, virtual: Slide) -> View:
    """What holds the drawn regions, or else what was stained, in whole squares of the maps."""
    plane = area.plane
    whole = View(0, 0, plane.width * plane.step, plane.height * plane.step)
    square = plane.step * plane.place
    box = stained_box(virtual) if area.drawn is None else area.drawn.bounds
    left, top, right, bottom = (side / square for side in box)
    x, y = math.floor(left) * square, math.floor(top) * square
    end, base = min(math.ceil(right) * square, whole.width), min(math.ceil(bottom) * square, whole.height)
    # a region may lie in the last pixels of the slide, which the plane leaves out
    return View(x, y, end - x, base - y) if x < end and y < base else whole


def is_part(view: View, slide: Slide) -> bool:
    """Whether a view leaves so much of a slide out that one asks where it lies."""
    return view.width * view.height < WHOLE * slide.width * slide.height


def located(picture: Picture, slide: Slide, view: View) -> Picture:
    """A picture with a small one of where on the slide it lies."""
    box = (view.left, view.top, view.left + view.width, view.top + view.height)
    return replace(picture, inset=data_uri(where(slide, box), photo=True))


def overview(slide: Slide, area: Area, view: View, mpp: float | None, titles: tuple[str, str]) -> Picture:
    """A slide with a scale bar, what could not be read in grey, what lies outside of the regions in white."""
    pixels, damaged = _small(slide, view)
    height, width = pixels.shape[:2]
    if area.lost is not None:
        damaged = damaged | area.lost.mask(view.left, view.top, width, height, view.width / width)
    shown = np.where(damaged[..., None], np.uint8(LOST[0]), pixels)
    drawn = _scale_bar(_inside(shown, area, view), mpp * view.width / width if mpp else None)
    return Picture(*titles, data_uri(drawn, photo=True))


def regions_on(
    slide: Slide, area: Area, view: View, rows: Sequence[Row], parts: Parts, titles: tuple[str, str]
) -> Picture:
    """The regions that were measured on a paler slide, each with its name if there are not too many."""
    pixels = _inside(_small(slide, view)[0], area, view)
    pale = (255 - (255 - pixels.astype(np.int64)) * 0.45).astype(np.uint8)
    image = Image.fromarray(pale)
    _outline(image, rows, parts, view, lambda row: row.name, lambda row: INK)
    return Picture(*titles, data_uri(np.asarray(image), photo=True))


def colour_map(
    values: Floats, area: Area, view: View, scale: Scale, titles: tuple[str, str], percent: bool
) -> Picture:
    """A map [rows, columns] in colour with its scale."""
    plane, painted = area.plane, scale.paint(values)
    square = plane.step * plane.place
    if area.lost is not None:
        rows, columns = plane.grid
        painted[area.lost.mask(0, 0, columns, rows, square) & np.isnan(values)] = LOST
    factor = max(1, round(LONGEST * square / max(view.width, view.height)))
    shown = enlarge(painted[view.top // square :, view.left // square :], factor)
    height, width = (round(side / square * factor) or 1 for side in (view.height, view.width))
    return replace(_with_bar(shown[:height, :width], scale, titles, percent), crisp=True)


def region_map(
    values: Sequence[float], rows: Sequence[Row], parts: Parts, view: View, scale: Scale,
    titles: tuple[str, str], percent: bool,
) -> Picture:  # fmt: skip
    """The regions filled with the colours of their values, and the values written in them."""
    factor = min(1.0, LONGEST / max(view.width, view.height))
    width, height = (max(1, round(side * factor)) for side in (view.width, view.height))
    image = Image.new("RGB", (width, height), NOTHING)
    draw = ImageDraw.Draw(image)
    for value, row in zip(values, rows, strict=True):
        if row.index is not None and np.isfinite(value):
            colour = tuple(int(c) for c in scale.paint(np.array([[value]]))[0, 0])
            outline, *holes = parts.rings(row.index)
            draw.polygon(_points(outline, view, factor), fill=colour)
            for hole in holes:
                draw.polygon(_points(hole, view, factor), fill=NOTHING)
    shown = dict(zip((row.name for row in rows), values, strict=True))
    dark = 0.5 * (scale.low + scale.high)
    _outline(
        image,
        rows,
        parts,
        view,
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


def _small(slide: Slide, view: View) -> tuple[Pixels, Mask]:
    factor = max(1.0, max(view.width, view.height) / LONGEST)
    width, height = (max(1, round(side / factor)) for side in (view.width, view.height))
    box = (view.left, view.top, view.left + view.width, view.top + view.height)
    return read_scaled_marked(slide, box, width, height)


def _inside(pixels: Pixels, area: Area, view: View) -> Pixels:
    """A picture of the view without what lies outside of the regions."""
    if area.drawn is None:
        return pixels
    height, width = pixels.shape[:2]
    inside = area.drawn.mask(view.left, view.top, width, height, view.width / width)
    return np.where(inside[..., None], pixels, np.uint8(NOTHING[0]))


def _with_bar(shown: Pixels, scale: Scale, titles: tuple[str, str], percent: bool) -> Picture:
    bar = resize(scale.table()[None], 8, 256)
    # 1 % of a map lies beyond its scale, so its end is "and more" unless there is nothing more
    more = "" if percent and scale.high >= 1 else " and more"
    low, high = _value(scale.low, percent), _value(scale.high, percent) + more
    return Picture(*titles, data_uri(shown), data_uri(bar), low, high)


def _value(value: float, percent: bool) -> str:
    if not np.isfinite(value):
        return MISSING
    return f"{100 * value:.3g} %" if percent else f"{value:.3g}"


def _outline(
    image: Image.Image, rows: Sequence[Row], parts: Parts, view: View,
    label: Callable[[Row], str], ink: Callable[[Row], tuple[int, int, int]],
) -> None:  # fmt: skip
    draw, font, factor = ImageDraw.Draw(image), ImageFont.load_default(LETTER), image.width / view.width
    regions = [row for row in rows if row.index is not None]
    for row in regions:
        for ring in parts.rings(row.index or 0):
            points = _points(ring, view, factor)
            draw.line([*points, points[0]], INK, LINE)
    if len(regions) > NAMED:
        return
    for row in regions:
        outline = parts.rings(row.index or 0)[0]
        centre = (outline.min(axis=0) + outline.max(axis=0)) / 2
        place = _points(centre[None], view, factor)[0]
        draw.multiline_text(place, _ascii(label(row)), ink(row), font, "mm", align="center")


def _points(ring: Ring, view: View, factor: float) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (ring - (view.left, view.top)) * factor]


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
