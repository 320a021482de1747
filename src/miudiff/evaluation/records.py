"""What records and names say of the images that are compared: the marker of each side, and the H&E behind a virtual stain.

`miudiff translate` writes `translation.json` beside images and `NAME.json` beside `NAME.ome.tif` of a slide. Images of other programs have
neither, and nothing is asked of them. What one side states for certain and the other contradicts is an error; where a folder's
name alone contradicts, it is a warning, since names are free.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudiff.checkpoints import read_json
from miudiff.errors import CheckpointError, DataError
from miudiff.evaluation.folders import Case
from miudiff.images import OME, beside
from miudiff.naming import markers_in, usual_marker

RECORD = "translation.json"
NEAR = 3  # folders whose names may state a marker, as in HER2/TrainValAB/valB


@dataclass(frozen=True)
class Made:
    """What a record says of one virtual image."""

    record: Path
    marker: str | None
    source: str | None


def compare_records(cases: Sequence[Case], reference: Path) -> tuple[str, ...]:
    """Warnings of what the records and names of both sides say against comparing them.

    Raises:
        DataError: Records of both sides state two markers, or the reference is the H&E that the images were made from.
    """
    virtual, odd = _records([case.generated for case in cases])
    references, _ = _records([case.real for case in cases])
    for case in cases:
        if made := virtual.get(case.generated):
            _refuse_source(case, made)
        if made and (other := references.get(case.real)):
            _refuse_other_marker(case, made, other)
    warnings = [*odd]
    markers = Counter(made.marker for made in virtual.values() if made.marker)
    if len(markers) > 1:
        counted = ", ".join(f"{marker} ({count})" for marker, count in sorted(markers.items()))
        warnings.append(
            f"{cases[0].generated.parent}: holds several markers, {counted}; score each by itself"
        )
    if references:
        warnings.append(
            f"{reference}: its images are virtual stains themselves by their record, expected true IHC"
        )
    elif said := _named_marker(reference, [case.real for case in cases]):
        marker, where = said
        if others := sorted(set(markers) - {marker}):
            record = next(made.record for made in virtual.values() if made.marker == others[0])
            warnings.append(
                f"{cases[0].generated.parent}: shows {others[0]} ({record.name}), but {reference} is of {marker} "
                f"by its name ({where}); scores across two markers say nothing of a virtual stain"
            )
    return tuple(warnings)


def _refuse_source(case: Case, made: Made) -> None:
    if made.source is None:
        return
    for source in (Path(made.source), made.record.parent / made.source):
        try:
            same = source.samefile(case.real)
        except (OSError, ValueError):
            continue
        if same:
            raise DataError(
                f"{case.real}: is the H&E that {case.generated} was made from ({made.record.name}), "
                "expected its true IHC; give the H&E with --source"
            )


def _refuse_other_marker(case: Case, made: Made, other: Made) -> None:
    if made.marker and other.marker and made.marker != other.marker:
        raise DataError(
            f"{case.generated}: shows {made.marker} ({made.record}), but its partner {case.real} shows {other.marker} "
            f"({other.record}); give a reference of {made.marker}"
        )


def _named_marker(folder: Path, files: Sequence[Path]) -> tuple[str, str] | None:
    """The one marker that the nearest folder of a telling name, or else every file's name, states, and that name."""
    for path in (Path(os.path.abspath(folder)), folder.resolve()):
        for name in [path.name, *(parent.name for parent in path.parents)][:NEAR]:
            if found := markers_in(name):
                return (found.pop(), name) if len(found) == 1 else None
    stated = [markers_in(file.stem) for file in files]
    if stated and all(found == stated[0] and len(found) == 1 for found in stated):
        return stated[0].pop(), files[0].name
    return None


def _records(files: Sequence[Path]) -> tuple[dict[Path, Made], list[str]]:
    """What is recorded of each file, and a warning for a record that cannot be understood."""
    found: dict[Path, Made] = {}
    try:
        of_folder = dict(_of_folder(files[0].parent / RECORD)) if files else {}
        odd = []
    except CheckpointError as error:
        of_folder = {}
        odd = [f"{error}; which marker its images show is not known"]
    for file in files:
        slide = file.name.lower().endswith(OME)
        made = of_folder.get(file.name) or (_of_slide(beside(file, ".json")) if slide else None)
        if made is not None:
            found[file] = made
    return found, odd


def _of_folder(path: Path) -> Iterator[tuple[str, Made]]:
    record = _read(path)
    if record is None:
        return
    runs, images = record.get("runs", []), record.get("images", {})
    if not isinstance(runs, list) or not isinstance(images, dict):
        raise CheckpointError(f"{path}: is no record of `miudiff translate`, expected 'runs' and 'images'")
    for name, entry in images.items():
        number = entry.get("run") if isinstance(entry, dict) else None
        if type(number) is not int or not 0 <= number < len(runs) or not isinstance(runs[number], dict):
            raise CheckpointError(f"{path}: says of '{name[:80]}' no run that it holds")
        yield name, _made(path, runs[number].get("marker"), entry.get("source"))


def _of_slide(path: Path) -> Made | None:
    """What `NAME.json` says; somebody's own file of that name says nothing."""
    try:
        record = _read(path)
    except CheckpointError:
        return None
    model = record.get("model") if record else None
    if record is None or "notice" not in record or not isinstance(model, Mapping):
        return None
    return _made(path, model.get("marker"), record.get("source"))


def _made(path: Path, marker: Any, source: Any) -> Made:
    return Made(
        path,
        usual_marker(marker) if isinstance(marker, str) and marker else None,
        source if isinstance(source, str) else None,
    )


def _read(path: Path) -> dict[str, Any] | None:
    """A record; None where there is no regular file.

    Raises:
        CheckpointError: Not a JSON object.
    """
    try:
        return read_json(path) if path.is_file() else None
    except RecursionError as error:
        raise CheckpointError(f"{path}: is nested too deeply for a record") from error
    except OSError:
        return None
