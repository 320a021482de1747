"""The whole comparison: prepare, train, translate, score, write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from miudiff.device import Placement, Precision, place
from miudiff.errors import ConfigError
from miudiff.images import read_image, same_scale
from miudiff.methods.generator import load_generator_model
from miudiff.methods.model import Model
from miudiff.methods.systems import build
from miudiff.reproduce.budget import Budget, Task, load_budget
from miudiff.reproduce.cases import Case, prepare
from miudiff.reproduce.plan import estimate
from miudiff.reproduce.prepare import Settings, SplitName
from miudiff.reproduce.rows import Row, chosen, rows_of
from miudiff.reproduce.scoring import score_once
from miudiff.reproduce.sources import Source, parse_sources
from miudiff.reproduce.tables import SHOWN, Finished, Result, write_figure, write_table
from miudiff.reproduce.training import (
    GENERATORS,
    check_run,
    diffusion_model,
    given_model,
    marker_of,
    run_config,
    run_folder,
    trained,
)
from miudiff.reproduce.translating import translated
from miudiff.runs import RunConfig, run


@dataclass(frozen=True)
class Options:
    """What the command was asked for.

    Attributes:
        data: `twin` and NAME=ROOT words; `mpp`, NAME=UM_PER_PIXEL words; `models`, NAME=MODEL words.
        base: The preset that the ablations change.
        seeds: In place of the budget's.
        only: The rows to make, by name; none means all.
        init: A model folder whose U-Net the score models begin with.
    """

    table: str
    data: tuple[str, ...]
    out: Path
    budget: str = "smoke"
    base: str = "tuned"
    seeds: int | None = None
    mpp: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    init: Path | None = None
    split: SplitName = "auto"
    split_seed: int = 0
    only: tuple[str, ...] = ()
    device: str = "auto"
    precision: Precision = "auto"


@dataclass(frozen=True)
class _Job:
    """What a case is to be put through.

    Attributes:
        given: The model that its diffusion systems use; None where theirs is trained.
        runs: To be trained, or found trained, in this order.
    """

    case: Case
    rows: Sequence[Row]
    given: Model | None
    runs: Sequence[RunConfig]
    notes: tuple[str, ...]


def reproduce(options: Options, plan: bool, say: Callable[[str], None]) -> Path | None:
    """Make a table or the figure; with `plan` only say what that takes. Returns the file made.

    Raises:
        ConfigError, DataError, CheckpointError, DeviceError, NonFiniteError: As their messages say; what was done stays done.
    """
    sources = parse_sources(options.data, options.mpp, options.models)
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
    settings = Settings(budget.side, budget.images, options.split, options.split_seed)
    cases = [prepare(source, options.out, settings, say) for source in sources]
    # Whatever can be refused is refused here, before hours of training.
    jobs = [
        _job(case, source, rows, budget, options, placement, say)
        for case, source in zip(cases, sources, strict=True)
    ]
    if plan:
        given = {job.case.name: job.given for job in jobs}
        for line in estimate(cases, rows, {j.case.name: j.runs for j in jobs}, given, budget, placement):
            say(line)
        return None
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


def _job(
    case: Case,
    source: Source,
    rows: Sequence[Row],
    budget: Budget,
    options: Options,
    placement: Placement,
    say: Callable[[str], None],
) -> _Job:
    """What a case needs, made sure of.

    Raises:
        ConfigError, CheckpointError: A model, a budget, or a run in the folder that does not fit.
    """
    possible = [row for row in rows if case.paired or row.method != "asp"]
    for row in rows:
        if row not in possible:
            say(f"{case.name}: no row {row.name}, which trains on pairs: no training image has its partner")
    if not possible:
        raise ConfigError(f"{case.name}: no row is left of {', '.join(row.name for row in rows)}")
    given = given_model(case, source.model, placement) if source.model is not None else None
    if given is not None:
        for row in possible:
            if row.config is not None and row.method != "egsde":  # whose classifier is yet to be trained
                build(row.config, given, marker_of(case, given), placement)
    runs = _training(case, possible, given is not None, budget, options)
    for config in runs:
        check_run(config)
    diffusion = any(row.config is not None for row in possible)
    notes = _notes(case, source, given, options) if diffusion else ()
    return _Job(case, possible, given, runs, notes)


def _notes(case: Case, source: Source, given: Model | None, options: Options) -> tuple[str, ...]:
    """Where the diffusion systems' weights come from, if not from this budget's training alone."""
    if given is None:
        return (f"The score model began with the weights of {options.init}",) if options.init else ()
    told = [f"The diffusion systems use the model {source.model} as it is, which this budget did not train"]
    if given.card.mpp and case.mpp and not same_scale(case.mpp, given.card.mpp):
        told.append(f"It was trained at {given.card.mpp:.3g} um/px, these images have {case.mpp:.3g}")
    if given.card.mpp and case.mpp is None:
        told.append(
            f"It was trained at {given.card.mpp:.3g} um/px; whether these images have that is unknown"
        )
    return tuple(told)


def _training(
    case: Case, rows: Sequence[Row], given: bool, budget: Budget, options: Options
) -> list[RunConfig]:
    """The runs that a case's rows need, in the order of training; what a given model has is not trained again."""
    tasks: list[Task] = []
    for row in rows:
        tasks += [t for t in row.needs if t not in tasks and not (given and t in ("score", "mi"))]
    return [
        run_config(case, task, budget, seed, options.device, options.precision, options.init)
        for task in tasks
        for seed in (range(budget.seeds) if task in GENERATORS else (0,))
    ]


def _results(
    job: _Job, budget: Budget, placement: Placement, say: Callable[[str], None]
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
                marker = marker_of(case, shared)
                made.append(translated(case, row, shared, marker, seed, placement, say))
        scores = tuple(score_once(each, case) for each in made)
        results[row.name] = Result(tuple(read_image(file) for file in made[0].files[:SHOWN]), scores)
    return results
