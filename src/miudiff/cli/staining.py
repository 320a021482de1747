"""Commands that stain: demo, translate, calibrate. Thin: the work is elsewhere, and is imported when a command runs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from miudiff.cli.app import Change, Method, Preset, app, complain, say
from miudiff.errors import ConfigError
from miudiff.naming import SHIPPED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from miudiff.stainer import Normalise, VirtualStainer
    from miudiff.whole_slide.jobs import SlideJob, SlideOptions


@app.command
def demo(*, out: Path = Path("demo"), preset: Preset = "fast", seed: int = 0, device: str = "auto") -> int:
    """Translate held-out tissue with the weights that ship, measure it against its true twin, and write a page about it.

    Args:
        out: Folder for the images and report.html.
        preset: The method's settings.
        seed: Same seed, same result.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    from miudiff.demo import run_demo

    run_demo(out, preset, seed, device, say)
    return 0


@dataclass(frozen=True)
class SlideFlags:
    """What is for whole slides only.

    Args:
        roi: GeoJSON of the regions to stain, as QuPath exports it; all of the slide by default.
        mark_unreadable: Hatch what cannot be read and go on, instead of stopping at it.
        compression: Of a slide's result: jpeg (4:4:4), or lossless.
        quality: Of JPEG, 1 to 100.
        samples: Translations of seeds that follow each other; their spread is the report's uncertainty.
        report: Write a report, measures and GeoJSON beside a slide's result.
        zarr: Write a slide's result as OME-Zarr as well (needs the extra `zarr`).
        preview: A coarse result in about two minutes: four steps, and if they do not suffice the densest windows alone, the rest grey.
        cluster: Address of a Ray cluster whose actors stain; without an address, one is started here.
        workers: Actors of the cluster; its processors or accelerators by default.
    """

    roi: Path | None = None
    mark_unreadable: Annotated[bool, Parameter(negative=())] = False
    compression: Literal["jpeg", "lossless"] = "jpeg"
    quality: int = 90
    samples: int = 1
    report: bool = True
    zarr: Annotated[bool, Parameter(negative=())] = False
    preview: Annotated[bool, Parameter(negative=())] = False
    cluster: str | None = None
    workers: int | None = None

    @property
    def asked_for(self) -> str | None:
        """The first that was given another value than its usual one."""
        changed = (one.name for one in fields(self) if getattr(self, one.name) != one.default)
        return next(changed, "").replace("_", "-") or None

    def options(self, seed: int, overwrite: bool, strict: bool) -> SlideOptions:
        """For the runner.

        Raises:
            ConfigError: A value that cannot be.
        """
        from miudiff.slides.encoding import Compression
        from miudiff.whole_slide.jobs import SlideOptions

        if not 1 <= self.quality <= 100:
            raise ConfigError(f"--quality: found {self.quality}, expected 1 to 100")
        if self.samples < 1:
            raise ConfigError(f"--samples: found {self.samples}, expected at least 1")
        if self.preview:
            for name, told in (
                ("samples", self.samples > 1),
                ("cluster", self.cluster),
                ("workers", self.workers),
            ):
                if told:
                    raise ConfigError(f"--preview: is one quick look made here; leave out --{name}")
        compression = Compression(self.compression, self.quality)
        return SlideOptions(
            seed,
            self.mark_unreadable,
            compression,
            self.samples,
            overwrite,
            report=self.report
            and not self.preview,  # which takes as long as the preview, and measures too little
            zarr=self.zarr,
            preview=self.preview,
            strict=strict,
        )


@app.command
def translate(
    source: Path,
    target: Path,
    *,
    method: Method | None = None,
    preset: str | None = None,
    seed: int = 0,
    model: str = SHIPPED,
    marker: str | None = None,
    mpp: float | None = None,
    set_: Change = (),
    device: str = "auto",
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    glass: Literal["keep", "stain"] = "keep",
    mode: Literal["blend", "fuse"] = "blend",
    normalise: Literal["section", "image", "off"] = "section",
    batch_size: int | None = None,
    overwrite: bool = False,
    strict: Annotated[bool, Parameter(negative=())] = False,
    slides: Annotated[SlideFlags, Parameter(name="*")] = SlideFlags(),  # it is frozen
) -> int:
    """Translate H&E to virtual IHC: an image, a whole slide, or a folder of them. Each result keeps its source's name. Run it again to go on.

    Args:
        source: An image, a slide, a folder, or a CSV of slides with columns slide, mpp and roi.
        target: A file for one image (.ome.tif for a slide), or a folder.
        method: miu-diff by default; a model folder of a student, CUT, FastCUT or ASP says itself which it is.
        preset: The method's settings: fast (the default for images), thorough or paper for MIU-Diff, turbo for its one-step student (the default for slides, where the model has one), official (the default) or paper for the others.
        seed: Same seed, same result.
        model: A model folder, or the model that ships with the package.
        marker: For a model of several markers; its first by default.
        mpp: Micrometres per pixel of the sources, where the files do not state it.
        set_: A change of the preset, as in --set guidance.scale=0.2; may be given again.
        device: auto, cpu, cuda, cuda:N or mps. Never falls back by itself.
        precision: bf16 where it is faster (auto), or as asked.
        glass: Empty glass stays as it is (keep), or is translated like tissue (stain).
        mode: Tiles are stained apart and blended, or agree after every step of the reverse walk (fuse), without refinement.
        normalise: H&E is taken as if it had the dyes of the model's own: by one fit for a folder or a slide (section), by one for each image, or not (off).
        batch_size: Tiles that the network is given at once: 1 on a processor, as many as half of a GPU's free memory holds, up to 64; halved where memory is short.
        overwrite: Make results again that are there.
        strict: Refuse, instead of warn of, what does not look like H&E in focus at a believable scale.
    """
    from miudiff.config import check_mpp
    from miudiff.methods.systems import preset_for_slides
    from miudiff.stainer import VirtualStainer
    from miudiff.translation import Outcome, has_images, plan, translate_files
    from miudiff.whole_slide.jobs import slide_jobs
    from miudiff.whole_slide.translate import stain_slides

    if mpp is not None:
        check_mpp(mpp)
    jobs = slide_jobs(source, target, mpp, slides.roi)
    images = not jobs or has_images(source)
    if images:
        plan(source, target)  # a wrong path is told before seconds are spent on weights
    if not jobs and (unused := slides.asked_for):
        raise ConfigError(f"--{unused}: is for whole slides; {source} is none, and holds none")
    options = slides.options(seed, overwrite, strict) if jobs else None
    if slides.preview:
        _check_preview(source, jobs, images)
    refines = method in (None, "miu-diff") and preset not in (None, "fast", "turbo")
    if mode == "fuse" and refines and not any("refinement." in word for word in set_):
        set_ = (*set_, "refinement.loss=none")
        say("mode fuse: without refinement, which learns from each tile by itself")
    stated = bool(method or preset or set_ or mode == "fuse")

    def loader(preset: str | None) -> Callable[[], VirtualStainer]:
        return partial(
            VirtualStainer.load,
            model,
            method=method,
            preset=preset,
            changes=set_,
            marker=marker,
            device=device,
            precision=precision,
            glass=glass,
            mode=mode,
            batch=batch_size,
            normalise=normalise,
        )

    outcome = Outcome()
    if images:
        stainer = loader(preset)()
        _introduce(stainer, preset, model, normalise, seed)
        outcome += translate_files(
            stainer, source, target, mpp=mpp, seed=seed, overwrite=overwrite, strict=strict, say=say
        )
    if options:
        usual = preset if stated else preset_for_slides(model)
        load = loader(usual)
        stainer = load()
        _introduce(stainer, usual, model, normalise, seed)
        outcome += stain_slides(stainer, load, jobs, options, slides.cluster, slides.workers, say)
    say(str(outcome))
    return outcome.exit_code


def _introduce(
    stainer: VirtualStainer, preset: str | None, model: str, normalise: Normalise, seed: int
) -> None:
    """Say what stains."""
    from miudiff.methods.systems import SETTINGS
    from miudiff.result_folder import NOTICE

    stainer.say = say
    without = f"{model} has no palette for {stainer.marker}"
    if stainer.lacks_palette:
        say(f"{without}: its luma is used as it is, not normalised (make one with `miudiff model palette`)")
    elif normalise != stainer.normalise:
        say(f"{without}: H&E is used as it is stained, not normalised")
    system = SETTINGS.get(stainer.name)
    named = preset or (system.usual if system else None)
    say(
        f"{stainer.model.card.name}, marker {stainer.marker or 'unnamed'}, {stainer.name}{f' {named}' if named else ''}, seed {seed}, {stainer.placement}; {NOTICE}"
    )


def _check_preview(source: Path, jobs: Sequence[SlideJob], images: bool) -> None:
    """Refuse what a preview does not go together with."""
    if images:
        raise ConfigError(f"--preview: is for whole slides; {source} holds images as well")
    if drawn := next((job.roi for job in jobs if job.roi), None):
        raise ConfigError(
            f"--preview: chooses its windows over the whole slide; leave out the regions ({drawn})"
        )


@app.command
def calibrate(
    source: Path,
    *,
    target: float = 0.05,
    preset: Preset = "paper",
    model: str = SHIPPED,
    marker: str | None = None,
    mpp: float | None = None,
    set_: Change = (),
    device: str = "auto",
) -> int:
    """Find the guidance scale at which the energy's shift is a stated share of each step's noise, on H&E images.

    Args:
        source: An image or a folder of images; at most four are used, a tile of each.
        target: Wanted mean of shift / noise.
        preset: The settings to calibrate.
        model: A model folder, or the model that ships with the package.
        marker: For a model of several markers.
        mpp: Micrometres per pixel of the sources, where the files do not state it.
        set_: A change of the preset, as in --set energy.guidance=shared.
        device: auto, cpu, cuda, cuda:N or mps.
    """
    from miudiff.calibration import calibrate_files

    calibrate_files(source, target, preset, model, marker, mpp, set_, device, say)
    return 0


@app.command
def info(
    *slides: Path,
    mpp: float | None = None,
    model: str = SHIPPED,
    marker: str | None = None,
    preset: str | None = None,
    set_: Change = (),
    device: str = "auto",
    estimate: bool = True,
    mark_unreadable: Annotated[bool, Parameter(negative=())] = False,
    strict: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Say what slides hold: size, levels, scale and where it was read, tissue, and what staining them here would take.

    Args:
        slides: Slides or images.
        mpp: Micrometres per pixel, where the files do not state it.
        model: The model that the estimate is for.
        marker: For a model of several markers.
        preset: The settings that the estimate is for; by default those that `translate` takes.
        set_: A change of the preset.
        device: auto, cpu, cuda, cuda:N or mps.
        estimate: Measure a few steps on this machine, and say time and memory.
        mark_unreadable: Say which places cannot be read and go on, instead of stopping at the first.
        strict: Count as wrong what does not look like H&E in focus at a believable scale.
    """
    from miudiff.methods.systems import preset_for_slides
    from miudiff.slide_info import tell_slides
    from miudiff.slides.reader import is_slide
    from miudiff.stainer import VirtualStainer

    @cache
    def loaded(preset: str | None) -> VirtualStainer:
        return VirtualStainer.load(model, preset=preset, changes=set_, marker=marker, device=device)

    def load(path: Path) -> VirtualStainer:
        slide = is_slide(path) and not (preset or set_)
        return loaded(preset_for_slides(model) if slide else preset)

    failed = tell_slides(slides, mpp, load if estimate else None, say, mark_unreadable, strict)
    for line in failed:
        complain(line)
    if not failed:
        return 0
    return 3 if len(failed) < len(slides) else 2


@app.command
def report(result: Path, *, roi: Path | None = None) -> int:
    """Measure a slide's virtual IHC, and write a page about it, measures and GeoJSON for QuPath beside it.

    Args:
        result: The .ome.tif that `translate` wrote, its record beside it.
        roi: GeoJSON of the regions to measure; by default those that were stained, or squares.
    """
    from miudiff.slide_report.make import make_report

    say(f"{make_report(result, say, roi)}: written")
    return 0


@app.command
def view(he: Path, ihc: Path | None = None, *, port: int | None = None, browser: bool = True) -> int:
    """Show H&E and virtual IHC side by side in the browser, on this machine alone; Ctrl-C ends it.

    Args:
        he: The H&E slide or image; or a folder of results, as a gallery.
        ihc: Its virtual IHC.
        port: Of 127.0.0.1; a free one by default.
        browser: Open the page.
    """
    from miudiff.viewer import serve

    serve(he if ihc else None, ihc or he, port, browser, say)
    return 0
