"""Whole slides to virtual IHC: which files are slides, what is written beside a result, and how an interrupted one goes on.

OUT/case.ome.tif          the result, on the slide's own grid
OUT/case.json             how it was made
OUT/case.ome.tif.work/    what is unfinished; the same command goes on from it, and removes it in the end
OUT/failures.csv          of a folder or a list: the slides that could not be translated, and why
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from miudiff import __version__
from miudiff.checkpoints import read_json, write_json
from miudiff.cluster import LOCAL, Cluster
from miudiff.errors import CheckpointError, DataError, MiudiffError, SlideError
from miudiff.images import SUFFIXES, same_scale, write_bytes
from miudiff.noise import NoiseKey
from miudiff.progress import Progress
from miudiff.slide_report.make import make_report
from miudiff.slides.blocks import Encoder
from miudiff.slides.brightfield import check_brightfield
from miudiff.slides.encoding import Compression
from miudiff.slides.frame import Frame, frame_of
from miudiff.slides.ome_tiff import assemble
from miudiff.slides.overview import tissue_mask
from miudiff.slides.pyramid import BlockStore, Layout
from miudiff.slides.reader import Slide, is_slide, open_slide
from miudiff.slides.regions import Feature, read_regions, write_features
from miudiff.slides.runner import Here, Runner, Stained, clear
from miudiff.slides.sight import Rectangle, Sight, marking
from miudiff.stainer import VirtualStainer, check_mpp
from miudiff.translation import NOTICE, Outcome

RESULT = (".ome.tif", ".ome.tiff")
FAILURES = "failures.csv"
WORK = ".work"


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
    """

    seed: int = 0
    mark_unreadable: bool = False
    compression: Compression = field(default_factory=Compression)
    samples: int = 1
    overwrite: bool = False
    threads: int = 2
    report: bool = True


def slide_jobs(source: Path, target: Path, mpp: float | None, roi: Path | None) -> list[SlideJob]:
    """The slides that `source` names: a slide, a folder of slides, or a CSV with a column `slide`, and `mpp` and `roi` if wanted.

    Raises:
        DataError: A CSV that cannot be followed, two slides of one name, or a target that cannot be one.
    """
    if source.suffix.lower() == ".csv":
        jobs = _jobs_of_table(source, target, mpp, roi)
    elif source.is_dir():
        found = sorted(
            p for p in source.iterdir() if not p.name.startswith(".") and p.is_file() and is_slide(p)
        )
        jobs = [SlideJob(path, target / f"{stem(path)}.ome.tif", mpp, roi) for path in found]
    elif source.exists() and (is_slide(source) or _wants_pyramid(source, target)):
        jobs = [SlideJob(source, _one_target(source, target), mpp, roi)]
    else:
        return []
    if len(jobs) > 1 and roi is not None:
        raise DataError(
            f"{roi}: one --roi cannot be of {len(jobs)} slides; name them in a CSV with a column 'roi'"
        )
    names = [job.target for job in jobs]
    for job in jobs:
        if names.count(job.target) > 1:
            raise DataError(
                f"{job.source}: another slide gives {job.target.name} as well; rename one of them"
            )
        if job.target.exists() and job.target.samefile(job.source):
            raise DataError(
                f"{job.target}: is the source itself; give another target, so that the H&E slide is kept"
            )
    return jobs


def stem(path: Path) -> str:
    """A file's name without its ending, `.ome.tif` being one."""
    name = path.name
    for ending in RESULT:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return path.stem


def _wants_pyramid(source: Path, target: Path) -> bool:
    """A plain image whose result is asked for as a pyramid; an OME-TIFF that is small keeps being an image."""
    plain = source.suffix.lower() in SUFFIXES and not source.name.lower().endswith(RESULT)
    return plain and target.name.lower().endswith(RESULT)


def _one_target(source: Path, target: Path) -> Path:
    if target.is_dir() or not target.suffix:
        return target / f"{stem(source)}.ome.tif"
    if not target.name.lower().endswith(RESULT):
        raise DataError(
            f"{target}: a slide's result is a pyramid, expected a name ending in .ome.tif, or a folder"
        )
    return target


def _jobs_of_table(table: Path, target: Path, mpp: float | None, roi: Path | None) -> list[SlideJob]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as CSV ({error})") from error
    if not rows or "slide" not in rows[0]:
        found = ", ".join(rows[0]) if rows else "no rows"
        raise DataError(f"{table}: found {found}, expected a column 'slide', and 'mpp' and 'roi' if wanted")
    if target.exists() and not target.is_dir():
        raise DataError(f"{target}: is a file, expected a folder for the slides of {table}")
    jobs = []
    for number, row in enumerate(rows, 2):
        path = Path(row["slide"] or "")
        path = path if path.is_absolute() else table.parent / path
        region = Path(row["roi"]) if row.get("roi") else roi
        if row.get("roi") and region is not None and not region.is_absolute():
            region = table.parent / region
        try:
            scale = float(row["mpp"]) if row.get("mpp") else mpp
        except ValueError as error:
            raise DataError(
                f"{table}, line {number}: mpp '{row['mpp']}', expected micrometres per pixel"
            ) from error
        jobs.append(SlideJob(path, target / f"{stem(path)}.ome.tif", scale, region))
    return jobs


def stain_slides(
    stainer: VirtualStainer,
    load: Callable[[], VirtualStainer],
    jobs: Sequence[SlideJob],
    options: SlideOptions,
    cluster: str | None = None,
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Translate slides here, or on a Ray cluster.

    Args:
        load: Makes a stainer like `stainer` on another machine.
        cluster: Address of a running cluster, or "local"; None stains here unless there are to be workers.
        workers: How many actors; None takes one for each accelerator, or processor, of the cluster.
    """
    if cluster is None and workers is None:
        return translate_slides(stainer, jobs, options, say)
    device = stainer.placement.device.type
    with contextlib.closing(Cluster(cluster or LOCAL, workers, load, stainer.batch, device)) as actors:
        say(f"{len(actors.actors)} workers of {cluster or LOCAL}")
        return translate_slides(stainer, jobs, options, say, actors.stained)


def translate_slides(
    stainer: VirtualStainer,
    jobs: Sequence[SlideJob],
    options: SlideOptions,
    say: Callable[[str], None] = print,
    stained: Callable[[NoiseKey], Stained] | None = None,
) -> Outcome:
    """Translate slides one after the other; one that fails does not stop the rest, and is told in `failures.csv`.

    Args:
        stained: Who stains the windows, given the slide's noise; this process by default.
    """
    written: list[Path] = []
    skipped: list[Path] = []
    failed: list[tuple[Path, str]] = []
    for number, job in enumerate(jobs, 1):
        if len(jobs) > 1:
            say(f"slide {number}/{len(jobs)}: {job.source}")
        try:
            made = [
                translate_slide(stainer, one, replace(options, seed=seed), say, stained)
                for one, seed in _samples(job, options)
            ]
        except MiudiffError as error:
            message = str(error) if str(job.source) in str(error) else f"{job.source}: {error}"
            failed.append((job.source, message))
            say(f"failed: {message}")
            continue
        (written if any(made) else skipped).append(job.target)
        if options.report and (
            any(made) or not job.target.with_name(f"{stem(job.target)}.report.html").exists()
        ):
            try:
                make_report(job.target, say, job.roi)
            except MiudiffError as error:  # the result itself is whole
                failed.append((job.source, f"{job.target}: no report ({error})"))
                say(f"failed: {failed[-1][1]}")
    if len(jobs) > 1:
        _tell_failures(jobs[0].target.parent / FAILURES, failed)
    return Outcome(tuple(written), tuple(skipped), tuple(failed))


def translate_slide(
    stainer: VirtualStainer,
    job: SlideJob,
    options: SlideOptions,
    say: Callable[[str], None] = print,
    stained: Callable[[NoiseKey], Stained] | None = None,
) -> bool:
    """Translate one slide; False where the same command has done it before.

    Raises:
        SlideError: It cannot be read, is no brightfield slide, or states no scale.
        DataError: The target holds, or was begun with, something else, or cannot be written.
        KeyboardInterrupt: Ctrl-C; the same command goes on.
    """
    with open_slide(job.source) as slide:
        check_brightfield(slide)
        mpp, told = _scale(slide, job.mpp, stainer.model.card.mpp)
        record = _record(stainer, slide, job, mpp, told, options)
        path = job.target.with_name(f"{stem(job.target)}.json")
        if job.target.exists() and not options.overwrite:
            _same(path, record, job.target)
            clear(_work(job.target))
            return False
        frame = frame_of(
            slide.width,
            slide.height,
            mpp,
            stainer.model.card.mpp,
            (stainer.window, stainer.overlap, stainer.multiple),
            stainer.least,
        )
        with _folder(_work(job.target), record, options.overwrite) as folder:
            began = time.monotonic()
            sight = _look(slide, frame, mpp, stainer, job, options)
            say(
                f"{job.source.name}: {slide.width} x {slide.height} pixels, {told}; {frame.columns} x {frame.rows} at the model's scale"
            )
            store = BlockStore(folder / "blocks", Layout(slide.width, slide.height), options.compression)
            with contextlib.closing(Encoder(sight, store, options.threads)) as encoder:
                runner = Runner(sight, encoder, folder)
                key = NoiseKey(options.seed, job.source.name)
                engine = stained(key) if stained else Here(stainer, key)
                runner.run(engine, Progress("windows", say))
                encoder.complete()
                record |= {"unreadable": runner.unreadable, "tissue_share": _tissue_share(sight)}
                record["samples"] = sorted(
                    f"{p.parent.name}/{p.name}" for p in _samples_folder(job.target).glob("*.ome.tif")
                )
                _mark(job.target, runner.unreadable)
            name = f"{stem(job.source)} {stainer.marker or 'IHC'} (virtual)"
            write_json(path, record | {"seconds": round(time.monotonic() - began, 1)})
            assemble(store, job.target, mpp, name, _digest(record))
        clear(_work(job.target))
    say(f"{job.target}: written")
    return True


def _look(
    slide: Slide,
    frame: Frame,
    mpp: float | None,
    stainer: VirtualStainer,
    job: SlideJob,
    options: SlideOptions,
) -> Sight:
    """The slide with what of it is asked for."""
    regions = read_regions(job.roi, slide.width, slide.height) if job.roi else None
    sight = Sight(slide, frame, None, regions, options.mark_unreadable)
    if stainer.glass == "stain":
        return sight
    read = marking(slide, []) if options.mark_unreadable else None
    return replace(sight, glass=tissue_mask(slide, mpp or 1.0, read))


def _tissue_share(sight: Sight) -> float | None:
    """The share of the slide that is no glass; None where glass was not looked for."""
    return None if sight.glass is None else round(sight.glass.tissue_share(), 4)


def _samples_folder(target: Path) -> Path:
    return target.with_name(f"{stem(target)}.samples")


def _samples(job: SlideJob, options: SlideOptions) -> Iterator[tuple[SlideJob, int]]:
    """The result and its further samples, each with its seed."""
    folder = _samples_folder(job.target)
    seeds = range(options.seed + 1, options.seed + options.samples)
    for seed in seeds:  # before the result, whose record names them
        yield replace(job, target=folder / f"seed{seed}.ome.tif"), seed
    yield job, options.seed


def _scale(slide: Slide, given: float | None, model: float | None) -> tuple[float | None, str]:
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


def _record(
    stainer: VirtualStainer, slide: Slide, job: SlideJob, mpp: float | None, told: str, options: SlideOptions
) -> dict[str, Any]:
    """How a result is made, as JSON gives it back; whatever differs in it makes another result."""
    return {
        "notice": NOTICE,
        "miudiff": __version__,
        "source": str(job.source),
        "source_bytes": job.source.stat().st_size,
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
        "seed": options.seed,
        "mode": stainer.mode,
        "glass": stainer.glass,
        "compression": _compression(options.compression),
        "regions": hashlib.sha256(job.roi.read_bytes()).hexdigest()[:16]
        if job.roi and job.roi.is_file()
        else None,
        "mark_unreadable": options.mark_unreadable,
        "regions_file": str(job.roi) if job.roi else None,
        "samples": [],
    }


def _compression(how: Compression) -> str:
    return f"jpeg {how.quality}" if how.kind == "jpeg" else how.kind


# What may differ between a result, or what was begun of it, and the command that finds it.
_FREE = ("source", "regions_file", "samples", "mpp_source", "unreadable", "tissue_share", "seconds", "notice")


def _same(path: Path, record: dict[str, Any], target: Path) -> None:
    """Refuse to take a result of other settings for this command's."""
    try:
        before = read_json(path)
    except CheckpointError:
        return  # somebody's own file is skipped like a finished one
    for key, value in record.items():
        if key not in _FREE and before.get(key) != value:
            raise DataError(
                f"{target}: was made with another '{key}' ({path.name}); give another target, or --overwrite"
            )


def _digest(record: dict[str, Any]) -> str:
    fixed = {key: value for key, value in sorted(record.items()) if key not in _FREE}
    return hashlib.sha256(repr(fixed).encode()).hexdigest()


def _work(target: Path) -> Path:
    return target.with_name(f"{target.name}{WORK}")


@contextlib.contextmanager
def _folder(folder: Path, record: dict[str, Any], overwrite: bool) -> Iterator[Path]:
    """The folder of what is unfinished, for this process alone; one of other settings is refused, or begun anew."""
    path = folder / "job.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); give another target") from error
    with lock:
        _lock(lock.fileno(), folder)
        if path.exists():
            before = read_json(path)
            changed = [key for key in record if key not in _FREE and before.get(key) != record[key]]
            if changed and not overwrite:
                raise DataError(
                    f"{folder}: holds work begun with another '{changed[0]}'; give another target, or --overwrite"
                )
            if changed:
                for part in ("rows", "blocks"):
                    clear(folder / part)
        write_json(path, record)
        yield folder


def _lock(file: int, folder: Path) -> None:
    """Keep other processes out until this one ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise DataError(
            f"{folder}: another process is translating this slide; wait for it, or stop it"
        ) from error


def _mark(target: Path, unreadable: Sequence[Rectangle]) -> None:
    """Say where the slide could not be read, for QuPath."""
    path = target.with_name(f"{stem(target)}.unreadable.geojson")
    if not unreadable:
        path.unlink(missing_ok=True)
        return
    outlines = [
        [(at.x, at.y), (at.x + at.width, at.y), (at.x + at.width, at.y + at.height), (at.x, at.y + at.height)]
        for at in unreadable
    ]
    write_features(path, [Feature("unreadable", [[np.array(outline, float)]]) for outline in outlines])


def _tell_failures(path: Path, failed: Sequence[tuple[Path, str]]) -> None:
    """The slides of a folder that failed; none left, no file."""
    if not failed:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(("slide", "error"))
    table.writerows((str(slide), message) for slide, message in failed)
    write_bytes(path, text.getvalue().encode())
