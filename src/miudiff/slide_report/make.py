"""`make_report`: from a translated slide to the page and the files beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from miudiff import __version__
from miudiff.checkpoints import write_json
from miudiff.evaluation.publish import plain
from miudiff.pages.page import BANNER
from miudiff.slide_report import files, words
from miudiff.slide_report.area import area_of
from miudiff.slide_report.blocks import CLASSES, POSITIVE
from miudiff.slide_report.case import open_case
from miudiff.slide_report.measure import measure
from miudiff.slide_report.page import Report, write_page
from miudiff.slide_report.parts import Drawn, Parts, Squares
from miudiff.slide_report.plane import plane_of
from miudiff.slide_report.table import MEASURES, rows_of
from miudiff.slide_report.uncertainty import write_uncertainty
from miudiff.slides.result import UNCERTAINTY

PAGE = ".report.html"
TABLE, NUMBERS = ".measures.csv", ".measures.json"
REGIONS, CELLS = ".regions.geojson", ".cells.geojson"


def make_report(result: Path, say: Callable[[str], None], roi: Path | None = None) -> Path:
    """Measure a translated slide and write its report beside it.

    Args:
        result: NAME.ome.tif, with its record NAME.json beside it.
        say: Takes what is missing, progress, and the files that were written, a line each.
        roi: GeoJSON of regions to measure; None takes those of the record, else the whole slide.

    Returns:
        The page.

    Raises:
        SlideError: No record, or a file of the case that cannot be read or does not fit.
        DataError: A file cannot be written.
    """
    with open_case(Path(result), say, roi) as case:
        plane = plane_of(case.virtual.width, case.virtual.height, case.mpp)
        area = area_of(case, plane)
        parts: Parts = Drawn(area.drawn, plane) if area.drawn is not None else Squares(plane)
        found = measure([case.virtual, *case.samples.values()], area, parts, say)
        rows = rows_of(found.sums, parts.names, plane.mpp, found.across is not None)
        report = Report(case, area, parts, found, rows)
        write_json(case.beside(NUMBERS), to_json(report))
        files.write_table(case.beside(TABLE), rows)
        files.write_regions(case.beside(REGIONS), rows, parts)
        written = [NUMBERS, TABLE, REGIONS]
        if found.across is not None:
            files.write_cells(case.beside(CELLS), found.cells, plane)
            written.append(CELLS)
        scale = report.spread_scale()
        if scale is not None and found.maps.spread is not None:
            write_uncertainty(case.beside(UNCERTAINTY), found.maps.spread, plane, scale.high)
            written.append(UNCERTAINTY)
        # What an earlier report wrote and this one has nothing for must not pass for this one's.
        for ending in (CELLS, UNCERTAINTY):
            if ending not in written:
                case.beside(ending).unlink(missing_ok=True)
        write_page(case.beside(PAGE), report)
        for ending in [*written, PAGE]:
            say(str(case.beside(ending)))
        return case.beside(PAGE)


def to_json(report: Report) -> dict[str, Any]:
    """Everything that was measured, as values that JSON holds."""
    case, plane, found = report.case, report.area.plane, report.found
    bars = found.bars
    content: dict[str, Any] = {
        "notice": f"{BANNER} {words.UNCALIBRATED}",
        "miudiff": __version__,
        "result": case.result.name,
        "source": case.record["source"],
        "marker": case.marker,
        "samples": [case.result.name, *case.samples],
        "missing": list(case.notes),
        "measured_at": {
            "mpp": plane.mpp,
            "level0_pixels_per_pixel": plane.step,
            "square_level0_pixels": plane.step * plane.place,
            "tissue_from": "H&E" if case.he is not None else "virtual stain",
            "positive_dab_od": POSITIVE,
            "h_score_dab_od": list(CLASSES),
            "light": [float(level) for level in bars.light] if bars is not None else None,
            "cell_dab_od": bars.dab if bars is not None and found.across is not None else None,
            "cell_hematoxylin_od": bars.hematoxylin
            if bars is not None and found.across is not None
            else None,
            "unreadable_places": len(report.area.lost.polygons) if report.area.lost is not None else 0,
        },
        "measures": {
            key: {"unit": measure.unit, "about": measure.about} for key, measure in MEASURES.items()
        },
        "all": files.row_json(report.rows[0]),
        "regions": [files.row_json(row) for row in report.rows[1:]],
    }
    spread = found.maps.spread
    if spread is not None:
        middle, high = np.nanpercentile(spread, [50, 95]) if np.isfinite(spread).any() else (np.nan, np.nan)
        content["uncertainty"] = plain(
            {
                "median_sd_dab_od": float(middle),
                "p95_sd_dab_od": float(high),
                "max_sd_dab_od": float(np.nanmax(spread)) if np.isfinite(spread).any() else np.nan,
                "agreement_share": report.rows[0].agreement,
            }
        )
    return content
