"""What a case is to be put through, made sure of: whatever can be refused is refused here, before hours of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from miudiff.device import Placement, Precision
from miudiff.errors import ConfigError
from miudiff.images import same_scale
from miudiff.methods.ilvr import ILVRConfig
from miudiff.methods.model import Model
from miudiff.methods.systems import build, changed
from miudiff.reproduce.budget import Budget, Task
from miudiff.reproduce.cases import Case
from miudiff.reproduce.rows import Row
from miudiff.reproduce.sources import Source
from miudiff.reproduce.training import GENERATORS, check_run, marker_of, run_config, with_palette
from miudiff.runs import RunConfig

MODELS: tuple[Task, ...] = ("score", "mi")  # what a model folder that is given has


@dataclass(frozen=True)
class Job:
    """What a case is to be put through.

    Attributes:
        left_out: The rows that it cannot have, each with why.
        given: The model that its diffusion systems use; None where theirs is trained.
        marker: The marker that the given model stains.
        runs: To be trained, or found trained, in this order.
        notes: What the diffusion systems are given, a sentence each.
    """

    case: Case
    rows: Sequence[Row]
    left_out: Mapping[str, str]
    given: Model | None
    marker: str | None
    runs: Sequence[RunConfig]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Means:
    """With what a job is done.

    Attributes:
        init: A model folder whose U-Net the score models begin with.
    """

    budget: Budget
    placement: Placement
    device: str
    precision: Precision
    init: Path | None


def job_of(case: Case, source: Source, given: Model | None, rows: Sequence[Row], means: Means) -> Job:
    """What a case needs, made sure of.

    Args:
        given: The model that the source names.

    Raises:
        ConfigError, CheckpointError: A model, a budget, or a run in the folder that does not fit.
    """
    left_out = {row.name: why for row in rows if (why := _why_not(case, row))}
    possible = [row for row in rows if row.name not in left_out]
    if not possible:
        reasons = "; ".join(dict.fromkeys(left_out.values()))
        raise ConfigError(f"{case.name}: no row is left of {', '.join(left_out)}: {reasons}")
    runs = _training(case, possible, given is not None, means)
    for config in runs:
        check_run(config)
    notes: tuple[str, ...] = ()
    if not _learns_variance(given, runs):
        possible, told = _without_learned_variance(possible)
        notes += told
    marker = marker_of(case, given, source.marker) if given is not None else None
    if given is not None:
        given = with_palette(case, given, marker, means.placement)
        for row in possible:
            if row.config is not None and row.method != "egsde":  # whose classifier is yet to be trained
                build(row.config, given, marker, means.placement)
    if any(row.config is not None for row in possible):
        notes = (*_notes(case, source, given, marker, means.init), *notes)
    return Job(case, possible, left_out, given, marker, runs, notes)


def _learns_variance(given: Model | None, runs: Sequence[RunConfig]) -> bool:
    """Whether the score model of the diffusion systems has a variance of its own, or will have."""
    if given is not None:
        return given.score.learned_variance
    return all(config.score.network.learned_variance for config in runs if config.task == "score")


def _without_learned_variance(rows: Sequence[Row]) -> tuple[list[Row], tuple[str, ...]]:
    """The rows on a network that learned no variance, and what that changes of them."""
    fixed = [
        replace(row, config=changed(row.config, ("variance=fixed_large",)))
        if isinstance(row.config, ILVRConfig) and row.config.variance == "learned"
        else row
        for row in rows
    ]
    if fixed == list(rows):
        return fixed, ()
    # The official code's own choice for such a network.
    return fixed, ("ILVR takes beta for its variance (fixed_large): the score network learned none",)


def _why_not(case: Case, row: Row) -> str:
    """Why a case cannot have a row; empty where it can."""
    own = [task for task in row.needs if task not in MODELS]
    if own and not case.trains:
        what = "a classifier" if own == ["classifier"] else "a generator"
        return f"it needs {what} of this dataset's own, and nothing is trained"
    if row.method == "asp" and not case.paired:
        return "it trains on pairs, and no training image has its partner"
    return ""


def _notes(
    case: Case, source: Source, given: Model | None, marker: str | None, init: Path | None
) -> tuple[str, ...]:
    """What the diffusion systems are given, if not this budget's training alone."""
    if given is None:
        return (f"The score model began with the weights of {init}",) if init else ()
    card = given.card
    told = [f"The diffusion systems use the model {source.model} as it is, which this budget did not train"]
    if marker != case.marker and source.marker is not None:
        told.append(
            f"It stains {marker}, as --marker says; the dataset's own is {case.marker or 'not named'}"
        )
    if marker is not None and given.palette(marker) is None:
        told.append(f"It has no palette for {marker}: rows that have one take the luma as it is")
    if card.mpp and case.mpp and not same_scale(case.mpp, card.mpp):
        told.append(f"It was trained at {card.mpp:.3g} um/px, these images have {case.mpp:.3g}")
    if card.mpp and case.mpp is None:
        told.append(f"It was trained at {card.mpp:.3g} um/px; whether these images have that is unknown")
    return tuple(told)


def _training(case: Case, rows: Sequence[Row], given: bool, means: Means) -> list[RunConfig]:
    """The runs that a case's rows need, in the order of training; what a given model has is not trained again."""
    tasks: list[Task] = []
    for row in rows:
        tasks += [t for t in row.needs if t not in tasks and not (given and t in MODELS)]
    return [
        run_config(case, task, means.budget, seed, means.device, means.precision, means.init)
        for task in tasks
        for seed in (range(means.budget.seeds) if task in GENERATORS else (0,))
    ]
