"""Slides one after the other, or many windows at once, to virtual IHC."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from miudiff.checkpoints import write_json
from miudiff.cluster import LOCAL, Cluster
from miudiff.errors import BusyError, MiudiffError
from miudiff.estimate import tell_slide
from miudiff.guards import inspect, warn
from miudiff.images import beside, stem
from miudiff.noise import NoiseKey
from miudiff.normalisation import HEStains
from miudiff.progress import Progress
from miudiff.result_folder import NOTICE
from miudiff.section import DYES, as_json, dyes_in
from miudiff.slide_report.make import make_report
from miudiff.slides.blocks import Encoder
from miudiff.slides.brightfield import check_brightfield
from miudiff.slides.choice import tissue_samples
from miudiff.slides.frame import Frame, frame_of
from miudiff.slides.ome_tiff import assemble
from miudiff.slides.ome_zarr import export_zarr
from miudiff.slides.overview import TissueMap, tissue_mask
from miudiff.slides.pyramid import BlockStore, Layout
from miudiff.slides.reader import Slide, open_slide
from miudiff.slides.regions import read_regions
from miudiff.slides.result import ROI, previewed
from miudiff.slides.runner import Here, Runner, Stained, clear
from miudiff.slides.scaled import Read
from miudiff.slides.sight import Sight, marking
from miudiff.stainer import VirtualStainer
from miudiff.translation import Outcome, refuse_result
from miudiff.whole_slide.jobs import SlideJob, SlideOptions
from miudiff.whole_slide.preview import choose, hurried
from miudiff.whole_slide.record import (
    FAILURES,
    begin,
    identity_of,
    keep,
    locked_work_folder,
    record_of,
    refuse_long_name,
    refuse_other,
    scale_of,
    work_folder,
    write_failures,
    write_places,
)

log = logging.getLogger(__name__)

ZARR = ".ome.zarr"

Elsewhere = Callable[[NoiseKey, HEStains | None], Stained]  # other machines


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
    stained: Elsewhere | None = None,
) -> Outcome:
    """Translate slides one after the other; one that fails does not stop the rest, and is told in `failures.csv`.

    Args:
        stained: Who stains the windows, given the slide's noise and its dyes; this process by default.
    """
    outcome = Outcome()
    if options.preview:
        stainer = hurried(stainer)
    for number, job in enumerate(jobs, 1):
        if len(jobs) > 1:
            say(f"slide {number}/{len(jobs)}: {job.source}")
        outcome += _translate_job(stainer, job, options, say, stained, alone=len(jobs) == 1)
    if len(jobs) > 1:
        tried = [job.source for job in jobs if job.target not in outcome.elsewhere]
        write_failures(jobs[0].target.parent / FAILURES, outcome.failed, tried)
    return outcome


def _translate_job(
    stainer: VirtualStainer,
    job: SlideJob,
    options: SlideOptions,
    say: Callable[[str], None],
    stained: Elsewhere | None,
    alone: bool,
) -> Outcome:
    """One slide with its samples and its report; what is wrong with it is in the outcome."""
    try:
        made = [
            translate_slide(stainer, one, replace(options, seed=seed), say, stained)
            for one, seed in _samples(job, options)
        ]
    except MiudiffError as error:
        if isinstance(error, BusyError) and not alone:
            say(f"left to another process: {job.source}")
            return Outcome(elsewhere=(job.target,))
        message = str(error) if str(job.source) in str(error) else f"{job.source}: {error}"
        return _failed(job, message)
    outcome = Outcome(written=(job.target,)) if any(made) else Outcome(skipped=(job.target,))
    if options.zarr and not (zarr := beside(job.target, ZARR)).exists():
        outcome += _failed(
            job, f"{zarr}: is not there, but {job.target} is, and both are written at once; give --overwrite"
        )
    if options.report and (any(made) or not beside(job.target, ".report.html").exists()):
        try:
            make_report(job.target, say, job.roi)
        except MiudiffError as error:  # the result itself is whole
            outcome += _failed(job, f"{job.target}: no report ({error})")
    return outcome


def _failed(job: SlideJob, message: str) -> Outcome:
    log.error("%s", message)
    return Outcome(failed=((job.source, message),))


def translate_slide(
    stainer: VirtualStainer,
    job: SlideJob,
    options: SlideOptions,
    say: Callable[[str], None] = print,
    stained: Elsewhere | None = None,
) -> bool:
    """Translate one slide; False where the same command has done it before.

    Raises:
        SlideError: It cannot be read, is no brightfield slide, or states no scale.
        BusyError: Another process is at work on it.
        DataError: The target holds, or was begun with, something else, or cannot be written.
        KeyboardInterrupt: Ctrl-C; the same command goes on.
    """
    refuse_result(job.source)
    refuse_long_name(job.target)
    with open_slide(job.source) as slide:
        check_brightfield(slide)
        mpp, told = scale_of(slide, job.mpp, stainer.model.card.mpp)
        record = record_of(stainer, slide, job, mpp, told, options)
        if stained is not None:
            record["threads"] = 1  # as Ray starts its workers
        if _is_done(job, record, options) and not work_folder(job.target).exists():
            return False
        frame = frame_of(slide.width, slide.height, mpp, stainer.model.card.mpp, stainer)
        with locked_work_folder(job.target) as folder:
            if _is_done(job, record, options):  # by another process meanwhile, or before a kill
                clear(folder)
                return False
            kept = begin(folder, record, options.overwrite)
            began = time.monotonic()
            say(
                f"{job.source.name}: {slide.width} x {slide.height} pixels, {told}; {frame.columns} x {frame.rows} at the model's scale"
            )
            sight = _look(slide, frame, mpp, stainer, job, options)
            tissue = sight.glass or tissue_mask(slide, mpp or 1.0, _read(slide, options))
            record |= _look_closer(sight, tissue, mpp, stainer, job, options, kept)
            keep(folder, record)
            dyes = dyes_in(record)
            stainer = stainer.for_section(dyes)
            if stainer.section:
                say(f"dyes of the section: {stainer.section}")
            if options.preview:
                spent = time.monotonic() - began
                sight, chosen = choose(
                    stainer, sight, tissue, options.compression, spent, kept.get("previewed"), say
                )
                record["previewed"] = chosen
                keep(folder, record)
            key = NoiseKey(options.seed, job.source.name)
            store = _stain(stainer, sight, options, record, folder, stained and stained(key, dyes), key, say)
            record["seconds"] = round(time.monotonic() - began, 1)
            _finish(job, options, record, sight, store, stainer.marker)
            clear(folder)
    say(f"{job.target}: written")
    return True


def _stain(
    stainer: VirtualStainer,
    sight: Sight,
    options: SlideOptions,
    record: dict[str, Any],
    folder: Path,
    elsewhere: Stained | None,
    key: NoiseKey,
    say: Callable[[str], None],
) -> BlockStore:
    """Stain and encode what is missing, and note in the record what could not be read."""
    layout = Layout(sight.slide.width, sight.slide.height)
    store = BlockStore(folder / "blocks", layout, options.compression)
    with contextlib.closing(Encoder(sight, store, options.threads)) as encoder:
        runner = Runner(sight, encoder, folder)
        if elsewhere is None:  # how fast other machines are is not measured
            tell_slide(stainer, sight, options.compression, *runner.outstanding, say)
        runner.run(elsewhere or Here(stainer, key), Progress("windows", say))
        encoder.complete()
        record |= {"unreadable": runner.unreadable, "tissue_share": _tissue_share(sight)}
    return store


def _finish(
    job: SlideJob,
    options: SlideOptions,
    record: dict[str, Any],
    sight: Sight,
    store: BlockStore,
    marker: str | None,
) -> None:
    """Write the result, and before it what lies beside it."""
    record["samples"] = sorted(
        f"{p.parent.name}/{p.name}" for p in _samples_folder(job.target).glob("*.ome.tif")
    )
    if sight.chosen is not None:  # for a preview they lie beside the result alone
        record["regions"] = beside(job.target, ROI).name
    write_places(job.target, record["unreadable"], sight.regions)
    write_json(beside(job.target, ".json"), record)
    coarse = previewed(record)
    name = f"{stem(job.source)} {marker or 'IHC'} (virtual{', preview' if coarse else ''})"
    notice = f"{NOTICE}; preview: {coarse}" if coarse else NOTICE
    if options.zarr:
        export_zarr(store, beside(job.target, ZARR), record["mpp"], name, notice)
    assemble(store, job.target, record["mpp"], name, identity_of(record), notice)


def _is_done(job: SlideJob, record: dict[str, Any], options: SlideOptions) -> bool:
    """Whether the result is there; one of other settings is refused."""
    if options.overwrite or not job.target.exists():
        return False
    refuse_other(beside(job.target, ".json"), record, job.target)
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
    return replace(sight, glass=tissue_mask(slide, mpp or 1.0, _read(slide, options)))


def _look_closer(
    sight: Sight,
    tissue: TissueMap,
    mpp: float | None,
    stainer: VirtualStainer,
    job: SlideJob,
    options: SlideOptions,
    kept: dict[str, Any],
) -> dict[str, Any]:
    """What the guards find in some places of the slide, and the section's dyes, for its record."""
    card, read = stainer.model.card, _read(sight.slide, options)
    samples, scale = tissue_samples(sight.slide, mpp, tissue, sight.regions, read)
    findings = warn(job.source, inspect(samples, scale or card.mpp, card.he_reference), options.strict)
    dyes = kept.get(DYES) or as_json(stainer.fit((he, scale) for he in samples) if samples else None)
    return {"findings": findings, DYES: dyes}


def _read(slide: Slide, options: SlideOptions) -> Read | None:
    """How a slide is read to find its glass."""
    return marking(slide, []) if options.mark_unreadable else None


def _tissue_share(sight: Sight) -> float | None:
    """The share of the slide that is no glass; None where glass was not looked for."""
    return None if sight.glass is None else round(sight.glass.tissue_share(), 4)


def _samples_folder(target: Path) -> Path:
    return beside(target, ".samples")


def _samples(job: SlideJob, options: SlideOptions) -> Iterator[tuple[SlideJob, int]]:
    """The result and its further samples, each with its seed."""
    folder = _samples_folder(job.target)
    seeds = range(options.seed + 1, options.seed + options.samples)
    for seed in seeds:  # before the result, whose record names them
        yield replace(job, target=folder / f"seed{seed}.ome.tif"), seed
    yield job, options.seed
