"""A file or a folder of H&E images to virtual IHC, each result under its source's name.

Finished means renamed into place: what is there is whole, and the same command skips it and goes on. `translation.json` beside
the results says how each was made; one of other settings is not taken for this command's. `translation-steps.jsonl` has for each
image what guidance and refinement did in each step: [t, shift / noise, loss]. One bad file does not stop the rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from miudiff import __version__
from miudiff.checkpoints import append_json, read_json, write_json
from miudiff.errors import CheckpointError, DataError, MiudiffError
from miudiff.images import SUFFIXES, irregular, list_images, read_image, read_scale, same_scale, write_image
from miudiff.methods.sdedit import StepReport
from miudiff.progress import Progress, duration
from miudiff.slides.reader import is_slide
from miudiff.stainer import VirtualStainer

RECORD = "translation.json"
STEPS = "translation-steps.jsonl"
NOTICE = "virtual stain: for research use only, not for diagnosis"


@dataclass(frozen=True)
class Outcome:
    """What became of each source."""

    written: tuple[Path, ...]
    skipped: tuple[Path, ...]
    failed: tuple[tuple[Path, str], ...]

    def __add__(self, other: Outcome) -> Outcome:
        """What became of both's sources."""
        return Outcome(self.written + other.written, self.skipped + other.skipped, self.failed + other.failed)

    @property
    def exit_code(self) -> int:
        if not self.failed:
            return 0
        return 3 if self.written or self.skipped else 2


def plan(source: Path, target: Path) -> list[tuple[Path, Path]]:
    """(source file, target file) pairs: a folder keeps each name, a file goes to a file or into a folder.

    Raises:
        DataError: Nothing to translate, or a target that would overwrite its source.
    """
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if source.is_dir():
        if target.is_file():
            raise DataError(f"{target}: is a file, expected a folder for the images of {source}")
        pairs = [(path, target / path.name) for path in list_images(source) if not is_slide(path)]
    elif target.suffix.lower() in SUFFIXES and not target.is_dir():
        pairs = [(source, target)]
    elif target.suffix[1:].isalpha() and not target.exists():
        raise DataError(
            f"{target}: cannot write '{target.suffix}' files, expected one of {', '.join(SUFFIXES)}, or a folder that is there"
        )
    else:
        pairs = [(source, target / source.name)]
    for path, result in pairs:
        if result.exists() and result.samefile(path):
            raise DataError(
                f"{result}: is the source itself; give another target, so that the H&E image is kept"
            )
    return pairs


def has_images(source: Path) -> bool:
    """Whether a folder has images that are no slides."""
    return source.is_dir() and any(
        path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not is_slide(path)
        for path in source.iterdir()
    )


def translate_files(
    stainer: VirtualStainer,
    source: Path,
    target: Path,
    *,
    mpp: float | None,
    seed: int,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Translate every image of `source` into `target`.

    Args:
        mpp: Micrometres per pixel of the sources; None takes what a file states, or else its pixels as they are, and says so.

    Raises:
        DataError: Nothing to do, `target` holds results of other settings, or a result cannot be written: a full disk
            would fail each image that follows after all the work on it.
    """
    pairs = plan(source, target)
    for path in irregular(source) if source.is_dir() else ():
        say(f"left out: {path} is not a regular file")
    folder = pairs[0][1].parent
    settings = _settings(stainer, mpp, seed)
    _same_settings(folder / RECORD, settings, [p for _, p in pairs], overwrite)
    if overwrite or not all(result.exists() for _, result in pairs):
        _check_writable(folder)
    written: list[Path] = []
    skipped: list[Path] = []
    failed: list[tuple[Path, str]] = []
    began = time.monotonic()
    for number, (path, result) in enumerate(pairs, 1):
        if result.exists() and not overwrite:
            skipped.append(result)
            continue
        try:
            pixels = read_image(path)
            if result.suffix.lower() not in SUFFIXES:
                raise DataError(
                    f"{result}: cannot be written, expected one of {', '.join(SUFFIXES)}; name the target"
                )
            scale, told = _scale(path, mpp, stainer)
            rows, columns = stainer.working_size(pixels.shape[0], pixels.shape[1], scale)
            say(
                f"{path.name}: {pixels.shape[1]} x {pixels.shape[0]} pixels, {told}; {columns} x {rows} at the model's scale"
            )
            steps = _Steps(stainer.steps(rows, columns), Progress("steps", say))
            if stainer.reverse is not None:
                stainer.reverse.watch = steps
            ihc = stainer.translate(pixels, scale, seed, path.name)
        except MiudiffError as error:
            message = str(error) if str(path) in str(error) else f"{path}: {error}"
            failed.append((path, message))
            say(f"failed: {message}")
            continue
        _record(folder / RECORD, settings, result.name, {"source": str(path), "mpp": scale})
        append_json(folder / STEPS, {"image": result.name, "seed": seed, "steps": steps.log})
        write_image(result, ihc, scale)
        written.append(result)
        each = (time.monotonic() - began) / len(written)
        left = duration(each * (len(pairs) - number))
        say(f"{number}/{len(pairs)} {result}  {each:.0f} s an image, about {left} left")
    return Outcome(tuple(written), tuple(skipped), tuple(failed))


def _check_writable(folder: Path) -> None:
    """Tell a folder that cannot be written before minutes are spent on what should lie in it."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise DataError(f"{folder}: cannot be written ({nearest} is a file)")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise DataError(f"{folder}: cannot be written (no leave to write in {nearest}); give another target")


class _Steps:
    """Tells how far an image is, and keeps each step's (t, shift / noise, loss): a reverse process' `watch`."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.total, self.progress = total, progress
        self.log: list[tuple[int, float, float | None]] = []

    def __call__(self, report: StepReport) -> None:
        self.progress(len(self.log), self.total)
        ratio = 0.0 if report.ratio is None else float(report.ratio.mean())
        self.log.append((report.time, float(f"{ratio:.3g}"), report.loss))


def _scale(path: Path, mpp: float | None, stainer: VirtualStainer) -> tuple[float | None, str]:
    """The scale to use and how it is known."""
    stated = read_scale(path)
    model = stainer.model.card.mpp
    if mpp is not None:
        differs = stated is not None and not same_scale(stated, mpp)
        unused = "" if model else " (of no use: the model states no scale)"
        return mpp, f"{mpp:g} um/px as given" + (f" (the file states {stated:g})" if differs else "") + unused
    if stated is not None:
        return stated, f"{stated:g} um/px stated in the file"
    return (
        None,
        f"states no um/px: its pixels are used as they are, as if at the model's {model:g}; give --mpp if they are not"
        if model
        else "no scale",
    )


def _settings(stainer: VirtualStainer, mpp: float | None, seed: int) -> dict[str, Any]:
    return {
        "miudiff": __version__,
        "model": stainer.model.identity,
        "marker": stainer.marker,
        "mpp": mpp,
        "seed": seed,
        "glass": stainer.glass,
        "precision": stainer.placement.precision,
        "method": stainer.name,
        "config": stainer.config.model_dump(mode="json") if stainer.config else {},
    }  # values as JSON gives them back, to be compared


def _same_settings(path: Path, settings: dict[str, Any], results: Sequence[Path], overwrite: bool) -> None:
    if overwrite or not path.exists():
        return
    record = _read_record(path)
    for result in results:
        if result.name not in record.images or not result.exists():
            continue  # somebody's own file is skipped like a finished one
        before = record.runs[record.images[result.name]["run"]]
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            raise DataError(
                f"{result}: was made with another '{changed[0]}' ({path.name}); give another target, or --overwrite"
            )


def _record(path: Path, settings: dict[str, Any], name: str, entry: dict[str, Any]) -> None:
    """Note how the result `name` is made: its entry names one of the `runs`, since files of several can share a folder."""
    before = _read_record(path) if path.exists() else _Record()
    runs = before.runs if settings in before.runs else [*before.runs, settings]
    images = before.images | {name: entry | {"run": runs.index(settings)}}
    write_json(path, {"notice": NOTICE, "runs": runs, "images": images})


class _Record(BaseModel):
    """What `RECORD` holds: settings of runs, and for each image which of them made it."""

    runs: list[dict[str, Any]] = []
    images: dict[str, dict[str, Any]] = {}


def _read_record(path: Path) -> _Record:
    try:
        record = _Record.model_validate(read_json(path))
    except (ValidationError, CheckpointError) as error:
        raise DataError(
            f"{path}: is no record of `miudiff translate`; move it away, or give another target"
        ) from error
    if any(entry.get("run") not in range(len(record.runs)) for entry in record.images.values()):
        raise DataError(f"{path}: names runs that it does not hold; move it away, or give another target")
    return record
