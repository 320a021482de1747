"""Training what a row needs: one run's folder for each learner, and one model folder of them for the diffusion systems.

    OUT/NAME/runs/{score,mi,classifier}, runs/{cut,asp}-seed0 ...        OUT/NAME/model

The diffusion systems share one score model, so that their rows differ by the method alone, and a row's seeds are seeds of its
noise. A generator has no noise: its seeds are whole trainings.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from miudiff.checkpoints import WEIGHTS, find_states
from miudiff.config import parse
from miudiff.device import Placement, Precision
from miudiff.diffusion.classifier import load_classifier
from miudiff.images import list_images, read_image
from miudiff.methods.model import Card, Model, from_runs, load_model, save_model
from miudiff.methods.tone import measure_tone
from miudiff.reproduce.budget import Budget, Task
from miudiff.reproduce.cases import Case
from miudiff.runs import RunConfig

GENERATORS: tuple[Task, ...] = ("cut", "asp")
MULTIPLE = 32  # the paper's network halves a tile five times


def run_folder(case: Case, task: Task, seed: int = 0) -> Path:
    """Where a learner's run lies; only the generators have one for each seed."""
    return case.folder / "runs" / (f"{task}-seed{seed}" if task in GENERATORS else task)


def run_config(
    case: Case,
    task: Task,
    budget: Budget,
    seed: int,
    device: str,
    precision: Precision = "auto",
    init: Path | None = None,
) -> RunConfig:
    """The training run of a learner on a case.

    Args:
        init: For the score model: a model folder whose U-Net it begins with.

    Raises:
        ConfigError: Settings in the budget that do not fit the learner.
    """
    training = budget.training(task)
    tile = min(training.tile, case.smallest_side() // MULTIPLE * MULTIPLE)
    data = {"root": case.images / "train", "size": tile}
    scale = {"native": True} if case.mpp is None else {"mpp": case.mpp}
    source = {} if case.mpp is None else {"mpp": case.mpp}
    both = task not in ("score", "mi")
    settings = dict(training.settings)
    if task == "score" and init is not None:
        settings["init"] = str(init / "unet")
    marker = {"marker": case.marker} if case.marker else {}
    values: dict[str, Any] = {
        "task": task,
        "out": run_folder(case, task, seed),
        "data": {**data, **scale, "sources": [{"files": "IHC", **source, **marker}]},
        "steps": training.steps,
        "batch_size": training.batch_size,
        "seed": seed,
        "device": device,
        "precision": precision,
        "save_every": max(1, min(500, training.steps // 4)),
        "log_every": max(1, min(50, training.steps // 10)),
        task: settings,
    }
    if both:
        values["he"] = {**data, **scale, "sources": [{"files": "HE", **source}]}
    if task == "asp":
        values["paired"] = True
    if case.marker:
        values["markers"] = (case.marker,)
    return parse(RunConfig, values, f"the budget's '{task}'")


def trained(config: RunConfig) -> bool:
    """Whether a run has come to its end."""
    states = find_states(config.out)
    weights = list((config.out / "weights").rglob(WEIGHTS))
    return bool(weights) and bool(states) and states[-1][0] >= config.steps


def diffusion_model(
    case: Case, with_mi: bool, with_classifier: bool, given: str | None, placement: Placement
) -> Model:
    """The model of the diffusion systems: `given` or made of the runs, with the luma curve of the training images.

    A classifier is always of the runs: what tells this case's H&E from its IHC ships nowhere.
    """
    runs = case.folder / "runs"
    classifier = runs / "classifier" / "weights" if with_classifier else None
    if given is not None:
        model = load_model(given, placement)
        network = load_classifier(classifier).eval().requires_grad_(False) if classifier else None
        return replace(model, classifier=network.to(placement.device) if network else None)
    images = {
        stain: [read_image(p) for p in list_images(case.images / "train" / stain)] for stain in ("HE", "IHC")
    }
    tone = measure_tone(images["HE"], images["IHC"])
    marker = case.marker or "IHC"
    card = Card(
        name=case.name,
        markers=(marker,),
        mpp=case.mpp,
        tone={marker: tone},
        description=f"Trained by `miudiff reproduce` on {case.train[1]} IHC images",
    )
    folder = case.folder / "model"
    estimator = runs / "mi" / "weights" if with_mi else None
    save_model(folder, from_runs(runs / "score" / "weights", estimator, card, classifier))
    return load_model(folder, placement)
