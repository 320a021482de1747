"""What is written beside the page: numbers as JSON and CSV, regions and cells as GeoJSON, uncertainty as a slide."""

from __future__ import annotations

import csv
import io
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miudiff.cells import WEAK
from miudiff.evaluation.publish import plain
from miudiff.images import atomic, write_bytes
from miudiff.slide_report.nuclei import Nuclei
from miudiff.slide_report.parts import Parts
from miudiff.slide_report.plane import Plane
from miudiff.slide_report.table import MEASURES, Row
from miudiff.slides.regions import Feature, write_features

POSITIVE_CLASS, NEGATIVE_CLASS = ("Positive", (200, 50, 50)), ("Negative", (112, 112, 225))
POINTS = 100_000  # of one object
CELL_DAB, CELL_AREA = "DAB: Mean OD", "Area µm^2"


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """A row for each region as CSV; with samples, their mean and standard deviation, too. Empty where undefined."""
    several = len(rows[0].samples["mean_dab_od"]) > 1
    header = ["region", *MEASURES]
    if several:
        spread = [key for key in MEASURES if key != "tissue_mm2"]
        header += [f"{key}_samples_{which}" for key in spread for which in ("mean", "sd")]
        header += ["agreement_share"]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        found: list[float] = [row.values[key] for key in MEASURES]
        if several:
            found += [value for key in spread for value in (row.mean(key), row.deviation(key))]
            found += [row.agreement]
        writer.writerow([row.name, *(f"{value:.6g}" if np.isfinite(value) else "" for value in found)])
    write_bytes(path, buffer.getvalue().encode())


def row_json(row: Row) -> dict[str, Any]:
    """A region's numbers as JSON holds them; null where undefined."""
    content: dict[str, Any] = {"region": row.name, **plain(row.values)}
    if len(row.samples["mean_dab_od"]) > 1:
        content["samples"] = {
            key: {
                "values": [None if np.isnan(value) else float(value) for value in values],
                **plain({"mean": row.mean(key), "sd": row.deviation(key)}),
            }
            for key, values in row.samples.items()
            if key != "tissue_mm2"
        }
        content |= plain({"agreement_share": row.agreement})
    return content


def write_regions(path: Path, rows: Sequence[Row], parts: Parts) -> None:
    """The regions with their numbers as annotations for QuPath."""
    features = []
    for row in rows:
        if row.index is None:
            continue
        measurements = dict(row.values)
        if len(row.samples["mean_dab_od"]) > 1:
            measurements |= {
                f"{key}_samples_sd": row.deviation(key) for key in MEASURES if key != "tissue_mm2"
            }
            measurements["agreement_share"] = row.agreement
        features.append(Feature(row.name, [parts.rings(row.index)], measurements=measurements))
    write_features(path, features)


def write_cells(path: Path, cells: Nuclei, plane: Plane) -> None:
    """The cells of the result for QuPath: outlines with their measurements, or points if there are too many.

    Features are written one by one, so that millions need no memory.
    """
    features = _outlined(cells, plane) if cells.outlines else _points(cells, plane)
    with atomic(path) as part, part.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, feature in enumerate(features):
            text = json.dumps(feature, ensure_ascii=False, allow_nan=False)
            identity = uuid.uuid5(uuid.NAMESPACE_OID, f"{number} {text}")
            file.write(f'{"," if number else ""}\n{{"id": "{identity}", {text[1:]}')
        file.write("\n]}\n")


def _outlined(cells: Nuclei, plane: Plane) -> Iterator[dict[str, Any]]:
    assert plane.mpp is not None
    for ring, dab, pixels in zip(cells.outlines, cells.dab, cells.pixels):
        points = np.round(ring.astype(np.float64) * plane.step, 1).tolist()
        yield {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [points]},
            "properties": {
                "objectType": "detection",
                "classification": _class_of(float(dab)),
                "measurements": {
                    CELL_DAB: round(float(dab), 4),
                    CELL_AREA: round(float(pixels) * plane.mpp**2, 2),
                },
            },
        }


def _points(cells: Nuclei, plane: Plane) -> Iterator[dict[str, Any]]:
    """Positive and negative cells as objects of at most `POINTS` points each."""
    for positive in (True, False):
        of_class = (cells.dab > WEAK) == positive
        places = np.stack([cells.x[of_class], cells.y[of_class]], axis=-1) * plane.step
        classification = _class_of(np.inf if positive else 0.0)
        for first in range(0, len(places), POINTS):
            some = np.round(places[first : first + POINTS], 1).tolist()
            yield {
                "type": "Feature",
                "geometry": {"type": "MultiPoint", "coordinates": some},
                "properties": {
                    "objectType": "annotation",
                    "name": f"{classification['name']} cells",
                    "classification": classification,
                },
            }


def _class_of(dab: float) -> Mapping[str, Any]:
    name, colour = POSITIVE_CLASS if dab > WEAK else NEGATIVE_CLASS
    return {"name": name, "color": list(colour)}
