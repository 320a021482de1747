"""The slides of a case laid on one field, as the page draws them: where each lies, its scale, and what has to be said.

A sheet is placed by its physical size, its upper left corner on that of the field, which is the H&E slide's. Two slides of one
shape and size are the same field, though their pixels differ; without a scale one shape is taken for one field.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from miudiff.errors import SlideError
from miudiff.formats.scale import COARSEST, FINEST, is_optical
from miudiff.images import same_scale
from miudiff.slides.reader import Slide
from miudiff.slides.regions import Regions, read_regions
from miudiff.slides.result import regions_named
from miudiff.viewer.cases import Case
from miudiff.viewer.facts import is_size, marker_of
from miudiff.viewer.roots import OUTSIDE
from miudiff.viewer.tiles import Slides, version

LABELS = {"he": "H&E", "ihc": "Virtual IHC", "real": "Real IHC", "uncertainty": "Uncertainty"}


@dataclass(frozen=True)
class Sheet:
    """A slide as it lies on the field.

    Attributes:
        role: "he", "ihc", "real" or "uncertainty".
        width: Pixels of level 0.
        height: Pixels of level 0.
        mpp: Micrometres per pixel of level 0, None if nobody says.
        version: Names the file's present content.
        share: Its width as a share of the field's.
        clipped: Whether it is transparent outside of the regions that were translated.
        error: Why it cannot be shown, "" if it can.
    """

    role: str
    width: int = 0
    height: int = 0
    mpp: float | None = None
    version: str = ""
    share: float = 1.0
    clipped: bool = False
    error: str = ""


def path_of(case: Case, role: str) -> Path | None:
    """The file that plays a role in a case."""
    return {"he": case.he, "ihc": case.ihc, "real": case.real, "uncertainty": case.uncertainty}.get(role)


def version_of(case: Case, role: str, path: Path) -> str:
    """A word that changes when what is drawn of a role does.

    Raises:
        SlideError: It may not be served.
        OSError: It is gone.
    """
    regions = case.regions if role == "ihc" else None
    return version(_real(case, path)) + (version(regions) if regions else "")


def open_role(case: Case, path: Path, slides: Slides) -> Slide:
    """The open slide of a case.

    Raises:
        SlideError: It may not be served, or cannot be opened.
        OSError: It is gone.
    """
    slide = slides.get(_real(case, path))
    case.allowed.check(slide)
    if _real(case, path) != slide.path:  # while it was opened the path has been led elsewhere
        raise SlideError(f"{path}: {OUTSIDE}")
    return slide


def regions_of(case: Case, role: str, slide: Slide) -> Regions | None:
    """What of a slide is shown; None for all of it.

    Raises:
        SlideError: The regions cannot be read.
    """
    found = case.regions if role == "ihc" else None
    if found is None:
        return None
    path = _real(case, found)
    return _read_regions(path, version(path), slide.width, slide.height)


@functools.lru_cache(16)
def _read_regions(path: Path, of: str, width: int, height: int) -> Regions:
    """Read once for all tiles; `of` is the version of the file."""
    return read_regions(path, width, height)


def _real(case: Case, path: Path) -> Path:
    real = case.allowed.real(path)
    if real is None:
        raise SlideError(f"{path}: is gone, or {OUTSIDE}")
    return real


def page_data(case: Case, slides: Slides) -> dict[str, Any]:
    """What the page must know of a case, ready for JSON; a slide that cannot be opened is told in its sheet."""
    files = {role: path_of(case, role) for role in LABELS}
    sheets = {role: _open(case, role, path, slides) for role, path in files.items() if path is not None}
    if "he" not in sheets:
        sheets["he"] = Sheet("he", error=case.missing or "no H&E image was given")
    field, placed, notes = lay_out(sheets)
    regions, told = _unreadable(case, placed)
    told += _notes(case, placed)
    return {
        "name": case.name,
        "field": {"width": field.width, "height": field.height, "mpp": field.mpp, "of": _label(field, case)},
        "sheets": {
            role: {
                "label": _label(sheet, case),
                "width": sheet.width,
                "height": sheet.height,
                "mpp": sheet.mpp,
                "share": sheet.share,
                "version": sheet.version,
                "clipped": sheet.clipped,
                "error": sheet.error,
            }
            for role, sheet in placed.items()
        },
        "regions": regions,
        "notes": [*notes, *told],
    }


def lay_out(sheets: Mapping[str, Sheet]) -> tuple[Sheet, dict[str, Sheet], list[str]]:
    """The sheet that is the field, all of them placed on it, and what a reader must know about their places."""
    field = next((s for s in (sheets["he"], *sheets.values()) if not s.error), Sheet(""))
    if field.mpp is None:  # the same field in other pixels gives its scale
        same = (s for s in sheets.values() if not s.error and s.mpp is not None and alike(s, field))
        field = next((replace(field, mpp=s.mpp * s.width / field.width) for s in same if s.mpp), field)
    placed, notes = {}, []
    for role, sheet in sheets.items():
        if not sheet.error:
            sheet, note = _place(sheet, field)
            notes += [note] if note else []
        placed[role] = sheet
    if field.mpp is None and field.width:
        notes.append("No slide states its scale: lengths are in pixels, and there is no magnification.")
    return field, placed, notes


def alike(one: Sheet | Slide, other: Sheet | Slide) -> bool:
    """Whether two sheets have one shape, up to a pixel of rounding."""
    rounding = 1 / min(one.width, one.height) + 1 / min(other.width, other.height)
    return abs(one.width * other.height / (one.height * other.width) - 1) <= rounding


def _place(sheet: Sheet, field: Sheet) -> tuple[Sheet, str]:
    label = LABELS[sheet.role]
    if sheet.mpp is None or field.mpp is None:
        if alike(sheet, field):
            scale = None if field.mpp is None else field.mpp * field.width / sheet.width
            return replace(sheet, mpp=scale, share=1.0), ""
        note = (
            f"{label} states no scale and has another shape than {LABELS[field.role]}: "
            "it is laid there pixel by pixel, and the places may not belong together."
        )
        return replace(sheet, share=sheet.width / field.width), note
    share = sheet.width * sheet.mpp / (field.width * field.mpp)
    if alike(sheet, field) and same_scale(share, 1.0):
        return replace(sheet, share=1.0), ""
    sizes = " and ".join(
        f"{s.width * s.mpp:,.0f} x {s.height * s.mpp:,.0f} µm" for s in (sheet, field) if s.mpp is not None
    )
    note = (
        f"{label} and {LABELS[field.role]} are not one field ({sizes}): "
        "both are drawn at their true size from the upper left corner."
    )
    return replace(sheet, share=share), note


def _open(case: Case, role: str, path: Path, slides: Slides) -> Sheet:
    try:
        slide = open_role(case, path, slides)
        mpp = slide.mpp
        stated = case.facts.get("mpp")
        if role == "he" and is_optical(stated):
            mpp = float(stated)  # what the result was made with, given by hand perhaps
        clipped = role == "ihc" and case.regions is not None
        return Sheet(role, slide.width, slide.height, mpp, version_of(case, role, path), clipped=clipped)
    except (SlideError, OSError) as error:
        return Sheet(role, error=str(error))


def _label(sheet: Sheet, case: Case) -> str:
    label, marker = LABELS.get(sheet.role, ""), marker_of(case.facts)
    return f"{label} · {marker}" if sheet.role == "ihc" and marker else label


def _notes(case: Case, placed: Mapping[str, Sheet]) -> list[str]:
    """What a reader must know of a record that cannot be gone by."""
    notes = []
    stated, named = case.facts.get("mpp"), regions_named(case.facts)
    if stated is not None and not is_optical(stated):
        notes.append(
            f"The record's scale is none of a slide ({FINEST:g} to {COARSEST:g} µm/px), and is left out."
        )
    if named and not placed["ihc"].clipped and not placed["ihc"].error:
        notes.append(
            f"Regions alone were translated, and their file is not here ({named}): all else is grey."
        )
    return notes


def _unreadable(case: Case, placed: Mapping[str, Sheet]) -> tuple[list[Any], list[str]]:
    """Rings of the regions that could not be read, in shares of the field's width, and a note if they cannot be shown."""
    sheet = next((s for s in (placed["he"], placed.get("ihc")) if s is not None and not s.error), None)
    found = case.unreadable
    if found is None or sheet is None:
        return [], []
    # Their places are level-0 pixels of the slide that was read, whose size the record knows when it is gone.
    width, height = case.facts.get("width"), case.facts.get("height")
    if sheet.role == "he" or not (is_size(width) and is_size(height)):
        width, height = sheet.width, sheet.height
    try:
        regions = read_regions(_real(case, found), width, height)
    except SlideError as error:
        return [], [f"The regions that could not be read cannot be shown: {error}"]
    unit = sheet.share / width
    return [[(ring * unit).tolist() for ring in polygon.rings] for polygon in regions.polygons], []
