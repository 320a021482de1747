"""What the viewer shows: virtual IHC images with the H&E image, the record and the other files that belong to each.

A result's record names its source: `NAME.json` beside `NAME.ome.tif` for a slide, or the entry of a small image in the
`translation.json` of its folder. A source that is gone is told on the page; the result is still shown.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miudiff.checkpoints import read_json
from miudiff.errors import CheckpointError, DataError
from miudiff.images import SLIDE_SUFFIXES, SUFFIXES, beside, stem

FOLDER_RECORD = "translation.json"  # as translation.py calls it, which pulls in every network
FAILURES = "failures.csv"
ROWS = 1000  # of a table of failures that are shown
TIFF_ENDINGS = (".ome.tif", ".ome.tiff", ".tif", ".tiff")
OVERLAY = ".uncertainty"


@dataclass(frozen=True)
class Case:
    """A virtual IHC image and what belongs to it.

    Attributes:
        name: What the page calls it.
        he: Its source; None if it is not known or gone, see `missing`.
        ihc: The virtual IHC image.
        record: The JSON file that says how it was made.
        real: A real IHC image of the same field, to compare with.
        missing: Why there is no `he`.
        facts: What the record says of it.
    """

    name: str
    he: Path | None
    ihc: Path
    record: Path | None = None
    real: Path | None = None
    missing: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def report(self) -> Path | None:
        return _beside(self.ihc, ".report.html")

    @property
    def uncertainty(self) -> Path | None:
        return _beside(self.ihc, OVERLAY + ".ome.tif", OVERLAY + ".png")

    @property
    def unreadable(self) -> Path | None:
        return _beside(self.ihc, ".unreadable.geojson")


def find_cases(he: Path | None, ihc: Path) -> list[Case]:
    """The cases that two files, one result or a folder of results are.

    Args:
        he: The H&E image; or a folder that holds sources by the names of their results; None takes what the records name.
        ihc: A virtual IHC image, or a folder of them.

    Raises:
        DataError: Nothing there, or nothing that fits together.
    """
    for path in (he, ihc):
        if path is not None and not path.exists():
            raise DataError(f"{path}: no such file or folder")
    if ihc.is_dir():
        if he is not None and not he.is_dir():
            raise DataError(
                f"{ihc}: is a folder, expected the virtual IHC of {he}; give one file, or the folder alone"
            )
        return _in_folder(he, ihc)
    if he is not None and not he.is_dir():
        if he.samefile(ihc):
            raise DataError(f"{ihc}: was given as H&E and as IHC, expected two files")
        record, facts, _ = _record_of(ihc, _FolderRecord(ihc.parent))
        return [Case(stem(ihc), he, ihc, record, facts=facts)]
    return [_case(he, ihc, _FolderRecord(ihc.parent))]


def read_failures(folder: Path) -> list[list[str]]:
    """The rows of a folder's table of failures, its header first; none if there is no such table.

    Raises:
        DataError: It cannot be read.
    """
    path = folder / FAILURES
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [row for row, _ in zip(csv.reader(file), range(ROWS)) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _in_folder(he: Path | None, folder: Path) -> list[Case]:
    images = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    shared = _FolderRecord(folder)
    cases = [_case(he, path, shared) for path in images if OVERLAY not in path.name]
    known = [case for case in cases if case.record is not None or case.he is not None]
    if not known:
        found = f"{len(images)} images, none with a record" if images else "no images"
        raise DataError(
            f"{folder}: {found} (NAME.json or {FOLDER_RECORD}), expected results of miudiff; "
            "give the H&E and the IHC file, or a folder of each"
        )
    return known


def _case(folder: Path | None, ihc: Path, shared: _FolderRecord) -> Case:
    """A result whose source its record names, or that lies under its name in a folder of sources."""
    record, facts, why = _record_of(ihc, shared)
    named = facts.get("source")
    places: list[Path] = []
    if isinstance(named, str) and named:
        places += [Path(named)]
        if record is not None:
            places += [record.parent / named, record.parent / Path(named).name]
        if folder is not None:
            places.append(folder / Path(named).name)
    if folder is not None:
        places += [folder / ihc.name]
        places += [folder / (stem(ihc) + ending) for ending in (*SLIDE_SUFFIXES, *TIFF_ENDINGS, *SUFFIXES)]
    # a result often has its source's name, so that it could be taken for its own source
    he = next((path for path in places if path.is_file() and not path.samefile(ihc)), None)
    if he is None and not why:
        told = f"the record names {named}, which is not there" if named else "no record names it"
        why = f"{told}; give both files to see them side by side"
    return Case(stem(ihc), he, ihc, record, missing="" if he else why, facts=facts)


class _FolderRecord:
    """What the record of a folder of small images says of each; read once for all of them."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FOLDER_RECORD
        self.content: Mapping[str, Any] = {}
        self.why = ""
        if self.path.is_file():
            try:
                self.content = read_json(self.path)
            except CheckpointError as error:
                self.why = str(error)

    def of(self, name: str) -> Mapping[str, Any] | None:
        """Settings and source of an image; None for one that somebody else laid there."""
        try:
            entry = self.content["images"][name]
            return {**self.content["runs"][entry["run"]], **entry}
        except (KeyError, IndexError, TypeError):
            return None


def _record_of(ihc: Path, shared: _FolderRecord) -> tuple[Path | None, Mapping[str, Any], str]:
    """A result's record, what it says, and why that cannot be read."""
    own = beside(ihc, ".json")
    if own.is_file() and ihc.name.lower().endswith(TIFF_ENDINGS):
        try:
            facts = read_json(own)
        except CheckpointError as error:
            return own, {}, str(error)
        if "miudiff" in facts:
            return own, facts, ""
    if shared.why:
        return shared.path, {}, shared.why
    entry = shared.of(ihc.name)
    return (None, {}, "") if entry is None else (shared.path, entry, "")


def _beside(ihc: Path, *endings: str) -> Path | None:
    places: Sequence[Path] = [beside(ihc, ending) for ending in endings]
    return next((path for path in places if path.is_file()), None)
