"""What belongs to a result: its record, the H&E it was made from, more samples of it, the regions drawn on it.

case.ome.tif        the virtual IHC                       case.json                 its record
case.samples/       seedN.ome.tif, one for each sample    case.unreadable.geojson   what of the H&E could not be read
"""

from __future__ import annotations

import contextlib
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudiff.checkpoints import read_json
from miudiff.errors import CheckpointError, SlideError
from miudiff.formats.scale import COARSEST, FINEST, is_optical
from miudiff.images import OME, beside, stem
from miudiff.slides.reader import open_slide
from miudiff.slides.result import find_regions, is_file, places, regions_named
from miudiff.slides.slide import Slide

SAMPLE = re.compile(r"seed(\d+)\.ome\.tiff?")


@dataclass(frozen=True)
class Case:
    """A result, open, with what belongs to it.

    Attributes:
        result: The file of the virtual IHC.
        name: Its name without the ending.
        record: What its record says.
        mpp: Micrometres per pixel of level 0, None if nobody states them.
        mpp_source: Who states them.
        virtual: The virtual IHC.
        samples: More translations of the same H&E, by their names; the result itself is none of them.
        he: The H&E; None if it is gone.
        roi: The regions that the result was made of, in a file; None if it is of the whole slide.
        notes: What is missing, a sentence each.
    """

    result: Path
    name: str
    record: Mapping[str, Any]
    mpp: float | None
    mpp_source: str
    virtual: Slide
    samples: Mapping[str, Slide]
    he: Slide | None
    roi: Path | None
    notes: tuple[str, ...]

    def beside(self, ending: str) -> Path:
        """The file of this case with an ending such as ".report.html"."""
        return beside(self.result, ending)

    @property
    def marker(self) -> str:
        """What was stained, by the record's name for it; "" if it does not say."""
        model = self.record.get("model")
        marker = model.get("marker") if isinstance(model, Mapping) else None
        return marker if isinstance(marker, str) else ""


@contextlib.contextmanager
def open_case(result: Path, say: Callable[[str], None], roi: Path | None = None) -> Iterator[Case]:
    """Open a result and what belongs to it; an H&E or sample that is gone is said.

    Args:
        roi: Regions to measure; None takes those that the record names.

    Raises:
        SlideError: No record, a result that cannot be read, a sample or an H&E of another size.
    """
    if not result.name.lower().endswith(OME):
        raise SlideError(f"{result}: expected a translated slide, NAME.ome.tif with its record NAME.json")
    name, record_path = stem(result), beside(result, ".json")
    with contextlib.ExitStack() as stack:
        virtual = stack.enter_context(open_slide(result))
        record = _record(record_path, result)
        for side, size in (("width", virtual.width), ("height", virtual.height)):
            if record.get(side, size) != size:
                raise SlideError(
                    f"{result}: {virtual.width} x {virtual.height} pixels, its record {record_path.name} says "
                    f"{reprlib.repr(record.get('width'))} x {reprlib.repr(record.get('height'))}; make the result again"
                )
        notes: list[str] = []
        he = _open_he(record, result, notes)
        if he is not None:
            stack.enter_context(he)
            if (he.width, he.height) != (virtual.width, virtual.height):
                raise SlideError(
                    f"{he.path}: {he.width} x {he.height} pixels, {result.name} that was made of it has "
                    f"{virtual.width} x {virtual.height}; put the slide back that the record {record_path.name} means"
                )
        samples = {}
        for path in _sample_files(result, record, notes):
            sample = samples[path.name] = stack.enter_context(open_slide(path))
            if (sample.width, sample.height) != (virtual.width, virtual.height):
                raise SlideError(
                    f"{path}: {sample.width} x {sample.height} pixels, expected {virtual.width} x {virtual.height} as "
                    f"{result.name}; remove it or make it again"
                )
        mpp, source = _scale(record, record_path, virtual)
        for note in notes:
            say(note)
        roi = roi or _regions(record, result, record_path)
        yield Case(result, name, record, mpp, source, virtual, samples, he, roi, tuple(notes))


def _record(path: Path, result: Path) -> dict[str, Any]:
    if not path.is_file():
        raise SlideError(
            f"{path}: no such file; the record of {result.name} has to lie beside it, as the translation wrote it"
        )
    try:
        record = read_json(path)
    except CheckpointError as error:
        raise SlideError(f"{error}; it is the record of {result.name}: translate the slide again") from error
    if "miudiff" not in record or "source" not in record:
        raise SlideError(
            f"{path}: is no record of a translated slide (no miudiff, no source in it); expected the file that the "
            f"translation wrote beside {result.name}"
        )
    if not isinstance(record["source"], str | None):
        raise SlideError(
            f"{path}: source {reprlib.repr(record['source'])}, expected the name of a file; translate the slide again"
        )
    return record


def _scale(record: Mapping[str, Any], path: Path, virtual: Slide) -> tuple[float | None, str]:
    mpp = record.get("mpp")
    if mpp is None:
        return virtual.mpp, virtual.mpp_source
    if not is_optical(mpp):
        raise SlideError(
            f"{path}: mpp {reprlib.repr(mpp)}, expected {FINEST:g} to {COARSEST:g} micrometres per pixel; "
            "translate the slide again"
        )
    return float(mpp), str(record.get("mpp_source") or "the record")


def _open_he(record: Mapping[str, Any], result: Path, notes: list[str]) -> Slide | None:
    source = record["source"]
    there = [path for path in places(source, result) if is_file(path)] if source else []
    found = next((path for path in there if not path.samefile(result)), None)
    without = "the report has no H&E, and tissue is found on the virtual stain"
    if found is None:
        notes.append(f"{source}: the H&E is not there; {without}")
        return None
    try:
        return open_slide(found)
    except SlideError as error:
        notes.append(f"{error}; {without}")
        return None


def _sample_files(result: Path, record: Mapping[str, Any], notes: list[str]) -> list[Path]:
    """The further samples, by their seeds; those that the record names and that are gone are noted."""
    folder = beside(result, ".samples")
    there = [(int(m[1]), p) for p in folder.glob("seed*") if (m := SAMPLE.fullmatch(p.name))]
    named = record.get("samples")
    wanted = {Path(str(each)).name for each in named} if isinstance(named, list) else set()
    gone = sorted(wanted - {path.name for _, path in there} - {result.name})
    if gone:
        notes.append(f"{folder}: {', '.join(gone)} of the record not there; measured without")
    return [path for _, path in sorted(there)]


def _regions(record: Mapping[str, Any], result: Path, path: Path) -> Path | None:
    """The regions that the result was made of; None for a whole slide."""
    named = regions_named(record)
    found = find_regions(record, result)
    if named and found is None:
        changed = ", or has changed" if record.get("regions_sha256") else ""
        raise SlideError(
            f"{named}: no such file{changed}; {path.name} says that the slide was translated in these regions "
            "only, so put the file back or give the regions"
        )
    return found
