"""Which pixels of the plane are measured: tissue that could be read, inside the regions that were translated."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass

import numpy as np

from miudiff.cells import Mask
from miudiff.errors import SlideError
from miudiff.formats.scale import is_optical
from miudiff.slide_report.case import Case
from miudiff.slide_report.plane import Block, Plane
from miudiff.slides.marked import read_marked
from miudiff.slides.overview import TissueMap, tissue_mask
from miudiff.slides.regions import Polygon, Regions, read_regions
from miudiff.slides.scaled import Read
from miudiff.slides.slide import Slide

GUESSED = 0.5  # µm per pixel, to find the glass of a slide whose scale nobody knows


@dataclass(frozen=True)
class Area:
    """What counts.

    Attributes:
        plane: The grid.
        glass: Where there is no tissue.
        drawn: The regions that were translated; None for the whole slide.
        lost: What could not be read; None if all could.
    """

    plane: Plane
    glass: TissueMap
    drawn: Regions | None
    lost: Regions | None

    def readable(self, block: Block, fold: int = 1) -> Mask:
        """What was translated, glass and tissue, bool [height // fold, width // fold] of the block."""
        height, width = max(block.height // fold, 1), max(block.width // fold, 1)
        step = self.plane.step * fold
        left, top, _, _ = self.plane.box(block)
        mask = np.ones((height, width), bool)
        if self.drawn is not None:
            mask &= self.drawn.mask(left, top, width, height, step)
        if self.lost is not None:
            mask &= ~self.lost.mask(left, top, width, height, step)
        return mask

    def tissue(self, block: Block, fold: int = 1) -> Mask:
        """What is measured, bool [height // fold, width // fold] of the block."""
        mask = self.readable(block, fold)
        if mask.any():
            height, width = mask.shape
            step = self.plane.step * fold
            left, top, _, _ = self.plane.box(block)
            box = (left, top, left + width * step, top + height * step)
            mask &= self.glass.resampled(box, width, height) < 0.5
        return mask


def glass_scale(case: Case) -> tuple[float, str]:
    """The scale that glass is found at, in µm per pixel, and whose it is where nobody states the slide's."""
    if case.mpp:
        return case.mpp, "the slide's"
    model = case.record.get("model")
    of_model = model.get("mpp") if isinstance(model, dict) else None
    if is_optical(of_model):
        return float(of_model), "that of the weights"
    return GUESSED, f"{GUESSED:g} µm per pixel"


def area_of(case: Case, plane: Plane) -> Area:
    """What of a case is measured.

    Raises:
        SlideError: The regions cannot be read.
    """
    of, (mpp, _) = case.he or case.virtual, glass_scale(case)
    size = (case.virtual.width, case.virtual.height)
    drawn = read_regions(case.roi, *size) if case.roi is not None else None
    return Area(plane, tissue_mask(of, mpp, around_damage(of)), drawn, _lost(case, size))


def around_damage(slide: Slide) -> Read:
    """Reads a slide's regions, black where they cannot be read."""
    return lambda x, y, width, height, level: read_marked(slide, x, y, width, height, level)[0]


def _lost(case: Case, size: tuple[int, int]) -> Regions | None:
    """What could not be read, by the record and by the file beside it."""
    try:
        boxes = np.array(case.record.get("unreadable") or [], np.float64).reshape(-1, 4)
    except (TypeError, ValueError) as error:
        raise SlideError(
            f"{case.beside('.json')}: 'unreadable' is {reprlib.repr(case.record['unreadable'])}, expected [[x, y, width, height], ...]; "
            "translate the slide again"
        ) from error
    polygons = [
        Polygon("unreadable", (np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)]),))
        for x, y, w, h in boxes
    ]
    path = case.beside(".unreadable.geojson")
    if not polygons and path.is_file():
        polygons = list(read_regions(path, *size).polygons)
    return Regions(tuple(polygons)) if polygons else None
