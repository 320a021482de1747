"""How a result is made, as its record says it, and the folder of what is unfinished."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from miudiff import __version__
from miudiff.checkpoints import read_json, write_json
from miudiff.config import check_mpp
from miudiff.errors import BusyError, CheckpointError, DataError, SlideError
from miudiff.images import beside, same_scale, write_text
from miudiff.locks import lock, lock_of
from miudiff.provenance import SOURCE, difference, settings_digest, source_digest
from miudiff.result_folder import NOTICE
from miudiff.slides.encoding import Compression
from miudiff.slides.reader import Slide
from miudiff.slides.regions import Feature, Regions, write_features
from miudiff.slides.result import ROI, previewed
from miudiff.slides.runner import clear
from miudiff.slides.sight import Rectangle
from miudiff.stainer import VirtualStainer
from miudiff.whole_slide.jobs import SlideJob, SlideOptions

FAILURES = "failures.csv"
HEADER = ("slide", "error")
WORK = ".work"
UNREADABLE = ".unreadable.geojson"
BESIDE = (".ome.tif.work", ".uncertainty.ome.tif", UNREADABLE)  # the longest names
LONGEST_NAME = 255  # bytes, of nearly every file system


def record_of(
    stainer: VirtualStainer, slide: Slide, job: SlideJob, mpp: float | None, told: str, options: SlideOptions
) -> dict[str, Any]:
    """How a result is made, as JSON gives it back; whatever differs in it makes another result."""
    return {
        "notice": NOTICE,
        "miudiff": __version__,
        "preview": True if options.preview else None,
        "source": str(job.source),
        SOURCE: source_digest(job.source, slide.fingerprint),
        "width": slide.width,
        "height": slide.height,
        "format": slide.format,
        "mpp": mpp,
        "mpp_source": told,
        "method": stainer.name,
        "config": stainer.config.model_dump(mode="json") if stainer.config else {},
        "model": {
            "name": stainer.model.card.name,
            "identity": stainer.model.identity,
            "marker": stainer.marker,
            "mpp": stainer.model.card.mpp,
        },
        "precision": stainer.placement.precision,
        "threads": stainer.placement.threads,
        "seed": options.seed,
        "mode": stainer.mode,
        "glass": stainer.glass,
        "normalise": None if stainer.normalise == "off" else "section",
        "compression": _compression(options.compression),
        "regions": str(job.roi) if job.roi else None,
        "regions_sha256": _digest(job.roi) if job.roi else None,
        "mark_unreadable": options.mark_unreadable,
        "samples": [],
    }


def _digest(roi: Path) -> str | None:
    """Of the regions' file; None where `read_regions` will say what is wrong with it."""
    try:
        return source_digest(roi)[:16] if roi.is_file() else None
    except (OSError, DataError):
        return None


def _compression(how: Compression) -> str:
    return f"jpeg {how.quality}" if how.kind == "jpeg" else how.kind


# What may differ between a result, or what was begun of it, and the command that finds it.
_FREE = (
    "source",
    "regions",
    "samples",
    "mpp_source",
    "unreadable",
    "tissue_share",
    "seconds",
    "notice",
    "threads",
    "previewed",
    "findings",
    "dyes",  # follow from the source and the settings
)
_BEGUN = ("previewed", "dyes")  # what was found once, and is kept by whoever goes on


def refuse_other(path: Path, record: dict[str, Any], target: Path) -> None:
    """Refuse to take a result of other settings, or of another source, for this command's."""
    try:
        before = read_json(path)
    except CheckpointError:
        return  # somebody's own file is skipped like a finished one
    if before.get("preview") and not record.get("preview"):
        raise DataError(
            f"{target}: holds a preview ({previewed(before)}); give another target, or --overwrite to stain the whole slide"
        )
    if changed := difference(record, before, _FREE):
        raise DataError(
            f"{target}: was made with {changed} ({path.name}); give another target, or --overwrite"
        )


def identity_of(record: dict[str, Any]) -> str:
    """What a result's bytes follow from, as a digest."""
    return settings_digest(record, [key for key in _FREE if key not in _BEGUN])


def refuse_long_name(target: Path) -> None:
    """Refuse a name that leaves no room for those of the files beside the result, before any work.

    Raises:
        DataError: A name of more than 255 bytes would be needed.
    """
    longest = max(len(os.fsencode(beside(target, ending).name)) for ending in BESIDE)
    if longest > LONGEST_NAME:
        raise DataError(
            f"{target.name}: files beside it would have names of {longest} bytes, expected at most {LONGEST_NAME}; rename the slide"
        )


def work_folder(target: Path) -> Path:
    return target.with_name(f"{target.name}{WORK}")


@contextlib.contextmanager
def locked_work_folder(target: Path) -> Iterator[Path]:
    """The folder of what is unfinished, for this process alone; removed by `clear` before it is let go.

    Raises:
        BusyError: Another process is translating this slide.
        DataError: It cannot be written.
    """
    folder = work_folder(target)
    with lock(folder / "lock") as held:
        if held is None:
            raise BusyError(f"{folder}: another process is translating this slide; wait for it, or stop it")
        yield folder


def begin(folder: Path, record: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """Note in a work folder what is made in it; work of other settings or of another source is refused, or begun anew.

    Returns:
        What work that goes on had found: what of the slide a preview chose, and the section's dyes.

    Raises:
        DataError: It holds other work, or cannot be written.
    """
    path, kept = folder / "job.json", dict[str, Any]()
    if path.exists():
        try:
            before = read_json(path)
            changed = difference(record, before, _FREE)
            kept = {key: before[key] for key in _BEGUN if before.get(key)}
            if before.get("preview") and not record.get("preview"):
                changed = "--preview"
        except CheckpointError as error:
            changed = f"a record that cannot be read ({error})"
        if changed and not overwrite:
            raise DataError(f"{folder}: holds work begun with {changed}; give another target, or --overwrite")
        if changed:
            kept = {}
            for part in ("rows", "blocks"):
                clear(folder / part)
    write_json(path, record | kept)
    return kept


def keep(folder: Path, record: dict[str, Any]) -> None:
    """Note what was found of a slide, before anything is made by it."""
    write_json(folder / "job.json", record)


def write_places(target: Path, unreadable: Sequence[Rectangle], regions: Regions | None) -> None:
    """Write where the slide could not be read, and the regions that were asked for, beside a result, for QuPath and the viewer."""
    outlines = [
        [(at.x, at.y), (at.x + at.width, at.y), (at.x + at.width, at.y + at.height), (at.x, at.y + at.height)]
        for at in unreadable
    ]
    found = [Feature("unreadable", [[np.array(outline, float)]]) for outline in outlines]
    asked = [Feature(area.name, [area.rings]) for area in regions.polygons] if regions else []
    for ending, features in ((UNREADABLE, found), (ROI, asked)):
        if features:
            write_features(beside(target, ending), features)
        else:
            beside(target, ending).unlink(missing_ok=True)


def write_failures(path: Path, failed: Sequence[tuple[Path, str]], tried: Collection[Path]) -> None:
    """Keep the table of the slides that failed; none left, no file.

    Args:
        tried: The slides whose earlier rows no longer hold; those of other slides are another process's, and stay.
    """
    with lock(lock_of(path), wait=True):
        rows = [*_other_failures(path, {str(slide) for slide in tried}), *((str(a), b) for a, b in failed)]
        if not rows:
            path.unlink(missing_ok=True)
            return
        text = io.StringIO()
        csv.writer(text).writerows([HEADER, *rows])
        write_text(path, text.getvalue())


def _other_failures(path: Path, tried: Collection[str]) -> list[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [tuple(row) for row in csv.reader(file)]
    except (OSError, ValueError, csv.Error):  # none yet, or none of ours
        return []
    kept = [row for row in rows if len(row) == 2 and row != HEADER and row[0] not in tried]
    return [(slide, error) for slide, error in kept if os.path.exists(slide)]


def scale_of(slide: Slide, given: float | None, model: float | None) -> tuple[float | None, str]:
    """Micrometres per pixel of level 0 and how they are known.

    Raises:
        SlideError: Unknown, though the model has a scale.
    """
    if given is not None:
        check_mpp(given)
        differs = slide.mpp is not None and not same_scale(slide.mpp, given)
        return given, f"{given:g} um/px as given" + (f" (the file states {slide.mpp:g})" if differs else "")
    if slide.mpp is not None:
        return slide.mpp, f"{slide.mpp:.4g} um/px from {slide.mpp_source}"
    if model is None:
        return None, "no scale"
    power = f"; its objective of {slide.objective} is no scale" if slide.objective else ""
    raise SlideError(
        f"{slide.path}: states no micrometres per pixel{power}; the model works at {model:g}: give --mpp, or a column 'mpp' in a CSV of slides"
    )
