"""The whole comparison: prepare, train, translate, score, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from miudiff.device import Placement, Precision, place
from miudiff.errors import ConfigError
from miudiff.images import read_image
from miudiff.methods.generator import load_generator_model
from miudiff.methods.model import Model
from miudiff.reproduce.budget import Budget, load_budget
from miudiff.reproduce.cases import prepare
from miudiff.reproduce.jobs import Job, Means, job_of
from miudiff.reproduce.plan import estimate
from miudiff.reproduce.prepare import Settings, SplitName
from miudiff.reproduce.rows import chosen, rows_of
from miudiff.reproduce.scoring import score_once
from miudiff.reproduce.sources import Source, parse_sources
from miudiff.reproduce.tables import SHOWN, Finished, Result, write_figure, write_table
from miudiff.reproduce.training import (
    diffusion_model,
    given_model,
    marker_of,
    run_folder,
    trained,
)
from miudiff.reproduce.translating import translated
from miudiff.runs import run


@dataclass(frozen=True)
class Options:
    """What the command was asked for.

    Attributes:
        data: `twin` and NAME=ROOT words; `mpp`, NAME=UM_PER_PIXEL words; `models`, NAME=MODEL words;
            `markers`, NAME=MARKER words.
        base: The preset that the ablations change.
        seeds: In place of the budget's.
        only: The rows to make, by name; none means all.
        init: A model folder whose U-Net the score models begin with.
        split: "all" makes every pair a test pair and trains nothing.
        slide_pattern: A regular expression that finds the slide in a file name.
    """

    table: str
    data: tuple[str, ...]
    out: Path
    budget: str = "smoke"
    base: str = "fast"
    seeds: int | None = None
    mpp: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    markers: tuple[str, ...] = ()
    init: Path | None = None
    split: SplitName = "auto"
    split_seed: int = 0
    slide_pattern: str | None = None
    only: tuple[str, ...] = ()
    device: str = "auto"
    precision: Precision = "auto"


def reproduce(options: Options, plan: bool, say: Callable[[str], None]) -> Path | None:
    """Make a table or the figure; with `plan` only say what that takes. Returns the file made.

    Raises:
        ConfigError, DataError, CheckpointError, DeviceError, NonFiniteError: As their messages say; what was done stays done.
    """
    sources = parse_sources(options.data, options.mpp, options.models, options.markers)
    if options.split == "all":
        _check_untrained(sources, options)
    budget = load_budget(options.budget)
    if options.seeds is not None:
        if options.seeds < 1:
            raise ConfigError(f"--seeds: found {options.seeds}, expected at least 1")
        budget = budget.model_copy(update={"seeds": options.seeds})
    placement = place(options.device, options.precision)
    rows = chosen(rows_of(options.table, options.base, budget.reverse_steps), options.only)
    if options.init is not None and all(source.model is not None for source in sources):
        raise ConfigError(
            f"--init {options.init}: no score model is trained here, each dataset has one; leave it out"
        )
    settings = Settings(budget.side, budget.images, options.split, options.split_seed, options.slide_pattern)
    given = [given_model(source, placement) for source in sources]
    cases = [
        prepare(source, options.out, _at_scale(settings, model), say)
        for source, model in zip(sources, given, strict=True)
    ]
    means = Means(budget, placement, options.device, options.precision, options.init)
    jobs = [
        job_of(case, source, model, rows, means)
        for case, source, model in zip(cases, sources, given, strict=True)
    ]
    if plan:
        for line in estimate(jobs, budget, placement):
            say(line)
        return None
    for job in jobs:
        for row, why in job.left_out.items():
            say(f"{job.case.name}: no row {row}: {why}")
    finished: list[Finished] = []
    for job in jobs:
        for config in job.runs:
            if not trained(config):
                say(f"{job.case.name}: training {config.task}, {config.steps} steps, in {config.out}")
                run(config, say)
        finished.append(Finished(job.case, _results(job, budget, placement, say), job.notes))
    note = f"Budget {budget.description}; {budget.seeds} seed{'s' if budget.seeds > 1 else ''}: mean [95 % bootstrap interval over seeds]. Ablations change the preset '{options.base}'."
    if options.table == "figure3":
        path = write_figure(options.out, "figure3", finished, note)
    else:
        stem = f"{options.table}-{options.base}{'-part' if options.only else ''}"
        path = write_table(options.out, stem, options.table.replace("table", "Table "), finished, note)
        for line in path.read_text(encoding="utf-8").splitlines():
            say(line)
    say(str(path))
    return path


def _check_untrained(sources: Sequence[Source], options: Options) -> None:
    """Refuse what means nothing where nothing is trained.

    Raises:
        ConfigError: A dataset without a model, the twin set, or an option of a split.
    """
    for source in sources:
        if source.root is None:
            raise ConfigError(
                "--split all: the model that ships was trained on one half of the twin set; leave out --data twin, or --split all"
            )
        if source.model is None:
            raise ConfigError(
                f"--split all: trains nothing, and {source.name} has no model; give --model {source.name}=FOLDER"
            )
    if options.slide_pattern is not None:
        raise ConfigError("--slide-pattern: divides by slide, but --split all divides nothing; leave it out")


def _at_scale(settings: Settings, model: Model | None) -> Settings:
    """With the model's scale, where every image is resampled to it."""
    return replace(settings, scale=model.card.mpp) if model and settings.split == "all" else settings


def _results(
    job: Job, budget: Budget, placement: Placement, say: Callable[[str], None]
) -> Mapping[str, Result]:
    case, results = job.case, {}
    needs = {task for row in job.rows for task in row.needs}
    shared: Model | None = None
    for row in job.rows:
        made = []
        for seed in range(budget.seeds):
            if row.config is None:
                weights = run_folder(case, row.needs[0], seed) / "weights"
                made.append(
                    translated(
                        case, row, load_generator_model(weights, placement), None, seed, placement, say
                    )
                )
            else:
                shared = shared or diffusion_model(
                    case, "mi" in needs, "classifier" in needs, job.given, placement
                )
                marker = job.marker if job.given else marker_of(case, shared)
                made.append(translated(case, row, shared, marker, seed, placement, say))
        scores = tuple(score_once(each, case) for each in made)
        results[row.name] = Result(tuple(read_image(file) for file in made[0].files[:SHOWN]), scores)
    return results
