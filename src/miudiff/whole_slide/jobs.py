"""Which slides a command names, and where their results go."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from miudiff.errors import DataError
from miudiff.images import OME, SUFFIXES, stem
from miudiff.slides.encoding import Compression
from miudiff.slides.reader import is_slide
from miudiff.translation import without_results
from miudiff.whole_slide.table import read_table


@dataclass(frozen=True)
class SlideJob:
    """One slide to translate.

    Attributes:
        mpp: Micrometres per pixel where the file states none.
        roi: GeoJSON of the regions asked for.
    """

    source: Path
    target: Path
    mpp: float | None = None
    roi: Path | None = None


@dataclass(frozen=True)
class SlideOptions:
    """What holds for every slide of a command.

    Attributes:
        mark_unreadable: Hatch what cannot be read and go on, instead of stopping at it.
        samples: Translations, of seeds that follow each other; the first is the result.
        threads: Tiles of the result are made by so many at once.
        report: Write a report beside each result.
        zarr: Write the result as OME-Zarr as well.
        preview: Stain what about two minutes suffice for.
        strict: A slide that the guards find something wrong with fails, before it is stained.
    """

    seed: int = 0
    mark_unreadable: bool = False
    compression: Compression = field(default_factory=Compression)
    samples: int = 1
    overwrite: bool = False
    threads: int = 2
    report: bool = True
    zarr: bool = False
    preview: bool = False
    strict: bool = False


def slide_jobs(source: Path, target: Path, mpp: float | None, roi: Path | None) -> list[SlideJob]:
    """The slides that `source` names: a slide, a folder of slides, or a CSV with a column `slide`, and `mpp` and `roi` if wanted.

    Raises:
        DataError: A CSV that cannot be followed, two slides of one name, or a target that cannot be one.
    """
    if source.is_dir():
        found = sorted(
            p for p in source.iterdir() if not p.name.startswith(".") and p.is_file() and is_slide(p)
        )
        jobs = [
            SlideJob(path, target / f"{stem(path)}.ome.tif", mpp, roi)
            for path in without_results(source, found)
        ]
    elif source.suffix.lower() == ".csv":
        jobs = _jobs_of_table(source, target, mpp, roi)
    elif source.is_file() and (is_slide(source) or _wants_pyramid(source, target)):
        jobs = [SlideJob(source, _one_target(source, target), mpp, roi)]
    else:
        return []
    if len(jobs) > 1 and roi is not None:
        raise DataError(
            f"{roi}: one --roi cannot be of {len(jobs)} slides; name them in a CSV with a column 'roi'"
        )
    named = Counter(job.target for job in jobs)
    for job in jobs:
        if named[job.target] > 1:
            raise DataError(
                f"{job.source}: another slide gives {job.target.name} as well; rename one of them"
            )
        there = all(
            os.path.exists(path) for path in (job.target, job.source)
        )  # false where a name is too long
        if there and job.target.samefile(job.source):
            raise DataError(
                f"{job.target}: is the source itself; give another target, so that the H&E slide is kept"
            )
    return jobs


def _wants_pyramid(source: Path, target: Path) -> bool:
    """A plain image whose result is asked for as a pyramid; an OME-TIFF that is small keeps being an image."""
    plain = source.suffix.lower() in SUFFIXES and not source.name.lower().endswith(OME)
    return plain and target.name.lower().endswith(OME)


def _one_target(source: Path, target: Path) -> Path:
    if target.is_dir() or not target.suffix:
        return target / f"{stem(source)}.ome.tif"
    if not target.name.lower().endswith(OME):
        raise DataError(
            f"{target}: a slide's result is a pyramid, expected a name ending in .ome.tif, or a folder"
        )
    return target


def _jobs_of_table(table: Path, target: Path, mpp: float | None, roi: Path | None) -> list[SlideJob]:
    entries = read_table(table)
    if target.exists() and not target.is_dir():
        raise DataError(f"{target}: is a file, expected a folder for the slides of {table}")
    return [
        SlideJob(
            entry.slide,
            target / f"{stem(entry.slide)}.ome.tif",
            mpp if entry.mpp is None else entry.mpp,
            entry.roi or roi,
        )
        for entry in entries
    ]
