"""What a comparison would train and translate, how long and how large, before it is done.

Times are measured on this machine: one step of each learner and two of each reverse walk, with fresh weights and the budget's
sizes, times how many there are. Loading, reading and scoring are not in them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar, get_args

import torch
from torch import Tensor, nn

from miudiff.checkpoints import find_states
from miudiff.config import Strict, parse
from miudiff.device import Placement
from miudiff.diffusion.classifier import NoisedClassifier
from miudiff.diffusion.score import ScoreModel, build_unet
from miudiff.gan import Generator
from miudiff.information.estimator import Estimator
from miudiff.methods.generator import GeneratorModel
from miudiff.methods.miu_diff import MIUDiff
from miudiff.methods.model import Card, Model
from miudiff.methods.systems import SYSTEMS, build, changed, steps_of
from miudiff.noise import NoiseKey
from miudiff.progress import duration
from miudiff.reproduce.budget import Budget, Task
from miudiff.reproduce.jobs import Job
from miudiff.reproduce.rows import Row
from miudiff.reproduce.training import trained
from miudiff.reproduce.translating import results_folder
from miudiff.runs import RunConfig, Sections, accelerator_on, learner_of

Module = TypeVar("Module", bound=nn.Module)
PIXEL_BYTES = 2.0  # of a stored PNG pixel: histology compresses by a third


def estimate(jobs: Sequence[Job], budget: Budget, placement: Placement) -> list[str]:
    """Lines to print: each run and row, its state, hours and disk, and the totals."""
    lines = [
        f"budget {budget.description}",
        f"on {placement}; times from one step of each kind, measured now",
    ]
    total_time = total_disk = 0.0
    for job in jobs:
        case = job.case
        lines.append(f"{case.name}: {case.counts}")
        lines += [f"  {note}" for note in (*case.notes, *job.notes)]
        costs: dict[str, tuple[float, float]] = {}
        for config in job.runs:
            if trained(config):
                lines.append(f"  train {config.task:<12} done         {config.out}")
                continue
            if config.task not in costs:
                costs[config.task] = _training_cost(config, placement)
            each, disk = costs[config.task]
            left = config.steps - max((step for step, _ in find_states(config.out)), default=0)
            total_time, total_disk = total_time + left * each, total_disk + disk
            lines.append(
                f"  train {config.task:<12} {left:>8} steps of {config.batch_size:<3} {duration(left * each):>8}  {_size(disk):>8}  {config.out}"
            )
        models = _models(budget, job.given, placement)
        shape = case.read("HE", 1)[0].shape
        for name, why in job.left_out.items():
            lines.append(f"  {name:<18} left out: {why}")
        for row in job.rows:
            folders = [results_folder(case, row, seed) for seed in range(budget.seeds)]
            left = sum(not (folder / f"{name}.png").exists() for folder in folders for name in case.test)
            each = (
                _translation_cost(row, models[row.method], placement, (shape[0], shape[1])) if left else 0.0
            )
            disk = left * shape[0] * shape[1] * PIXEL_BYTES
            total_time, total_disk = total_time + left * each, total_disk + disk
            state = f"{left:>5} images   {duration(left * each):>8}  {_size(disk):>8}" if left else "done"
            lines.append(f"  {row.name:<18} {state}")
    return [*lines, f"in all about {duration(total_time)} and {_size(total_disk)} of disk"]


def _fresh(module: Module) -> Module:
    return module.eval().requires_grad_(False)


def _models(
    budget: Budget, given: Model | None, placement: Placement
) -> Mapping[str, Model | GeneratorModel]:
    """For each method a model of the budget's sizes with fresh weights, or the model that is given."""
    sections = parse(
        Sections, {task: budget.training(task).settings for task in get_args(Task)}, "the budget"
    )
    device = placement.device
    classifier = _fresh(NoisedClassifier(sections.classifier.network)).to(device)
    if given is not None:
        model = replace(given, classifier=classifier)
    else:
        score = ScoreModel(_fresh(build_unet(sections.score.network)).to(device))
        estimator = _fresh(Estimator(sections.mi.estimator)).to(device)
        model = Model(score, estimator, Card(name="estimate"), classifier=classifier)
    return {
        **dict.fromkeys(SYSTEMS, model),
        "cut": GeneratorModel(_fresh(Generator(sections.cut.generator)).to(device), Card(name="cut"), "cut"),
        "asp": GeneratorModel(_fresh(Generator(sections.asp.generator)).to(device), Card(name="asp"), "asp"),
    }


def _training_cost(config: RunConfig, placement: Placement) -> tuple[float, float]:
    """(seconds for a step, bytes for its states and weights) of a run, measured on one sample of noise."""
    accelerator = accelerator_on(placement)
    learner = learner_of(config, accelerator)
    size = config.data.size
    batch: dict[str, Tensor] = {
        "ihc": torch.rand(1, 3, size, size) * 2 - 1,
        "he": torch.rand(1, 3, size, size) * 2 - 1,
        "key": torch.zeros(1, dtype=torch.int64),
        "marker": torch.zeros(1, dtype=torch.int64),
    }
    batch = {name: value.to(accelerator.device) for name, value in learner.draw(batch).items()}
    learner.step(batch, 0)  # the first is slower
    seconds = _timed(lambda: learner.step(batch, 1), placement)
    weights = sum(
        p.numel() * p.element_size()
        for part in learner.parts().values()
        if isinstance(part, nn.Module)
        for p in part.parameters()
    )
    return (
        seconds * config.batch_size,
        9.0 * weights,
    )  # two states of weights, average and two moments, and the weights


def _translation_cost(
    row: Row, model: Model | GeneratorModel, placement: Placement, shape: tuple[int, int]
) -> float:
    """Seconds for one image of [h, w]."""
    he = torch.zeros(1, 3, *shape, device=placement.device)

    def seconds(config: Strict | None) -> float:
        method = build(config, model, None, placement)
        return _timed(lambda: method.translate(he, [NoiseKey(0, "estimate")]), placement)

    if row.config is None:
        return seconds(None)
    method = build(row.config, model, None, placement)
    steps = steps_of(method)
    if not isinstance(method, MIUDiff):
        return seconds(changed(row.config, ("steps=2",))) / 2 * steps
    # Of two steps, the first and the last index, the last is refined.
    plain = seconds(changed(row.config, ("reverse.steps=2", "refinement.loss=none"))) / 2
    if not method.refined_steps:
        return plain * steps
    with_one = seconds(changed(row.config, ("reverse.steps=2",)))
    return plain * (steps - method.refined_steps) + (with_one - plain) * method.refined_steps


def _timed(call: Callable[[], object], placement: Placement) -> float:
    began = time.monotonic()
    call()
    if placement.device.type == "cuda":
        torch.cuda.synchronize()
    return time.monotonic() - began


def _size(size: float) -> str:
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"
