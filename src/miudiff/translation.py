"""A file or a folder of H&E images to virtual IHC, each result under its source's name.

Finished means renamed into place: what is there is whole, and the same command skips it and goes on. `translation.json` beside
the results says how each was made; one of other settings, or of another source, is not taken for this command's. Several
processes with one command share its images: each image is locked while it is made. `translation-steps.jsonl` has for each image
what guidance and refinement did in each step: [t, shift / noise, loss]. One bad file does not stop the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from miudiff.ahead import begun_ahead
from miudiff.checkpoints import append_json
from miudiff.errors import DataError, MiudiffError
from miudiff.estimate import tell_images
from miudiff.guards import inspect, warn
from miudiff.images import (
    SUFFIXES,
    Pixels,
    irregular,
    list_images,
    read_comment,
    read_image,
    read_scale,
    remove_parts,
    same_scale,
    write_image,
)
from miudiff.locks import lock, lock_of
from miudiff.methods.sdedit import StepReport
from miudiff.progress import Progress, duration
from miudiff.provenance import SOURCE, source_digest
from miudiff.result_folder import (
    NOTICE,
    RECORD,
    check_record,
    check_writable,
    earlier_run,
    note,
    refuse_other,
    results_in,
)
from miudiff.section import DYES, as_json, dyes_in, settings_of, shared_dyes
from miudiff.slides.reader import is_slide
from miudiff.slides.result import UNCERTAINTY
from miudiff.stainer import VirtualStainer

log = logging.getLogger(__name__)

STEPS = "translation-steps.jsonl"


@dataclass(frozen=True)
class Outcome:
    """What became of each source; `elsewhere` are results that another process is making."""

    written: tuple[Path, ...] = ()
    skipped: tuple[Path, ...] = ()
    failed: tuple[tuple[Path, str], ...] = ()
    elsewhere: tuple[Path, ...] = ()

    def __add__(self, other: Outcome) -> Outcome:
        """What became of both's sources."""
        return Outcome(
            self.written + other.written,
            self.skipped + other.skipped,
            self.failed + other.failed,
            self.elsewhere + other.elsewhere,
        )

    @property
    def exit_code(self) -> int:
        if not self.failed:
            return 0
        return 3 if self.written or self.skipped or self.elsewhere else 2

    def __str__(self) -> str:
        counts = f"{len(self.written)} written, {len(self.skipped)} there already, {len(self.failed)} failed"
        left = f", {len(self.elsewhere)} left to another process" if self.elsewhere else ""
        return counts + left


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
        pairs = [(path, target / path.name) for path in he_images(source)]
    elif target.suffix.lower() in SUFFIXES and not target.is_dir():
        pairs = [(source, target)]
    elif target.suffix[1:].isalpha() and not target.exists():
        raise DataError(
            f"{target}: cannot write '{target.suffix}' files, expected one of {', '.join(SUFFIXES)}, or a folder that is there"
        )
    else:
        pairs = [(source, target / source.name)]
    if not source.is_dir():
        refuse_result(source)
    for path, result in pairs:
        if result.exists() and result.samefile(path):
            raise DataError(
                f"{result}: is the source itself; give another target, so that the H&E image is kept"
            )
    return pairs


def he_images(folder: Path) -> list[Path]:
    """The images of a folder that are neither slides nor virtual stains.

    Raises:
        DataError: No such folder, or no such images in it.
    """
    he = without_results(folder, [path for path in list_images(folder) if not is_slide(path)])
    if not he:
        raise DataError(f"{folder}: holds virtual stains alone, expected H&E images")
    return he


def without_results(folder: Path, paths: Sequence[Path]) -> list[Path]:
    """Files of a folder without the results of earlier translations, which the log counts."""
    known = results_in(folder)
    he = [path for path in paths if not _is_result(path, known)]
    if count := len(paths) - len(he):
        log.warning("%s: left out the virtual stains in it, %d of %d files", folder, count, len(paths))
    return he


def refuse_result(path: Path) -> None:
    """Refuse to stain a virtual stain, which its record beside it or a word in the file tells.

    Raises:
        DataError: It is one.
    """
    if _is_result(path, results_in(path.parent)):
        raise DataError(f"{path}: is itself a virtual stain, expected an H&E image")


def _is_result(path: Path, known: Collection[str]) -> bool:
    named = path.name in known or path.name.lower().endswith(UNCERTAINTY)
    return named or NOTICE in read_comment(path)


def has_images(source: Path) -> bool:
    """Whether a folder has H&E images that are no slides."""
    if not source.is_dir():
        return False
    known = results_in(source)
    return any(
        path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and not is_slide(path)
        and not _is_result(path, known)
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
    strict: bool = False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Translate every image of `source` into `target`.

    Args:
        mpp: Micrometres per pixel of the sources; None takes what a file states, or else its pixels as they are, and says so.
        strict: An image that the guards find something wrong with fails, before it is stained.

    Raises:
        DataError: Nothing to do, `target` holds results of other settings or sources, or a result cannot be written: a full
            disk would fail each image that follows after all the work on it.
        BusyError: Another process is making some of the results with other settings.
    """
    pairs = plan(source, target)
    for path in irregular(source) if source.is_dir() else ():
        say(f"left out: {path} is not a regular file")
    folder = pairs[0][1].parent
    settings = settings_of(stainer, mpp, seed)
    if not overwrite:
        refuse_other(folder / RECORD, earlier_run(folder / RECORD, settings, pairs, DYES) or settings, pairs)
        if all(result.exists() for _, result in pairs):
            return Outcome(skipped=tuple(result for _, result in pairs))
    check_writable(folder)
    check_record(folder / RECORD)
    pending = [path for path, result in pairs if overwrite or not result.exists()]

    def scale(path: Path) -> float | None:
        return _scale(path, mpp, stainer)[0]

    tell_images(stainer, pending, scale, say)
    with shared_dyes(stainer, folder, settings, pairs, overwrite, scale) as agreed:
        return _Work(stainer, folder, agreed, mpp, seed, overwrite, strict, say).translate_all(pairs)


Read = Future[tuple[Pixels, str] | None]  # an image and its source's digest; nothing where it is not wanted


class _Work:
    """Translates images into one folder with one command's settings."""

    def __init__(
        self,
        stainer: VirtualStainer,
        folder: Path,
        settings: dict[str, Any],
        mpp: float | None,
        seed: int,
        overwrite: bool,
        strict: bool,
        say: Callable[[str], None],
    ) -> None:
        self.each = settings["normalise"] == "image"
        self.stainer = stainer if self.each else stainer.for_section(dyes_in(settings))
        if self.stainer.section:
            say(f"dyes of the section: {self.stainer.section}")
        self.folder, self.settings = folder, settings
        self.mpp, self.seed, self.overwrite, self.say = mpp, seed, overwrite, say
        self.strict = strict
        self.began, self._began_at = time.monotonic(), time.time()

    def translate_all(self, pairs: Sequence[tuple[Path, Path]]) -> Outcome:
        """Every image; the next ones are read meanwhile."""
        outcome = Outcome()
        with closing(begun_ahead(self.read, pairs, 2)) as begun:
            for number, ((path, result), read) in enumerate(begun, 1):
                done = self.translate(path, result, read)
                outcome += done
                if done.written:
                    each = (time.monotonic() - self.began) / len(outcome.written)
                    left = duration(each * (len(pairs) - number))
                    self.say(f"{number}/{len(pairs)} {result}  {each:.0f} s an image, about {left} left")
        return outcome

    def read(self, pair: tuple[Path, Path]) -> tuple[Pixels, str] | None:
        """The image of a source that is to be translated, and its digest; for a thread that goes ahead."""
        return None if self._is_done(pair[1]) else _read(pair[0])

    def translate(self, path: Path, result: Path, read: Read) -> Outcome:
        """One image, unless its result is there or another process is making it."""
        if self._is_done(result):
            return Outcome(skipped=(result,))
        with lock(lock_of(result)) as held:
            if held is None:
                self.say(f"{path.name}: left to another process")
                return Outcome(elsewhere=(result,))
            if self._is_done(result):  # another process finished it between our look and our lock
                return Outcome(skipped=(result,))
            remove_parts(result)
            return self._translate(path, result, read)

    def _is_done(self, result: Path) -> bool:
        """Whether the result is there; what this command is to overwrite is there once a process that shares it has made it."""
        try:
            made = result.stat().st_mtime
        except OSError:
            return False
        return not self.overwrite or made > self._began_at

    def _translate(self, path: Path, result: Path, read: Read) -> Outcome:
        try:
            pixels, digest = read.result() or _read(path)
            if result.suffix.lower() not in SUFFIXES:
                raise DataError(
                    f"{result}: cannot be written, expected one of {', '.join(SUFFIXES)}; name the target"
                )
            scale, told = _scale(path, self.mpp, self.stainer)
            rows, columns = self.stainer.fitting_size(pixels.shape[0], pixels.shape[1], scale)
            card = self.stainer.model.card
            findings = warn(path, inspect([pixels], scale or card.mpp, card.he_reference), self.strict)
            self.say(
                f"{path.name}: {pixels.shape[1]} x {pixels.shape[0]} pixels, {told}; {columns} x {rows} at the model's scale"
            )
            steps = _Steps(self.stainer.steps(rows, columns), Progress("steps", self.say))
            if self.stainer.reverse is not None:
                self.stainer.reverse.watch = steps
            dyes = self.stainer.fit([(pixels, scale)]) if self.each else None
            stainer = self.stainer.for_section(dyes) if self.each else self.stainer
            ihc = stainer.translate(pixels, scale, self.seed, path.name)
        except MiudiffError as error:
            message = str(error) if str(path) in str(error) else f"{path}: {error}"
            log.error("%s", message)
            return Outcome(failed=((path, message),))
        entry: dict[str, Any] = {"source": str(path), SOURCE: digest, "mpp": scale, "findings": findings}
        entry |= {DYES: as_json(dyes)} if self.each else {}
        with lock(self.folder / ".translation.lock", wait=True):
            note(self.folder / RECORD, self.settings, result.name, entry)
            append_json(self.folder / STEPS, {"image": result.name, "seed": self.seed, "steps": steps.log})
        write_image(result, ihc, scale, NOTICE)
        return Outcome(written=(result,))


def _read(path: Path) -> tuple[Pixels, str]:
    return read_image(path), source_digest(path)


class _Steps:
    """Tells how far an image is, and keeps each step's (t, shift / noise, loss): a reverse process' `watch`."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.total, self.progress = total, progress
        self._tiles = 0  # a report is of all tiles of a batch
        self._seen: list[tuple[int, Tensor | None, float | None]] = []

    def __call__(self, report: StepReport) -> None:
        self.progress(self._tiles, self.total)
        self._tiles += len(report.y)
        ratio = None if report.ratio is None else report.ratio.mean()
        self._seen.append((report.time, ratio, report.loss))

    @property
    def log(self) -> list[tuple[int, float, float | None]]:
        """The numbers, fetched from the device at the end: in a step each would be waited for."""
        return [
            (time, 0.0 if ratio is None else float(f"{float(ratio):.3g}"), loss)
            for time, ratio, loss in self._seen
        ]


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
