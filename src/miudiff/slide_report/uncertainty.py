"""The spread over samples as a slide: an OME-TIFF that viewers lay over the others.

image 0   grey, 8 bit, the brighter the less certain (`slides.result`), pixels of at most 16 of the plane's, so that any reader
          of slides takes it
image 1   the numbers, float32, one for each square of the maps, NaN where there is no tissue
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np

from miudiff.images import atomic
from miudiff.slide_report.colours import enlarge
from miudiff.slide_report.plane import Plane
from miudiff.slides.result import uncertainty_pixels
from miudiff.stains import Floats

FINE, COARSE = 256, 16  # pixels of the shorter side wanted; pixels of the plane at most to one of the image


def write_uncertainty(path: Path, spread: Floats, plane: Plane, most: float) -> None:
    """Write the standard deviations [rows, columns] of the maps; the file appears whole or not at all.

    Args:
        most: What is as bright as can be.
    """
    import tifffile

    pixel = COARSE
    while pixel > 1 and min(plane.width, plane.height) < pixel * FINE:
        pixel //= 2
    grey = enlarge(uncertainty_pixels(spread, most), plane.place // pixel)
    grey = grey[: -(-plane.height // pixel), : -(-plane.width // pixel)]
    title = f"SD of DAB optical density over samples, 0 (black) to {most:g} (white)"
    identity = uuid.uuid5(uuid.NAMESPACE_OID, f"{path.name} {spread.tobytes().hex()}")
    with atomic(path) as part, tifffile.TiffWriter(part, ome=True) as tiff:
        tiff.write(
            grey,
            photometric="rgb",
            compression="deflate",
            tile=(256, 256),
            metadata={"axes": "YXS", "Name": title, "UUID": str(identity), **_size(plane, pixel)},
            **_resolution(plane, pixel),
        )
        tiff.write(
            spread.astype(np.float32),
            photometric="minisblack",
            compression="deflate",
            metadata={"axes": "YX", "Name": "SD of DAB optical density", **_size(plane, plane.place)},
            **_resolution(plane, plane.place),
        )


def _size(plane: Plane, pixel: int) -> dict[str, Any]:
    if plane.mpp is None:
        return {}
    mpp = plane.mpp * pixel
    return {
        "PhysicalSizeX": mpp,
        "PhysicalSizeY": mpp,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeYUnit": "µm",
    }


def _resolution(plane: Plane, pixel: int) -> dict[str, Any]:
    if plane.mpp is None:
        return {}
    per_cm = 1e4 / (plane.mpp * pixel)
    return {"resolution": (per_cm, per_cm), "resolutionunit": "CENTIMETER"}
