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
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from miudiff.errors import SlideError
from miudiff.images import write_bytes

Ring = NDArray[np.float64]  # [n, 2] of x, y; the last point joins the first


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

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels of level 0."""
        left, top, right, bottom = np.array([polygon.bounds for polygon in self.polygons]).T
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
        for polygon in self.polygons:
            x0, y0, x1, y1 = polygon.bounds
            apart_x = x1 < left or x0 > left + width * downsample
            apart_y = y1 < top or y0 > top + height * downsample
            if not apart_x and not apart_y:
                mask |= _fill(polygon.rings, left, top, width, height, downsample)
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
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise SlideError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise SlideError(f"{path}: is not JSON ({error}); export the regions as GeoJSON") from error
    polygons = [
        _polygon(path, name or f"region {number}", rings, slide_width, slide_height)
        for number, (name, geometry) in enumerate(_geometries(path, content), 1)
        for rings in _areas(path, name or f"region {number}", geometry)
    ]
    if not polygons:
        raise SlideError(f"{path}: holds no areas, expected polygons; draw a region and export it as GeoJSON")
    return Regions(tuple(polygons))


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
        yield str(name or ""), content.get("geometry")
    elif kind is not None:
        yield "", content
    else:
        raise SlideError(f"{path}: is JSON but no GeoJSON, expected features or a geometry")


def _areas(path: Path, name: str, geometry: Any) -> Iterator[list[Ring]]:
    """The rings of each polygon of a geometry."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise SlideError(
            f"{path}: '{name}' is {'a ' + str(kind) if kind else 'nothing'}, expected an area (Polygon or MultiPolygon); "
            "leave it out of the export"
        )
    areas = geometry.get("coordinates")
    try:
        for area in [areas] if kind == "Polygon" else areas:
            rings = [np.array([(float(point[0]), float(point[1])) for point in ring]) for ring in area]
            if not rings or any(len(ring) < 3 or not np.isfinite(ring).all() for ring in rings):
                raise ValueError("too few points, or one that is no number")
            yield [ring[:-1] if (ring[0] == ring[-1]).all() else ring for ring in rings]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise SlideError(f"{path}: '{name}' has no proper outline ({error}); export it again") from error


def _polygon(path: Path, name: str, rings: list[Ring], width: int, height: int) -> Polygon:
    if not _signed_area(rings[0]):
        raise SlideError(f"{path}: '{name}' has no area; leave it out of the export")
    outline, *holes = (_cut(ring, width, height) for ring in rings)
    if not _signed_area(outline):
        low, high = rings[0].min(0), rings[0].max(0)
        raise SlideError(
            f"{path}: '{name}' ({low[0]:.0f}, {low[1]:.0f} to {high[0]:.0f}, {high[1]:.0f}) lies outside the slide, "
            f"{width} x {height} pixels; was it drawn on another slide?"
        )
    return Polygon(name, (outline, *(hole for hole in holes if _signed_area(hole))))


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


def _closed(ring: Ring) -> list[list[float]]:
    points = np.round(np.asarray(ring, np.float64), 2).tolist()
    return points if points[0] == points[-1] else [*points, points[0]]


def _fill(
    rings: Sequence[Ring], left: float, top: float, width: int, height: int, step: float
) -> NDArray[np.bool_]:
    """Pixels whose centre lies within an odd number of rings: each edge turns over all pixels to the right of it."""
    turns = np.zeros((height, width + 1), np.uint8)
    for ring in rings:
        start, end = ring, np.roll(ring, -1, axis=0)
        low, high = (
            np.clip(np.ceil((y - top) / step - 0.5), 0, height).astype(np.int64)
            for y in (np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1]))
        )
        counts = high - low
        edge = np.repeat(np.arange(len(ring)), counts)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + low[edge]
        (x, y), (dx, dy) = start[edge].T, (end - start)[edge].T
        crossing = x + (top + (row + 0.5) * step - y) * (dx / dy)
        column = np.clip(np.ceil((crossing - left) / step - 0.5), 0, width).astype(np.int64)
        np.add.at(turns.reshape(-1), row * (width + 1) + column, 1)  # counts past 255 keep their parity
    turns &= 1
    return np.bitwise_xor.accumulate(turns[:, :width], axis=1).view(bool)
