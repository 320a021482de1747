"""What lies beside a result and belongs to it: the regions it was made of, and its uncertainty as an overlay.

The report and the viewer both go by this file, so what one writes the other reads.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from miudiff.images import Pixels, beside
from miudiff.stains import Floats

ROI = ".roi.geojson"  # the regions that were translated, as they were at that time
UNCERTAINTY = ".uncertainty.ome.tif"


def uncertainty_pixels(values: Floats, most: float) -> Pixels:
    """Uncertainty [H, W] as grey, uint8 [H, W, 3]: black is certain or no tissue (NaN), white is `most` and beyond."""
    share = np.clip(np.nan_to_num(values, nan=0.0) / most, 0, 1)
    return np.rint(255 * share).astype(np.uint8)[..., None].repeat(3, axis=-1)


def uncertainty_share(pixels: Pixels) -> Floats:
    """What `uncertainty_pixels` made its pixels of, as a share [H, W] of `most`; 0 where there is no tissue."""
    return pixels.max(axis=-1) / 255


def regions_named(record: Mapping[str, Any]) -> str:
    """The file of the regions that a result was made of, as its record names it; "" for a whole slide."""
    named = record.get("regions") or record.get("regions_file")
    return named if isinstance(named, str) else ""


def previewed(record: Mapping[str, Any]) -> str:
    """What a preview stained, in words; "" where a record is not of one."""
    if record.get("preview") is not True:
        return ""
    told = record.get("previewed")
    count, of, steps = (
        told.get(key) if isinstance(told, Mapping) else None for key in ("windows", "of", "steps")
    )
    if type(count) is not int or type(of) is not int or type(steps) is not int:
        return "parts of the slide, or few steps"
    return f"{count:,} of {of:,} windows in {steps:,} step{'s' if steps > 1 else ''}"


def is_file(path: Path) -> bool:
    """Whether a path is a file; one that a record names may be nothing that a file system takes."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def find_regions(
    record: Mapping[str, Any], result: Path, there: Callable[[Path], bool] = is_file
) -> Path | None:
    """The regions that a result was made of, if its record says that it was and the file is unchanged.

    Args:
        there: Which files may be taken.
    """
    named = regions_named(record)
    if not named:
        return None
    if there(own := beside(result, ROI)):
        return own
    digest = record.get("regions_sha256")
    found = (path for path in places(named, result) if there(path))
    return next((path for path in found if not digest or digest == _digest(path)), None)


def places(named: str, result: Path) -> list[Path]:
    """Where a file that a record names may be: as it is named, or moved together with the result."""
    return [Path(named), result.parent / named, result.parent / Path(named).name]


def _digest(path: Path) -> str:
    """As a record states it; "" for what cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return ""
