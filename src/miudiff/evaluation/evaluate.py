"""`miudiff evaluate`: folders in, scores out, whoever made the images.

    match by name -> look at every file -> measure each case, in several processes -> summarise -> files

Files are looked at before anything is measured, so that what is wrong is told in seconds. With problems
nothing is scored, unless the caller asks for the rest to be: a mean of a silently smaller set is no result.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from miudiff.cells import NUCLEUS
from miudiff.device import place
from miudiff.errors import ConfigError, DataError
from miudiff.evaluation.distribution import ENOUGH, frechet_distance, kernel_distance, read_features
from miudiff.evaluation.encoders import Encoder, load_encoder
from miudiff.evaluation.folders import Case, Folders, Problem, inspect, match
from miudiff.evaluation.panel import ENOUGH_TO_CORRELATE, too_few
from miudiff.evaluation.records import compare_records
from miudiff.evaluation.scores import Row, Scores, join, measure_case, summarise
from miudiff.evaluation.statistics import Interval
from miudiff.evaluation.truth import Darkness
from miudiff.images import read_image
from miudiff.naming import compile_pattern
from miudiff.progress import Progress
from miudiff.stains import Floats

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Settings:
    """What to measure and how.

    Attributes:
        mpp: Micrometres per pixel; gives the size of a nucleus, 8 µm, and every other length.
        nucleus: Pixels across a nucleus, instead of `mpp`: cells are then measured, and nothing else at a length.
        tissue: Histograms of tissue alone, too.
        encoder: Weights of an encoder, for FID and KID.
        features: Features of the generated and of the true images that another program took, instead.
        slide_pattern: Regular expression with a group (?P<slide>...) that finds the slide in a name; intervals
            are then over slides.
        skip_bad: Score what can be scored where files have problems.
        workers: Processes. More than one are spawned: a script then needs `if __name__ == "__main__":`.
        seed: Of the bootstrap and of KID's subsets.
        device: For the encoder.
    """

    mpp: float | None = None
    nucleus: float | None = None
    tissue: bool = False
    encoder: Path | None = None
    features: tuple[Path, Path] | None = None
    slide_pattern: str | None = None
    skip_bad: bool = False
    workers: int = 1
    seed: int = 0
    device: str = "auto"

    def diameter(self) -> float | None:
        """Pixels across a nucleus, if it can be known.

        Raises:
            ConfigError: Stated twice, or not above 0.
        """
        for name, value in (("mpp", self.mpp), ("nucleus", self.nucleus)):
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"--{name} {value:g}: expected a number above 0")
        if self.mpp is not None and self.nucleus is not None:
            raise ConfigError("--mpp and --nucleus both state the size of a nucleus; give one")
        return self.nucleus if self.mpp is None else NUCLEUS / self.mpp


@dataclass(frozen=True)
class Evaluation:
    """What became of the folders: `scores` is None where problems kept everything from being scored.

    Attributes:
        warnings: What speaks against the comparison itself.
    """

    folders: Folders
    problems: tuple[Problem, ...]
    cases: tuple[Case, ...]
    scores: Scores | None
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0; 2 where nothing was scored; 3 where a part was, because that was asked for."""
        return 2 if self.scores is None else 3 if self.problems else 0


def evaluate_folders(
    generated: Path,
    reference: Path,
    source: Path | None = None,
    settings: Settings | None = None,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Score every image of `generated` against its partner in `reference`, and in `source` if given.

    Raises:
        DataError: A folder is not there or holds no images, features do not fit, or records contradict the comparison.
        ConfigError: Settings that contradict each other.
        CheckpointError: The encoder's file cannot be used.
    """
    settings = settings or Settings()
    if settings.workers < 1:
        raise ConfigError(f"--workers {settings.workers}: expected at least 1")
    diameter = settings.diameter()
    encoder, given = _features(settings)
    folders = match(generated, reference, source)
    warnings = compare_records(folders.cases, reference)
    with ThreadPoolExecutor() as pool:  # decoding leaves Python's lock, and starts at once
        looked = Progress("images", say, "looked at")
        found = list(looked.over(pool.map(inspect, folders.cases), len(folders.cases)))
    problems = folders.problems + tuple(problem for each in found for problem in each)
    cases = tuple(case for case, wrong in zip(folders.cases, found, strict=True) if not wrong)
    if not cases or (problems and not settings.skip_bad):
        return Evaluation(folders, problems, cases, None, (), warnings)
    slides = _slides(cases, settings.slide_pattern)
    task = partial(measure_files, nucleus=diameter, tissue=settings.tissue, mpp=settings.mpp)
    measured = _each(task, cases, settings.workers, say)
    scores = summarise([case.name for case in cases], join(measured), slides, settings.seed)
    notes = (*_notes(settings, diameter, source, slides, folders.ignored), *_of_few(scores))
    if encoder is not None:
        files = [case.generated for case in cases], [case.real for case in cases]
        given = [encoder.features(each, say) for each in files]
    if given is not None:
        kind = encoder.kind if encoder is not None else "features"
        scores, note = _with_distances(scores, kind, given[0], given[1], settings.seed)
        notes = (*notes, *note)
    return Evaluation(folders, problems, cases, scores, notes, warnings)


def _features(settings: Settings) -> tuple[Encoder | None, list[Floats] | None]:
    """The encoder, or the features of both sets, that the settings name."""
    if settings.encoder is not None and settings.features is not None:
        raise ConfigError("--encoder and --features both give features; give one")
    for path in (settings.encoder, *(settings.features or ())):
        if path is not None and path.exists() and not path.is_file():
            raise DataError(f"{path}: is no regular file, expected weights or features")
    if settings.encoder is not None:
        return load_encoder(settings.encoder, place(settings.device, "fp32").device), None
    if settings.features is None:
        return None, None
    given = [read_features(path) for path in settings.features]
    widths = [features.shape[1] for features in given]
    if widths[0] != widths[1]:
        both = " and ".join(
            f"{path} ({width})" for path, width in zip(settings.features, widths, strict=True)
        )
        raise DataError(f"{both}: two lengths of features, expected those of one encoder")
    return None, given


def measure_files(
    case: Case, nucleus: float | None, tissue: bool, mpp: float | None
) -> tuple[Row, Darkness | None]:
    """`scores.measure_case` of a case's files."""
    source = None if case.source is None else read_image(case.source)
    return measure_case(read_image(case.generated), read_image(case.real), source, nucleus, tissue, mpp)


def _each(
    task: Callable[[In], Out], items: Sequence[In], workers: int, say: Callable[[str], None]
) -> list[Out]:
    """`task` of each item, in order."""
    workers, progress = min(workers, len(items)), Progress("images", say, "measured")
    if workers <= 1:
        return list(progress.over(map(task, items), len(items)))
    # Spawned and not forked: torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(progress.over(pool.map(task, items), len(items)))
    except BrokenProcessPool as error:
        raise DataError(
            "a process that measures ended, perhaps for want of memory; try --workers 1"
        ) from error


def _slides(cases: Sequence[Case], pattern: str | None) -> list[str] | None:
    if pattern is None:
        return None
    expression = compile_pattern(pattern, "--slide-pattern")
    found = [expression.search(case.name) for case in cases]
    if missing := [case.name for case, match in zip(cases, found, strict=True) if match is None]:
        raise ConfigError(
            f"--slide-pattern '{pattern}': finds no slide in {missing[0]} ({len(missing)} such names)"
        )
    return [match["slide"] for match in found if match is not None]


def _with_distances(
    scores: Scores, kind: str, fakes: Floats, reals: Floats, seed: int
) -> tuple[Scores, list[str]]:
    count = min(len(fakes), len(reals))
    if count < 2:
        return scores, ["FID and KID need at least 2 images."]
    fid, kid = frechet_distance(fakes, reals), kernel_distance(fakes, reals, seed)
    found = {
        f"fid_{kind}_real": Interval(fid, None, None, count),
        f"kid_{kind}_real_1e3": Interval(1000 * kid.mean, None, None, count),
    }
    notes = [
        f"KID in 10^-3; standard deviation over subsets {1000 * kid.std:.3g}. FID and KID have no interval."
    ]
    if {len(fakes), len(reals)} != {len(scores.names)}:
        notes.append(
            f"FID and KID are of {len(fakes)} generated and {len(reals)} true images, not of those scored."
        )
    if count < ENOUGH:
        notes.append(
            f"FID and KID of {count} images: below {ENOUGH} an FID is biased upwards; do not quote it."
        )
    return Scores(scores.names, scores.rows, {**scores.summary, **found}), notes


def _notes(
    settings: Settings,
    diameter: float | None,
    source: Path | None,
    slides: Sequence[str] | None,
    ignored: Sequence[str],
) -> tuple[str, ...]:
    over = "images" if slides is None else f"the {len(set(slides))} slides that the names state"
    notes = [f"95 % bootstrap intervals over {over}, seed {settings.seed}."]
    if diameter is None:
        notes.append(
            "No measure of cells: the size of a nucleus is not known; give --mpp (um per pixel) or --nucleus (pixels)."
        )
    else:
        notes.append(f"A nucleus is taken as {diameter:.3g} pixels across.")
    if settings.mpp is None:
        notes.append(
            "No DAB correlation, no sharpness, no gradients at 2 um: they need --mpp (um per pixel)."
        )
    if source is None:
        notes.append("No measure against the H&E: give --source.")
    if ignored:
        notes.append(f"Left alone, since they are no image files: {', '.join(ignored)}.")
    return tuple(notes)


def _of_few(scores: Scores) -> list[str]:
    """A note on correlations over too few images to be headlines."""
    few = sorted({found.n for key, found in scores.summary.items() if too_few(key, found.n)})
    if not few:
        return []
    counts = " and ".join(str(count) for count in few)
    return [
        f"Correlations over images are of n = {counts}: below {ENOUGH_TO_CORRELATE} they say nothing and are "
        "no headlines; scores.json holds them."
    ]
