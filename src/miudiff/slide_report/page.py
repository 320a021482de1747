"""The page: one HTML file that needs nothing else, in the look of `pages`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from miudiff.images import write_text
from miudiff.pages.page import render
from miudiff.pages.parts import MISSING, Cell
from miudiff.slide_report import words
from miudiff.slide_report.area import Area
from miudiff.slide_report.blocks import POSITIVE
from miudiff.slide_report.case import Case
from miudiff.slide_report.colours import BLUE, BROWN, VIOLET, Scale, scale_for
from miudiff.slide_report.figures import (
    Picture,
    View,
    colour_map,
    histogram,
    is_part,
    located,
    overview,
    region_map,
    regions_on,
    view_of,
)
from miudiff.slide_report.measure import Found
from miudiff.slide_report.parts import Parts, Squares
from miudiff.slide_report.table import MEASURES, Row, is_nuclear, title_of

TEMPLATE = "slide.html.j2"
SHOWN = 60  # rows of the table by region
FULL = 0.25  # of the tissue of the fullest region, for a region to be listed among the most stained
FEW = 20  # cells: of fewer a share is not drawn, it is listed
LEAST_SPREAD = 0.02  # of optical density, so that rounding does not fill the whole scale of colours


@dataclass(frozen=True)
class Report:
    """All that a page and its files are made of.

    Attributes:
        case: The result.
        area: What was measured of it.
        parts: Its regions.
        found: What was found.
        rows: In numbers: all tissue first, then the regions that hold some.
    """

    case: Case
    area: Area
    parts: Parts
    found: Found
    rows: Sequence[Row]

    @property
    def samples(self) -> int:
        """How many translations there are, the result among them."""
        return 1 + len(self.case.samples)

    @property
    def keys(self) -> list[str]:
        """The measures that this slide has."""
        has = {"": True, "scale": self.area.plane.mpp is not None, "cells": self.found.across is not None}
        return [key for key, measure in MEASURES.items() if has[measure.needs]]

    @property
    def stained(self) -> str:
        """The measure that says best how stained a region is."""
        counts = self.found.across is not None and is_nuclear(self.case.marker)
        return "positive_cell_share" if counts else "positive_area_share"

    def spread_scale(self) -> Scale | None:
        """The colours of the uncertainty; None for one sample."""
        spread = self.found.maps.spread
        return None if spread is None else scale_for(spread, VIOLET, LEAST_SPREAD)


def write_page(path: Path, report: Report) -> None:
    """Write the page; it appears whole or not at all."""
    case, rows = report.case, report.rows
    shown = _most_stained(report)
    keys, several = report.keys, report.samples > 1
    header, cells = _columns(report)
    view = view_of(report.area, case.virtual)
    values: dict[str, Any] = {
        "title": f"{_stain(case)} of {case.name}",
        "curtains": False,
        "lead": _lead(report),
        "uncalibrated": words.UNCALIBRATED,
        "index": _key(report, report.stained),
        "caveat": words.CAVEAT,
        "missing": case.notes,
        "keys": [_key(report, key) for key in keys if key != report.stained],
        "samples": report.samples,
        "keys_note": f"Small: mean ± SD over {report.samples} samples." if several else "",
        "overviews": _overviews(report, view),
        "maps": _maps(report, view),
        "graph": histogram(report.found.histogram),
        "graph_caption": "Share of the tissue's pixels by optical density; brown is positive.",
        "uncertainty": _uncertainty(report),
        "spread_maps": _spread_maps(report, view),
        "spread_header": ["", "this result", "mean", "SD", "lowest", "highest"],
        "spread_rows": [_over_samples(report, key) for key in keys if key != "tissue_mm2"] if several else [],
        "regions_lead": _regions_lead(report, shown),
        "region_header": header,
        "region_rows": [cells(row) for row in [rows[0], *shown]],
        "left_out": words.left_out(case, report.area, report.found),
        "seams": words.seams(case.record),
        "made": words.made(case),
        "measured": words.measured(case, report.area, report.parts, report.found),
        "files": words.files(case, report.found),
    }
    own = resources.files("miudiff.slide_report").joinpath(TEMPLATE).read_text(encoding="utf-8")
    write_text(path, render(TEMPLATE, {TEMPLATE: own}, values))


def _key(report: Report, key: str) -> tuple[str, str, str]:
    """A measure of all tissue: title, number, and mean and deviation where there are samples."""
    row = report.rows[0]
    over = words.mean_and_deviation(row, key) if report.samples > 1 and key != "tissue_mm2" else ""
    return title_of(key, report.case.marker), words.number(key, row.values[key]), over


def _stain(case: Case) -> str:
    return f"Virtual {case.marker}" if case.marker else "Virtual IHC"


def _lead(report: Report) -> str:
    values = report.rows[0].values
    if not report.found.sums.pixels[0]:
        return "No tissue was found where the slide was translated: there is nothing to measure."
    area = words.number("tissue_mm2", values["tissue_mm2"])
    size = "The tissue was measured" if area == MISSING else f"{area} of tissue"
    text = f"{size}, {words.number('positive_area_share', values['positive_area_share'])} of it DAB-positive."
    if values["cells"] > 0:
        share = words.number("positive_cell_share", values["positive_cell_share"])
        index = f" ({title_of('positive_cell_share', report.case.marker)})" * is_nuclear(report.case.marker)
        text += f" {values['cells']:,.0f} cells were found, {share} of them positive{index}."
    return text


def _columns(report: Report) -> tuple[list[str], Any]:
    """The header of the table by region, and what makes the cells of a row."""
    keys, several = report.keys, report.samples > 1
    spread = [key for key in keys if several and key in ("positive_area_share", report.stained)]
    header = ["Region"]
    for key in keys:
        header += [title_of(key, report.case.marker), *(["SD"] if key in spread else [])]
    header += ["Samples agree"] if several else []

    def cells(row: Row) -> list[Cell]:
        found = [Cell(row.name)]
        for key in keys:
            found.append(Cell(words.number(key, row.values[key]), True))
            found += [Cell(words.deviation(key, row.deviation(key)), True)] if key in spread else []
        return [*found, *([Cell(words.percent(row.agreement), True)] if several else [])]

    return header, cells


def _most_stained(report: Report) -> list[Row]:
    """The regions of the table: all, or of many the most stained of those that hold enough tissue."""
    rows = list(report.rows[1:])
    if len(rows) <= SHOWN:
        return rows
    pixels = report.found.sums.pixels
    least = FULL * float(pixels[1:].max())
    full = [row for row in rows if row.index is not None and pixels[row.index + 1] >= least]
    return sorted(full, key=lambda row: -np.nan_to_num(row.values[report.stained], nan=-1.0))[:SHOWN]


def _regions_lead(report: Report, shown: Sequence[Row]) -> str:
    count = len(report.rows) - 1
    kind = "drawn regions" if count > 1 else "drawn region"
    if isinstance(report.parts, Squares):
        kind = f"squares of {words.length(report.parts.side, report.area.plane)}"
    if len(shown) == count:
        return f"{count} {kind} with tissue."
    return (
        f"{count} {kind} with tissue; listed are the {len(shown)} most stained of those with at least {100 * FULL:.0f} % of "
        f"the tissue of the fullest, by {title_of(report.stained, report.case.marker).lower()}. The others are in "
        f"{report.case.name}.measures.csv."
    )


def _overviews(report: Report, view: View) -> list[Picture]:
    case, area, cropped = report.case, report.area, is_part(view, report.case.virtual)
    part = "The part of the slide that was stained, without specks." if cropped else "The slide."
    if area.drawn is not None:
        part = "The part of the slide that was translated."
    pictures = []
    if case.he is not None:
        pictures.append(overview(case.he, area, view, case.mpp, ("H&E", part)))
    titles = (_stain(case), "Made from the H&E, not stained.")
    pictures.append(overview(case.virtual, area, view, case.mpp, titles))
    if cropped:
        pictures[0] = located(pictures[0], case.he or case.virtual, view)
    where = "Where the numbers by region are of."
    if isinstance(report.parts, Squares):
        where += " A1 is the square in the slide's upper left corner, B1 the one beside it."
    titles = ("Regions", where)
    pictures.append(regions_on(case.virtual, area, view, report.rows[1:], report.parts, titles))
    return pictures


def _maps(report: Report, view: View) -> list[Picture]:
    area, maps = report.area, report.found.maps
    side = words.length(area.plane.place, area.plane)
    key = report.stained
    few = "" if key != "positive_cell_share" else f" Left white below {FEW} cells."
    values = [np.nan if few and row.values["cells"] < FEW else row.values[key] for row in report.rows[1:]]
    title = title_of(key, report.case.marker)
    return [
        colour_map(
            maps.dab, area, view, scale_for(maps.dab, BROWN, 0.05),
            ("Mean DAB", f"Mean DAB optical density in squares of {side}; white is no tissue."), False,
        ),
        colour_map(
            maps.positive, area, view, scale_for(maps.positive, BLUE, 0.05),
            ("Positive area", f"Share of the tissue above {POSITIVE:g} of optical density in squares of {side}."), True,
        ),
        region_map(
            values, report.rows[1:], report.parts, view, scale_for(np.array(values), BLUE, 0.05),
            (f"{title} by region", f"{MEASURES[key].about}{few}"), True,
        ),
    ]  # fmt: skip


def _spread_maps(report: Report, view: View) -> list[Picture]:
    area, maps, scale = report.area, report.found.maps, report.spread_scale()
    if scale is None or maps.spread is None or maps.agreed is None:
        return []
    side = words.length(area.plane.place, area.plane)
    disagreed = 1 - maps.agreed
    spread = f"Standard deviation over {report.samples} samples of the mean DAB optical density of squares of {side}."
    differ = "Share of the tissue that is positive in some samples and not in others."
    return [
        colour_map(maps.spread, area, view, scale, ("Spread of DAB", spread), False),
        colour_map(disagreed, area, view, scale_for(disagreed, VIOLET, 0.05), ("Disagreement", differ), True),
    ]


def _uncertainty(report: Report) -> str:
    if report.samples == 1:
        return (
            "Not measured: there is one translation only. With --samples the slide is translated several times, and "
            "this page shows where the translations differ."
        )
    row, spread = report.rows[0], report.found.maps.spread
    if not np.isfinite(row.agreement) or spread is None:
        return f"{report.samples} translations, and no tissue to compare them on."
    middle, high = np.nanpercentile(spread, [50, 95])
    return (
        f"{report.samples} translations of the same slide with different seeds agree on positive or negative on "
        f"{words.percent(row.agreement)} of the tissue. The spread of DAB optical density is {middle:.3f} in the middle "
        f"square and {high:.3f} or more in one of twenty. It is how far the method differs from itself; how far it is from a real "
        "stain it does not tell."
    )


def _over_samples(report: Report, key: str) -> list[Cell]:
    row = report.rows[0]
    values = row.samples[key]
    numbers = [values[0], values.mean(), None, values.min(), values.max()]
    texts = [words.deviation(key, row.deviation(key)) if v is None else words.number(key, v) for v in numbers]
    return [Cell(title_of(key, report.case.marker)), *(Cell(text, True) for text in texts)]
