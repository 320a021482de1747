"""Training what a row needs: one run's folder for each learner, and one model folder of them for the diffusion systems.

    OUT/NAME/runs/{score,mi,classifier}, runs/{cut,asp}-seed0 ...        OUT/NAME/model

The diffusion systems share one score model, so that their rows differ by the method alone, and a row's seeds are seeds of its
noise. A generator has no noise: its seeds are whole trainings.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from miudiff.cells import CELL, NUCLEUS
from miudiff.checkpoints import WEIGHTS, find_states
from miudiff.config import parse, read_yaml
from miudiff.device import Placement, Precision
from miudiff.diffusion.classifier import ClassifierNetwork, load_classifier
from miudiff.diffusion.learner import begin_with
from miudiff.diffusion.score import build_unet
from miudiff.errors import CheckpointError, ConfigError, DataError
from miudiff.images import list_images, read_image
from miudiff.matching import match_share, usual
from miudiff.methods.model import Card, Model, from_runs, load_model, model_folder, save_model, write_palettes
from miudiff.methods.palette import Palette, measure_palette
from miudiff.methods.systems import load_any
from miudiff.naming import is_nuclear
from miudiff.reproduce.budget import Budget, Task
from miudiff.reproduce.cases import Case
from miudiff.reproduce.prepare import STAINS
from miudiff.reproduce.scale import MULTIPLE
from miudiff.reproduce.sources import Source
from miudiff.runs import RunConfig, check

GENERATORS: tuple[Task, ...] = ("cut", "asp")
# May differ between a run and the same run gone on with: none of it changes what is learned.
_FREE = {"out", "device", "precision", "log_every", "save_every", "workers", "held_out"}


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
        init: For the score model: a model folder, or the name of one that ships, whose U-Net it begins with.

    Raises:
        ConfigError: Settings in the budget that do not fit the learner.
        CheckpointError: No model at `init`.
    """
    training = budget.training(task)
    tile = min(training.tile, case.smallest_side() // MULTIPLE * MULTIPLE)
    data = {"root": case.images / "train", "size": tile}
    scale = {"native": True} if case.mpp is None else {"mpp": case.mpp}
    source: dict[str, Any] = {} if case.mpp is None else {"mpp": case.mpp}
    if task == "asp":
        source["exclude"] = [f"{glob.escape(name)}.png" for name in case.alone()]
    both = task not in ("score", "mi")
    settings = dict(training.settings)
    if task == "score" and init is not None:
        settings["init"] = str(model_folder(init) / "unet")
    if task == "classifier" and tile < training.tile:
        settings["network"] = _smaller(settings.get("network", {}), tile)
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


def _smaller(network: Any, tile: int) -> Any:
    """The classifier's network for smaller tiles, with attention at the same depths; wrong settings stay as they are, to be told."""
    if not isinstance(network, Mapping):
        return network
    size, attention = (
        network.get(key, ClassifierNetwork.model_fields[key].default) for key in ("size", "attention")
    )
    try:
        depths = [level for level in range(16) if size >> level in attention]
    except TypeError:
        return network
    return {**network, "size": tile, "attention": [tile >> level for level in depths]}


def check_run(config: RunConfig) -> None:
    """Refuse a run that could not be trained, or whose folder holds another one, before any is begun.

    Raises:
        ConfigError: Settings that contradict each other, or a run that was begun with others.
        CheckpointError: Weights to begin with that are not there or of another shape.
    """
    check(config)
    record = config.out / "run.yaml"
    if record.exists() and find_states(config.out):
        before = parse(RunConfig, read_yaml(record), str(record))
        if found := _difference(_learned(before), _learned(config)):
            key, was, now = found
            raise ConfigError(
                f"{record}: this run was begun with {key} {was!r}, now it is {now!r}; give another --out, or remove {config.out}"
            )
    elif config.task == "score" and config.score.init is not None:
        network = config.score.network
        try:
            begin_with(build_unet(network), config.score.init, network)
        except CheckpointError as error:
            raise CheckpointError(f"--init: {error}; give a model of the budget's network") from error


def _learned(config: RunConfig) -> dict[str, Any]:
    root = {"data": {"root"}, "he": {"root"}}
    return config.model_dump(mode="json", exclude={**dict.fromkeys(_FREE, True), **root})


def _difference(before: Any, now: Any, key: str = "") -> tuple[str, object, object] | None:
    """The first (key, value before, value now) in which two configurations differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in now:
            if found := _difference(before.get(name), now[name], f"{key}.{name}".removeprefix(".")):
                return found
        return None
    return None if before == now else (key, before, now)


def trained(config: RunConfig) -> bool:
    """Whether a run has come to its end."""
    states = find_states(config.out)
    weights = list((config.out / "weights").rglob(WEIGHTS))
    return bool(weights) and bool(states) and states[-1][0] >= config.steps


def given_model(source: Source, placement: Placement) -> Model | None:
    """The model that `--model` names for a dataset, or that the twin set has; None where none is named.

    Raises:
        CheckpointError, ConfigError: No such model, or a generator.
    """
    if source.model is None:
        return None
    model = load_any(source.model, placement)
    if not isinstance(model, Model):
        raise ConfigError(
            f"--model {source.name}={source.model}: trained as {model.method}, expected a score model: a folder with a unet"
        )
    return model


def with_palette(case: Case, model: Model, marker: str | None, placement: Placement) -> Model:
    """The model; where it has no palette for the marker, with that of the training images, if there are any."""
    if marker is None or model.palette(marker) is not None or not case.trains:
        return model
    palette = {**model.card.palette, marker: _palette(case, model, marker, placement)}
    return replace(model, card=model.card.model_copy(update={"palette": palette}))


def marker_of(case: Case, model: Model, asked: str | None = None) -> str | None:
    """The marker that a model is to stain a case for; None where the model has one, without a name.

    Args:
        asked: What `--marker` says, whatever the dataset's own.

    Raises:
        ConfigError: The model has others, or several and nobody says which.
    """
    markers = model.card.markers
    if asked is not None:
        if asked not in markers:
            raise ConfigError(
                f"--marker {case.name}={asked}: the model '{model.card.name}' stains {', '.join(markers) or 'one marker, without a name'}"
            )
        return asked
    if not markers or case.marker in markers:
        return case.marker if markers else None
    if case.marker is None and len(markers) == 1:
        return markers[0]
    meant = case.marker or "not named"
    raise ConfigError(
        f"--model {case.name}=...: the model '{model.card.name}' stains {', '.join(markers)}, but the marker of {case.name} is {meant}; give a model of that marker, or --marker {case.name}={markers[0]} to have it stained for that"
    )


def diffusion_model(
    case: Case, with_mi: bool, with_classifier: bool, given: Model | None, placement: Placement
) -> Model:
    """The model of the diffusion systems: `given` or made of the runs, with the palette of the training images.

    A classifier is always of the runs: what tells this case's H&E from its IHC ships nowhere.
    """
    runs = case.folder / "runs"
    classifier = runs / "classifier" / "weights" if with_classifier else None
    if given is not None:
        network = load_classifier(classifier).eval().requires_grad_(False) if classifier else None
        return replace(given, classifier=network.to(placement.device) if network else None)
    marker = case.marker or "IHC"
    about = f"Trained by `miudiff reproduce` on {case.train[1]} IHC images"
    card = Card(name=case.name, markers=(marker,), mpp=case.mpp, description=about)
    folder = case.folder / "model"
    estimator = runs / "mi" / "weights" if with_mi else None
    save_model(folder, from_runs(runs / "score" / "weights", estimator, card, classifier))
    made = load_model(folder, placement)
    palettes = {marker: _palette(case, made, marker, placement)}
    write_palettes(folder, palettes)
    return replace(made, card=made.card.model_copy(update={"palette": palettes}))


def _palette(case: Case, model: Model, marker: str, placement: Placement) -> Palette:
    he, ihc = ([read_image(p) for p in list_images(case.images / "train" / stain)] for stain in STAINS)
    measured = measure_palette(he, ihc, is_nuclear(marker), NUCLEUS / case.mpp if case.mpp else CELL)
    with suppress(DataError):  # too little tissue to match it on
        return match_share(model, marker, measured, usual(model), placement, ihc)
    return measured
