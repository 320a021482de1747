"""Regions drawn on a slide, as QuPath writes and reads them: GeoJSON in pixels of level 0, its origin the slide's upper left corner.

A pixel belongs to a region if its centre does (even-odd rule), so neighbouring regions share no pixel and a mask asked for in
parts is the mask.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miudiff.errors import SlideError
from miudiff.images import write_bytes

Ring = NDArray[np.float64]  # [n, 2] of x, y; the last point joins the first

LARGEST = 64 * 2**20  # bytes of a file of regions, about three million points
FARTHEST = 1e9  # pixels; no slide is as large
FILLED = 2**21  # rows that edges cross, of which `_fill` takes so many at a time


@dataclass(frozen=True)
class Polygon:
    """An area and its holes.

    Attributes:
        name: Its name, that of its class, or "region" and its number.
        rings: Its outline and its holes, in pixels of level 0.
    """

    name: str
    rings: tuple[Ring, ...]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels of level 0."""
        low, high = self.rings[0].min(0), self.rings[0].max(0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @property
    def area(self) -> float:
        """In square pixels of level 0."""
        outline, *holes = (abs(_signed_area(ring)) for ring in self.rings)
        return outline - sum(holes)


@dataclass(frozen=True)
class Regions:
    """Areas of a slide, cut at its borders."""

    polygons: tuple[Polygon, ...]

    @cached_property
    def _boxes(self) -> NDArray[np.float64]:
        """Left, top, right, bottom of each polygon, [n, 4]."""
        return np.array([polygon.bounds for polygon in self.polygons]).reshape(-1, 4)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels of level 0."""
        left, top, right, bottom = self._boxes.T
        return float(left.min()), float(top.min()), float(right.max()), float(bottom.max())

    def mask(
        self, left: float, top: float, width: int, height: int, downsample: float = 1.0
    ) -> NDArray[np.bool_]:
        """Which pixels lie in a region, bool [height, width].

        Args:
            left: Left edge of the mask in pixels of level 0.
            top: Upper edge of the mask in pixels of level 0.
            width: Pixels of the mask.
            height: Pixels of the mask.
            downsample: Pixels of level 0 to one of the mask.
        """
        mask = np.zeros((height, width), bool)
        places = (self._boxes - (left, top, left, top)) / downsample
        low = np.clip(np.floor(places[:, :2]), 0, (width, height)).astype(int)
        high = np.clip(np.ceil(places[:, 2:]), 0, (width, height)).astype(int)
        for index in np.flatnonzero((low < high).all(axis=1)):
            (x0, y0), (x1, y1) = low[index], high[index]
            rings = self.polygons[index].rings
            mask[y0:y1, x0:x1] |= _fill(rings, left, top, (x0, y0, x1, y1), downsample)
        return mask


@dataclass(frozen=True)
class Feature:
    """What `write_features` writes: polygons with what was measured in them.

    Attributes:
        name: What QuPath lists it as.
        polygons: Each an outline and its holes, [n, 2] of x, y in pixels of level 0.
        classification: Its class in QuPath, none if empty.
        colour: The class's colour.
        measurements: Numbers by name; those that are not finite are left out.
        kind: "annotation", or "detection" for cells, of which QuPath draws many quickly.
    """

    name: str
    polygons: Sequence[Sequence[Ring]]
    classification: str = ""
    colour: tuple[int, int, int] = (200, 0, 0)
    measurements: Mapping[str, float] = field(default_factory=dict)
    kind: str = "annotation"


def read_regions(path: str | Path, slide_width: int, slide_height: int) -> Regions:
    """The areas in a GeoJSON file: a FeatureCollection, a Feature, a list of features, or a bare geometry.

    What reaches beyond the slide is cut off.

    Args:
        path: The file.
        slide_width: Pixels of level 0.
        slide_height: Pixels of level 0.

    Raises:
        SlideError: It cannot be read, holds something other than areas, or an area that does not touch the slide.
    """
    path = Path(path)
    try:
        polygons = [
            _polygon(path, name or f"region {number}", rings, slide_width, slide_height)
            for number, (name, geometry) in enumerate(_geometries(path, _read_json(path)), 1)
            for rings in _areas(path, name or f"region {number}", geometry)
        ]
    except RecursionError as error:
        raise SlideError(f"{path}: is nested too deeply for GeoJSON; export the regions again") from error
    if not polygons:
        raise SlideError(f"{path}: holds no areas, expected polygons; draw a region and export it as GeoJSON")
    return Regions(tuple(polygons))


def _read_json(path: Path) -> Any:
    try:
        if path.exists() and not path.is_file():
            found = "a folder" if path.is_dir() else "no regular file"
            raise SlideError(f"{path}: cannot be read (is {found}), expected a GeoJSON file")
        if (size := path.stat().st_size) > LARGEST:
            raise SlideError(
                f"{path}: {size / 2**20:.0f} MiB, expected at most {LARGEST / 2**20:.0f} MiB of regions; "
                "export the annotations alone, without cells"
            )
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise SlideError(f"{path}: is not JSON ({error}); export the regions as GeoJSON") from error


def write_features(path: str | Path, features: Sequence[Feature]) -> None:
    """Write features as GeoJSON that QuPath opens; the same features give the same bytes."""
    entries = []
    for number, feature in enumerate(features):
        areas = [[_closed(ring) for ring in rings] for rings in feature.polygons]
        one = len(areas) == 1
        properties: dict[str, Any] = {"objectType": feature.kind, "name": feature.name}
        if feature.classification:
            properties["classification"] = {
                "name": feature.classification,
                "color": list(feature.colour),
            }
        finite = {name: float(value) for name, value in feature.measurements.items() if math.isfinite(value)}
        if finite:
            properties["measurements"] = finite
        geometry = {"type": "Polygon" if one else "MultiPolygon", "coordinates": areas[0] if one else areas}
        # QuPath wants an id of its objects, and takes none that is no UUID
        identity = uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([number, properties, geometry]))
        entries.append(
            {"type": "Feature", "id": str(identity), "geometry": geometry, "properties": properties}
        )
    content = {"type": "FeatureCollection", "features": entries}
    write_bytes(path, (json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n").encode())


def _geometries(path: Path, content: Any) -> Iterator[tuple[str, Any]]:
    """Names and geometries of whatever kind of GeoJSON it is."""
    kind = content.get("type") if isinstance(content, dict) else None
    if isinstance(content, list):
        for item in content:
            yield from _geometries(path, item)
    elif kind == "FeatureCollection":
        yield from _geometries(path, content.get("features") or [])
    elif kind == "Feature":
        properties = content.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        kind_of_it = properties.get("classification")
        name = properties.get("name") or (kind_of_it.get("name") if isinstance(kind_of_it, dict) else "")
        yield _text(name or ""), content.get("geometry")
    elif kind is not None:
        yield "", content
    else:
        raise SlideError(f"{path}: is JSON but no GeoJSON, expected features or a geometry")


def _text(value: Any) -> str:
    """A value of the file as text of bounded length; half a surrogate pair, which no file can hold, is spelt out."""
    return str(value)[:80].encode(errors="backslashreplace").decode()


def _areas(path: Path, name: str, geometry: Any) -> Iterator[list[Ring]]:
    """The rings of each polygon of a geometry."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise SlideError(
            f"{path}: '{name}' is {'a ' + _text(kind) if kind else 'nothing'}, expected an area (Polygon or MultiPolygon); "
            "leave it out of the export"
        )
    areas = geometry.get("coordinates")
    try:
        for area in [areas] if kind == "Polygon" else areas:
            rings = [np.array([_point(point) for point in ring]) for ring in area]
            if not rings or any(len(ring) < 3 for ring in rings):
                raise ValueError("too few points")
            if any(not (np.abs(ring) < FARTHEST).all() for ring in rings):
                raise ValueError("a point that lies on no slide")
            yield [ring[:-1] if (ring[0] == ring[-1]).all() else ring for ring in rings]
    except (TypeError, ValueError, OverflowError) as error:
        raise SlideError(f"{path}: '{name}' has no proper outline ({error}); export it again") from error


def _point(values: Any) -> tuple[float, float]:
    if not isinstance(values, list) or len(values) < 2:
        raise ValueError("a point that is not [x, y]")
    x, y = values[:2]
    if type(x) not in (int, float) or type(y) not in (int, float):
        raise ValueError("a coordinate that is no number")
    return float(x), float(y)


def _polygon(path: Path, name: str, rings: list[Ring], width: int, height: int) -> Polygon:
    if not _has_area(rings[0]):
        raise SlideError(f"{path}: '{name}' has no area; leave it out of the export")
    outline, *holes = (_cut(ring, width, height) for ring in rings)
    if not _has_area(outline):
        low, high = rings[0].min(0), rings[0].max(0)
        raise SlideError(
            f"{path}: '{name}' ({low[0]:.0f}, {low[1]:.0f} to {high[0]:.0f}, {high[1]:.0f}) lies outside the slide, "
            f"{width} x {height} pixels; was it drawn on another slide?"
        )
    return Polygon(name, (outline, *(hole for hole in holes if _has_area(hole))))


def _cut(ring: Ring, width: int, height: int) -> Ring:
    """The part of a ring's area within the slide (Sutherland and Hodgman 1974: one border after the other)."""
    for axis, limit, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        if not len(ring):
            break
        before = np.roll(ring, 1, axis=0)
        depth, depth_before = sign * (ring[:, axis] - limit), sign * (before[:, axis] - limit)
        crosses = (depth >= 0) != (depth_before >= 0)
        share = np.divide(
            depth_before, depth_before - depth, out=np.zeros(len(ring)), where=depth_before != depth
        )
        entry = before + share[:, None] * (ring - before)
        entry[:, axis] = limit
        both = np.stack([entry, ring], axis=1)
        ring = both[np.stack([crosses, depth >= 0], axis=1)]
    return ring


def _signed_area(ring: Ring) -> float:
    if len(ring) < 3:
        return 0.0
    (x, y), (x1, y1) = (ring - ring[0]).T, (np.roll(ring, -1, axis=0) - ring[0]).T
    return float((x * y1 - x1 * y).sum()) / 2


def _has_area(ring: Ring) -> bool:
    """Whether a ring encloses anything; where two lobes of one that crosses itself cancel, a grid of pixels says so."""
    if _signed_area(ring) or len(ring) < 4:
        return bool(_signed_area(ring))
    (left, top), (right, bottom) = ring.min(0), ring.max(0)
    step = max(right - left, bottom - top) / 256
    return bool(step and _fill([ring], left, top, (0, 0, 256, 256), step).any())


def _closed(ring: Ring) -> list[list[float]]:
    points = np.round(np.asarray(ring, np.float64), 2).tolist()
    return points if points[0] == points[-1] else [*points, points[0]]


def _fill(
    rings: Sequence[Ring], left: float, top: float, box: tuple[int, int, int, int], step: float
) -> NDArray[np.bool_]:
    """Pixels whose centre lies within an odd number of rings: each edge turns over all pixels to the right of it.

    Args:
        box: Left, top, right, bottom in pixels of the mask at (`left`, `top`): the part that is filled.
    """
    x0, y0, x1, y1 = box
    turns = np.zeros((y1 - y0, x1 - x0 + 1), np.uint8)
    for ring in rings:
        start, end = ring, np.roll(ring, -1, axis=0)
        low, high = (
            np.clip(np.ceil((y - top) / step - 0.5), y0, y1).astype(np.int64)
            for y in (np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1]))
        )
        counts = high - low
        crossed = np.cumsum(counts)
        parts = np.searchsorted(crossed, np.arange(FILLED, crossed[-1] + FILLED, FILLED)) + 1
        for edges in np.split(np.arange(len(ring)), parts[:-1]):
            edge = np.repeat(edges, counts[edges])
            before = np.repeat(crossed[edges] - counts[edges], counts[edges])
            row = np.arange(len(edge)) + crossed[edges[0]] - counts[edges[0]] - before + low[edge]
            (x, y), (dx, dy) = start[edge].T, (end - start)[edge].T
            crossing = x + (top + (row + 0.5) * step - y) * (dx / dy)
            column = np.clip(np.ceil((crossing - left) / step - 0.5), x0, x1).astype(np.int64)
            # counts past 255 keep their parity
            np.add.at(turns.reshape(-1), (row - y0) * (x1 - x0 + 1) + column - x0, 1)
    turns &= 1
    return np.bitwise_xor.accumulate(turns[:, :-1], axis=1).view(bool)
