"""What the viewer shows: virtual IHC images with the H&E image, the record and the other files that belong to each.

A result's record names its source: `NAME.json` beside `NAME.ome.tif` for a slide, or the entry of a small image in the
`translation.json` of its folder. A source that is gone is told on the page; the result is still shown.
"""

from __future__ import annotations

import csv
import io
import operator
import reprlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miudiff.checkpoints import read_json
from miudiff.errors import CheckpointError, DataError
from miudiff.images import SLIDE_SUFFIXES, SUFFIXES, beside, stem
from miudiff.slides.result import UNCERTAINTY, find_regions, is_file, places
from miudiff.viewer.roots import OUTSIDE, Roots

FOLDER_RECORD = "translation.json"  # as translation.py calls it, which pulls in every network
FAILURES = "failures.csv"
ROWS = 1000  # of a table of failures that are shown
TIFF_ENDINGS = (".ome.tif", ".ome.tiff", ".tif", ".tiff")
OVERLAY = ".uncertainty"  # no result of its own


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
        roots: Where its files may lie; None for the images above and the folder of `ihc`.
    """

    name: str
    he: Path | None
    ihc: Path
    record: Path | None = None
    real: Path | None = None
    missing: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    roots: Roots | None = None

    @property
    def allowed(self) -> Roots:
        """Where its files may lie."""
        return self.roots or Roots.of(self.ihc, self.he, self.real)

    @property
    def report(self) -> Path | None:
        return self._beside(".report.html")

    @property
    def uncertainty(self) -> Path | None:
        return self._beside(UNCERTAINTY, OVERLAY + ".png")

    @property
    def unreadable(self) -> Path | None:
        return self._beside(".unreadable.geojson")

    @property
    def regions(self) -> Path | None:
        """The regions that were translated; None for a whole slide, or if they are gone."""
        return find_regions(self.facts, self.ihc, self.allowed.there)

    def _beside(self, *endings: str) -> Path | None:
        allowed = self.allowed
        return next((path for end in endings if allowed.there(path := beside(self.ihc, end))), None)


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
    roots = Roots.of(ihc, he)
    if ihc.is_dir():
        if he is not None and not he.is_dir():
            raise DataError(
                f"{ihc}: is a folder, expected the virtual IHC of {he}; give one file, or the folder alone"
            )
        return _in_folder(he, ihc, roots)
    if he is not None and not he.is_dir():
        if he.samefile(ihc):
            raise DataError(f"{ihc}: was given as H&E and as IHC, expected two files")
        record, facts, _ = _record_of(ihc, _FolderRecord(ihc.parent, roots))
        return [Case(stem(ihc), he, ihc, record, facts=facts, roots=roots)]
    return [_case(he, ihc, _FolderRecord(ihc.parent, roots))]


def read_failures(folder: Path) -> list[list[str]]:
    """The rows of a folder's table of failures, its header first; none if there is no such table.

    Raises:
        DataError: It cannot be read.
    """
    path, roots = folder / FAILURES, Roots.of(folder)
    if not roots.there(path):
        return []
    try:
        text = io.StringIO(roots.read(path).decode(), newline="")
        return [row for row, _ in zip(csv.reader(text), range(ROWS)) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _in_folder(he: Path | None, folder: Path, roots: Roots) -> list[Case]:
    images = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and is_file(path)
    )
    shared = _FolderRecord(folder, roots)
    cases = [_case(he, path, shared) for path in images if not stem(path).endswith(OVERLAY)]
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
    candidates: list[Path] = []
    if isinstance(named, str) and named:
        candidates += places(named, ihc)
        if folder is not None:
            candidates.append(folder / Path(named).name)
    if folder is not None:
        candidates += [folder / ihc.name]
        candidates += [folder / (stem(ihc) + end) for end in (*SLIDE_SUFFIXES, *TIFF_ENDINGS, *SUFFIXES)]
    # a result often has its source's name, so that it could be taken for its own source
    found = [path for path in candidates if is_file(path) and not path.samefile(ihc)]
    he = next((path for path in found if shared.roots.there(path)), None)
    if he is None and not why:
        if found:
            why = (
                f"the record names {found[0]}, which {OUTSIDE}; give it, too: "
                f"miudiff view {shlex.quote(str(found[0]))} {shlex.quote(str(ihc))}"
            )
        else:
            name = named if isinstance(named, str) else reprlib.repr(named)
            told = f"the record names {name}, which is not there" if named else "no record names it"
            why = f"{told}; give both files to see them side by side"
    return Case(stem(ihc), he, ihc, record, missing="" if he else why, facts=facts, roots=shared.roots)


class _FolderRecord:
    """What the record of a folder of small images says of each; read once for all of them."""

    def __init__(self, folder: Path, roots: Roots) -> None:
        self.path, self.roots = folder / FOLDER_RECORD, roots
        self.content: Mapping[str, Any] = {}
        self.why = ""
        if is_file(self.path):
            try:
                self.content = _read_record(self.path, roots)
            except CheckpointError as error:
                self.why = str(error)

    def of(self, name: str) -> Mapping[str, Any] | None:
        """Settings and source of an image; None for one that somebody else laid there."""
        try:
            entry = self.content["images"][name]
            return {**self.content["runs"][operator.index(entry["run"])], **entry}
        except (KeyError, IndexError, TypeError):
            return None


def _read_record(path: Path, roots: Roots) -> dict[str, Any]:
    real = roots.real(path)
    if real is None:
        raise CheckpointError(f"{path}: {OUTSIDE}")
    return read_json(real)


def _record_of(ihc: Path, shared: _FolderRecord) -> tuple[Path | None, Mapping[str, Any], str]:
    """A result's record, what it says, and why that cannot be read."""
    own = beside(ihc, ".json")
    if is_file(own) and ihc.name.lower().endswith(TIFF_ENDINGS):
        try:
            facts = _read_record(own, shared.roots)
        except CheckpointError as error:
            return own, {}, str(error)
        if "miudiff" in facts:
            return own, facts, ""
    if shared.why:
        return shared.path, {}, shared.why
    entry = shared.of(ihc.name)
    return (None, {}, "") if entry is None else (shared.path, entry, "")
