"""The folder that the results of images share: its record of how each was made, and which processes are at work in it.

`translation.json` holds the settings of each run, and for each image which run made it and of what source.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, StrictInt, ValidationError

from miudiff.checkpoints import read_json, write_json
from miudiff.errors import BusyError, CheckpointError, DataError
from miudiff.locks import is_held, lock
from miudiff.provenance import SOURCE, difference, source_digest

RECORD = "translation.json"
NOTICE = "virtual stain: for research use only, not for diagnosis"
FREE = ("threads",)  # settings that may differ between a result and the command that finds it


def check_writable(folder: Path) -> None:
    """Tell a folder that cannot be written before minutes are spent on what should lie in it.

    Raises:
        DataError: It cannot be written.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise DataError(f"{folder}: cannot be written ({nearest} is a file)")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise DataError(
            f"{folder}: cannot be written (no permission to write in {nearest}); give another target"
        )


def check_record(path: Path) -> None:
    """Tell a damaged or foreign record before images are stained whose entries could not be written into it.

    Raises:
        DataError: It is no record of `miudiff translate`.
    """
    if path.exists():
        _read(path)


def results_in(folder: Path) -> frozenset[str]:
    """The names of the images that a folder's record tells of."""
    try:
        return frozenset(_read(folder / RECORD).images)
    except DataError:  # most often there is none
        return frozenset()


def refuse_other(path: Path, settings: dict[str, Any], pairs: Sequence[tuple[Path, Path]]) -> None:
    """Refuse results that are there and were made with other settings or of another source."""
    if not path.exists():
        return
    record = _read(path)
    for source, result in pairs:
        entry = record.images.get(result.name)
        if entry is None or not result.exists():
            continue  # somebody's own file is skipped like a finished one
        made_of = {key: (entry.model_extra or {}).get(key) for key in ("source", SOURCE)}
        now = settings | {"source": str(source), SOURCE: source_digest(source)}
        if changed := difference(now, record.runs[entry.run] | made_of, (*FREE, "source")):
            raise DataError(
                f"{result}: was made with {changed} ({path.name}); give another target, or --overwrite"
            )


def earlier_run(
    path: Path, settings: dict[str, Any], pairs: Sequence[tuple[Path, Path]], key: str
) -> dict[str, Any] | None:
    """`settings` with the `key` that results which are there have, if they are alike in all else; None without such results."""
    record = _read(path) if path.exists() else _Record()
    for _, result in pairs:
        entry = record.images.get(result.name)
        if entry and result.exists() and not difference(settings, record.runs[entry.run], (*FREE, key)):
            return settings | {key: record.runs[entry.run].get(key)}
    return None


def announced(
    folder: Path, settings: dict[str, Any], names: Sequence[str], key: str
) -> dict[str, Any] | None:
    """`settings` with the `key` of another process that is making some of these, if its are alike in all else; None without one."""
    for path in folder.glob(".translation-*.lock"):
        shared, theirs = _rival(path, names) if is_held(path) else ([], {})
        if shared and not difference(settings, theirs, (*FREE, key)):
            return settings | {key: theirs.get(key)}
    return None


def note(path: Path, settings: dict[str, Any], name: str, entry: dict[str, Any]) -> None:
    """Note how the result `name` is made: its entry names one of the `runs`, since files of several can share a folder."""
    before = _read(path) if path.exists() else _Record()
    runs = before.runs if settings in before.runs else [*before.runs, settings]
    images = {other: known.model_dump() for other, known in before.images.items()}
    images[name] = entry | {"run": runs.index(settings)}
    write_json(path, {"notice": NOTICE, "runs": runs, "images": images})


class _Entry(BaseModel):
    """How one image was made: which of the runs made it, its source and that one's scale."""

    model_config = ConfigDict(extra="allow")
    run: StrictInt


class _Record(BaseModel):
    """What `RECORD` holds: settings of runs, and for each image which of them made it."""

    runs: list[dict[str, Any]] = []
    images: dict[str, _Entry] = {}


def _read(path: Path) -> _Record:
    try:
        record = _Record.model_validate(read_json(path))
    except (ValidationError, CheckpointError) as error:
        raise DataError(
            f"{path}: is no record of `miudiff translate`; move it away, or give another target"
        ) from error
    if any(entry.run not in range(len(record.runs)) for entry in record.images.values()):
        raise DataError(f"{path}: names runs that it does not hold; move it away, or give another target")
    return record


@contextlib.contextmanager
def announce(folder: Path, settings: dict[str, Any], names: Sequence[str]) -> Iterator[None]:
    """Tell other processes what this one makes in a folder, for as long as it is at work.

    Raises:
        BusyError: Another process is making one of these with other settings.
    """
    mine = folder / f".translation-{socket.gethostname()}-{os.getpid()}.lock"
    with contextlib.ExitStack() as stack:
        with lock(folder / ".translation.lock", wait=True):  # one looks and announces at a time
            for other in folder.glob(".translation-*.lock"):
                if other != mine and is_held(other):
                    _refuse_rival(other, settings, names)
                elif other != mine:
                    other.unlink(missing_ok=True)  # of a process that was killed
            mine.unlink(missing_ok=True)  # of a killed process that had this one's number
            file = stack.enter_context(lock(mine))
            assert file is not None  # no other process has this one's number
            file.write(json.dumps({"settings": settings, "names": list(names)}))
            file.flush()
        yield


def _refuse_rival(path: Path, settings: dict[str, Any], names: Sequence[str]) -> None:
    shared, theirs = _rival(path, names)
    if shared and (changed := difference(settings, theirs, FREE)):
        raise BusyError(
            f"{path.parent / shared[0]}: another process is making it with {changed}; wait for it, or give another target"
        )


def _rival(path: Path, names: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Which of these results the process that announced itself in `path` makes, and its settings; none where that cannot be read."""
    try:
        other = read_json(path)
        return sorted({*names} & {*other["names"]}), dict(other["settings"])
    except (CheckpointError, KeyError, TypeError, ValueError):
        return [], {}
