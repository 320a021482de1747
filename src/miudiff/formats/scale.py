"""Micrometres per pixel as a TIFF states them, for images and slides alike."""

from __future__ import annotations

import re
from typing import Any, TypeGuard
from xml.etree import ElementTree

# µm per pixel of an optical scan; beyond them a file states a printing resolution
FINEST, COARSEST = 0.01, 20.0
MICROMETRES = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "Å": 1e-4, "in": 25400.0,
}  # fmt: skip
OME, RESOLUTION, APERIO = "OME PhysicalSizeX", "TIFF XResolution in pixels per cm", "Aperio MPP"
Stated = tuple[float, float, str]


def stated(tiff: Any, page: Any) -> Stated | None:
    """Micrometres per pixel across and down, and what states them, of a page of tifffile's; None if nothing does.

    OME metadata come first, then what Aperio's description says, then a resolution in centimetres. Dots per
    inch and what no microscope has are no scale.
    """
    key = page.keyframe
    for found in (_ome(tiff.ome_metadata, key.imagewidth, key.imagelength), _aperio(key), _resolution(key)):
        if found is not None and is_optical(found[0]) and is_optical(found[1]):
            return found
    return None


def is_optical(mpp: object) -> TypeGuard[int | float]:
    """Whether a value is micrometres per pixel that a microscope can have; no NaN and no infinity is such a number."""
    return isinstance(mpp, int | float) and not isinstance(mpp, bool) and FINEST <= mpp <= COARSEST


def _ome(xml: str | None, width: int, height: int) -> Stated | None:
    """What is stated of the image of this size; a file that states one axis has square pixels."""
    try:
        root = ElementTree.fromstring(xml.encode()) if xml else None
    except ElementTree.ParseError:
        return None
    for pixels in root.iterfind(".//{*}Pixels") if root is not None else ():
        if (pixels.get("SizeX"), pixels.get("SizeY")) == (str(width), str(height)):
            across = _length(pixels, "X")
            down = _length(pixels, "Y") if pixels.get("PhysicalSizeY") else across
            return (across, down, OME) if across is not None and down is not None else None
    return None


def _length(pixels: ElementTree.Element, axis: str) -> float | None:
    factor = MICROMETRES.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
    try:
        return None if factor is None else float(pixels.get(f"PhysicalSize{axis}", "")) * factor
    except ValueError:
        return None


def _aperio(key: Any) -> Stated | None:
    if not key.is_tiled or not key.description.startswith("Aperio"):  # as OpenSlide knows Aperio's files
        return None
    found = re.search(r"\|\s*MPP\s*=\s*([0-9.]{1,20})", key.description)
    try:
        return (float(found[1]), float(found[1]), APERIO) if found else None
    except ValueError:
        return None


def _resolution(key: Any) -> Stated | None:
    try:
        if int(key.tags["ResolutionUnit"].value) != 3:
            return None
        (n, d), (m, e) = (key.tags[f"{axis}Resolution"].value for axis in "XY")
        return 1e4 * d / n, 1e4 * e / m, RESOLUTION
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
