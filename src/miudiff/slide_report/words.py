"""The words of the page: numbers as text, what made the slide, how it was measured, what was not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from miudiff.cells import NUCLEUS
from miudiff.pages.parts import MISSING
from miudiff.slide_report.area import Area, glass_scale
from miudiff.slide_report.blocks import POSITIVE
from miudiff.slide_report.case import Case
from miudiff.slide_report.measure import OUTLINES, Found
from miudiff.slide_report.nuclei import COARSEST, margin
from miudiff.slide_report.parts import Drawn, Parts
from miudiff.slide_report.plane import BLOCK, Plane
from miudiff.slide_report.table import MEASURES, Row
from miudiff.slides.result import previewed

UNCALIBRATED = (
    "No intensity is calibrated: compare numbers within this slide, not with a real stain or another slide."
)
CAVEAT = ("Not a measurement", "It is of a picture that a network made, not of stained tissue.")
LONG = 400  # letters of one setting

Lines = list[tuple[str, str]]


def number(key: str, value: float) -> str:
    """A measure's value with its unit."""
    if not np.isfinite(value):
        return MISSING
    unit = MEASURES[key].unit
    if unit == "%":
        return f"{100 * value:.1f} %"
    if unit == "OD":
        return f"{value:.3f}"
    if unit == "mm²":
        return f"{value:.3f} mm²" if value < 10 else f"{value:,.1f} mm²"
    return f"{value:,.0f}"


def deviation(key: str, value: float) -> str:
    """A standard deviation of a measure, without its unit."""
    if not np.isfinite(value):
        return MISSING
    unit = MEASURES[key].unit
    return f"{100 * value:.1f}" if unit == "%" else f"{value:.4f}" if unit == "OD" else f"{value:,.1f}"


def mean_and_deviation(row: Row, key: str) -> str:
    """Mean ± standard deviation over the samples."""
    mean = number(key, row.mean(key))
    if mean == MISSING:
        return MISSING
    figure, unit = mean.removesuffix(" %"), " %" if mean.endswith(" %") else ""
    return f"{figure} ± {deviation(key, row.deviation(key))}{unit}"


def made(case: Case) -> Lines:
    """What made the slide, as its record says."""
    record = case.record
    model = record.get("model")
    card: Mapping[str, Any] = model if isinstance(model, Mapping) else {}
    scale = f"{case.mpp:.4g} µm per pixel, from {case.mpp_source}" if case.mpp else "not known"
    pixels = f"{case.virtual.width:,} x {case.virtual.height:,} pixels"
    lines: list[tuple[str, Any]] = [
        ("H&E", record.get("source")),
        ("Result", f"{case.result.name}, {pixels}"),
        ("Preview", previewed(record)),
        ("Scale", scale),
        ("Marker", card.get("marker")),
        ("Method", record.get("method")),
        ("Weights", card.get("name") or (model if isinstance(model, str) else None)),
        ("Identity of the weights", card.get("identity")),
        ("Scale of the weights", f"{card['mpp']:g} µm per pixel" if _is_number(card.get("mpp")) else None),
        ("Seed", record.get("seed")),
        ("Overlapping tiles", record.get("mode")),
        ("Empty glass", record.get("glass")),
        ("Regions", case.roi or "the whole slide"),
        ("miudiff", record.get("miudiff")),
        ("Settings", _settings(record.get("config"))),
    ]
    return [(name, _short(str(value))) for name, value in lines if value not in (None, "")]


def measured(case: Case, area: Area, parts: Parts, found: Found) -> Lines:
    """What each number means, and how it was made."""
    plane, samples = area.plane, 1 + len(case.samples)
    unit = f"{plane.mpp:.3g} µm" if plane.mpp is not None else f"{plane.step} pixels of the slide"
    lines = [
        (
            "Scale",
            f"The slide was measured at {unit} per pixel, a power of two of its own, in blocks of {BLOCK} x {BLOCK} pixels.",
        ),
        (
            "Tissue",
            f"What is no empty glass in the {'H&E' if case.he is not None else 'virtual stain'}: glass is bright or grey, "
            "colourless, flat and wider than 80 µm; narrower gaps and lumina are tissue.",
        ),
        (
            "DAB",
            "Colour deconvolution into hematoxylin (.650 .704 .286) and DAB (.268 .570 .776); optical density to base 10 "
            f"against the light of this stain{_light(found)}, the 99th percentile of each colour over its tissue. DAB does not follow Beer-Lambert: it is no amount of antigen.",
        ),
        ("Positive area", f"{MEASURES['positive_area_share'].about}"),
    ]
    if found.across is not None and found.bars is not None:
        lines += [
            (
                "Cells",
                f"Beyond a threshold in DAB ({found.bars.dab:.3f}) or in hematoxylin above that of the surroundings "
                f"({found.bars.hematoxylin:.3f}), one threshold for the whole slide, found by Otsu on squares spread over the "
                f"tissue; then a watershed with nuclei of {NUCLEUS:g} µm. Not a trained detector: crowded nuclei are counted as "
                f"fewer. Blocks overlap by {margin(found.across)} pixels, and a cell counts once, where its centroid is.",
            ),
            (
                "Positive cells",
                f"{MEASURES['positive_cell_share'].about} For a nuclear marker this is its index; for a marker of membranes or "
                "stroma it is not, and the positive area says more.",
            ),
            ("H-score", f"{MEASURES['h_score'].about} Of cells found, DAB mean of the whole cell."),
        ]
    if samples > 1:
        lines.append(
            (
                "Uncertainty",
                f"{samples} translations with different seeds. Spread: standard deviation (n − 1) of the mean DAB optical "
                f"density of each square of {length(plane.place, plane)}. Agreement: pixels that are above {POSITIVE:g} in all samples or in "
                "none. Both say how far the method agrees with itself, not how near it is to a real stain.",
            )
        )
    drawn = isinstance(parts, Drawn)
    lines.append(
        (
            "Regions",
            "As drawn; what lies in two of them counts for both."
            if drawn
            else "Squares over the slide; letters count columns from the left, numbers rows from above. Those without tissue are "
            "left out, those at the border of the tissue hold less of it.",
        )
    )
    return lines


def left_out(case: Case, area: Area, found: Found) -> list[str]:
    """What no number is of, a line each."""
    lines = []
    if area.drawn is not None:
        lines.append("Everything outside the regions.")
        lines.append("Empty glass inside them.")
    else:
        lines.append(f"Empty glass: {100 - 100 * area.glass.tissue_share():.0f} % of the slide.")
    if area.lost is None:
        lines.append("No place that could not be read: none is recorded.")
    else:
        count = len(area.lost.polygons)
        size = sum(polygon.area for polygon in area.lost.polygons)
        of = f"{size * (case.mpp / 1000) ** 2:.3g} mm²" if case.mpp else f"{size:,.0f} pixels"
        lines.append(
            f"{count} place{'s' if count > 1 else ''} of the H&E that could not be read, {of} in all (with glass); "
            "grey in the pictures."
        )
    if area.plane.mpp is None:
        lines.append(
            "Areas in mm² and cells: nobody says how many micrometres a pixel is, and both need it. "
            f"Glass was found as if the scale were {glass_scale(case)[1]}."
        )
    elif found.across is None:
        lines.append(
            f"Cells: a pixel is {area.plane.mpp:.3g} µm, which is too coarse for them; up to {COARSEST:g} µm they are measured."
        )
    return lines


def files(case: Case, found: Found) -> Lines:
    """What lies beside the page."""
    cells = found.cells
    kind = (
        "outlines with their DAB and area"
        if cells.outlines or not len(cells)
        else f"points, as there are more than {OUTLINES:,}"
    )
    lines = [
        (f"{case.name}.measures.csv", "Every number of every region."),
        (
            f"{case.name}.measures.json",
            "The same, with the thresholds that were used and the values of every sample.",
        ),
        (
            f"{case.name}.regions.geojson",
            "The regions with their numbers, for QuPath: drag it onto the open slide.",
        ),
    ]
    if found.across is not None:
        lines.append(
            (
                f"{case.name}.cells.geojson",
                f"{len(cells):,} cells as {kind}; classes Positive and Negative. For QuPath.",
            )
        )
    if case.samples:
        lines.append(
            (
                f"{case.name}.uncertainty.ome.tif",
                "The spread as a slide to lay over; its second image holds the numbers.",
            )
        )
    return lines


def seams(record: Mapping[str, Any]) -> Lines:
    """What the record says of seams; nothing if it does not."""
    found = record.get("seams")
    if found is None:
        return []
    values = found if isinstance(found, Mapping) else {"ratio": found}
    return [
        (str(name), f"{value:.4g}" if isinstance(value, float) else str(value))
        for name, value in values.items()
    ]


def length(pixels: int, plane: Plane) -> str:
    """So many pixels of the plane as a length."""
    if plane.mpp is None:
        return f"{pixels * plane.step} pixels"
    micrometres = pixels * plane.mpp
    return f"{micrometres / 1000:.3g} mm" if micrometres >= 995 else f"{micrometres:.3g} µm"


def percent(share: float) -> str:
    """A share of 0 to 1."""
    return f"{100 * share:.1f} %" if np.isfinite(share) else MISSING


def _light(found: Found) -> str:
    if found.bars is None:
        return ""
    return f" (R, G, B {', '.join(f'{level:.0f}' for level in found.bars.light)})"


def _settings(config: Any, prefix: str = "") -> str:
    """Nested settings as `name=value` words."""
    if isinstance(config, Mapping):
        return ", ".join(
            _settings(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in config.items()
        )
    return f"{prefix}={config}" if config is not None and prefix else ""


def _short(text: str) -> str:
    return text if len(text) <= LONG else f"{text[:LONG]} …"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
