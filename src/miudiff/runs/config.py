"""A run's configuration, and what of it contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from miudiff.config import LAST_STEP, Strict
from miudiff.data.pairs import names_both_stains
from miudiff.data.tiles import DataConfig
from miudiff.diffusion.classifier import NoisedClassifier
from miudiff.diffusion.classifier_learner import ClassifierConfig
from miudiff.diffusion.learner import ScoreConfig
from miudiff.diffusion.score import build_unet
from miudiff.distillation.learner import DistillConfig
from miudiff.errors import ConfigError
from miudiff.gan import Discriminator, Generator
from miudiff.information.estimator import Estimator
from miudiff.information.learner import MIConfig
from miudiff.methods.asp import ASPConfig
from miudiff.methods.cut import CUTConfig

Task = Literal["score", "mi", "classifier", "cut", "asp", "distill"]
MOST_PIXELS = 10**9  # of a batch: 12 GB
MOST_WEIGHTS = 2 * 10**9  # of a run's networks: 8 GB, and four times as much for what trains them
BOTH_STAINS: tuple[Task, ...] = ("classifier", "cut", "asp")  # learn from batches of "he" and "ihc"


class Sections(Strict):
    """What each task learns with."""

    score: ScoreConfig = ScoreConfig()
    mi: MIConfig = MIConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    cut: CUTConfig = CUTConfig()
    asp: ASPConfig = ASPConfig()
    distill: DistillConfig = DistillConfig()


class RunConfig(Sections):
    """A training run."""

    task: Task = Field(
        description="What is learned: the score model, the MI estimator, EGSDE's classifier, the generator of CUT (FastCUT) or ASP, or a one-step student of MIU-Diff."
    )
    out: Path = Field(description="The run's folder; the same command goes on in it.")
    data: DataConfig = Field(description="IHC images; of the task `distill`, H&E images.")
    he: DataConfig | None = Field(
        None,
        description="H&E images, for tasks that learn from both; what it does not say is as in `data`. None: those of `data`'s splits.",
    )
    paired: bool = Field(
        False, description="H&E and IHC tiles are the same place of two images of one name, not drawn apart."
    )
    held_out: DataConfig | None = Field(
        None, description="Images to measure the MI estimator on; never trained on."
    )
    markers: tuple[str, ...] = Field(
        (), description="Names of the markers of a model of several, in the order of its classes."
    )
    steps: int = Field(40_000, ge=1, le=LAST_STEP)
    batch_size: int = Field(4, ge=1, le=65_536, description="Over all processes.")
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps.")
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    log_every: int = Field(20, ge=1, le=LAST_STEP, description="Steps between lines of the log.")
    save_every: int = Field(
        500, ge=1, le=LAST_STEP, description="Steps between states; a kill loses at most these."
    )
    workers: int | None = Field(
        None,
        ge=0,
        le=256,
        description="Processes that read tiles, for each that trains; None: up to 8 on CUDA, as cores and shared memory allow, else none.",
    )

    @model_validator(mode="before")
    @classmethod
    def _he_is_like_data(cls, values: Any) -> Any:
        """Both stains have one tile size and scale, so they are said once."""
        he, data = (values.get(key) if isinstance(values, Mapping) else None for key in ("he", "data"))
        if not isinstance(he, Mapping) or not isinstance(data, Mapping):
            return values
        return {**values, "he": {**{k: v for k, v in data.items() if k != "sources"}, **he}}


def check(config: RunConfig) -> None:
    """Refuse what contradicts itself before any image is looked for.

    Raises:
        ConfigError: Markers, tile sizes or stains that do not fit together.
    """
    classes, markers = config.score.network.markers, len(config.markers)
    mixed = config.task == "score" and classes is None and markers > 1
    if mixed or classes not in (None, markers):
        raise ConfigError(
            f"score.network.markers: found {classes}, expected {markers}, the number of 'markers'"
        )
    _check_sizes(config)
    _check_stains(config)
    if config.task in ("cut", "asp"):
        _check_generator(config)
    _check_weights(config)


def _check_sizes(config: RunConfig) -> None:
    """Refuse tiles that the network cannot take before any is read."""
    network, patch = config.score.network, config.mi.estimator.patch
    most = MOST_PIXELS // config.data.size**2
    if config.batch_size > most:
        raise ConfigError(
            f"batch_size: found {config.batch_size}, expected at most {most} tiles of {config.data.size} x {config.data.size} (data.size)"
        )
    for task, used in (("score", network), ("distill", config.distill.network)):
        if config.task == task and config.data.size % used.multiple:
            raise ConfigError(
                f"data.size: found {config.data.size}, expected a multiple of {used.multiple}, as {task}.network.channels halve it"
            )
    for key, data in (("data", config.data), ("held_out", config.held_out)):
        if config.task == "mi" and data is not None and data.size < 2 * patch:
            raise ConfigError(
                f"{key}.size: found {data.size}, expected at least {2 * patch}, two patches of mi.estimator.patch"
            )


def _check_weights(config: RunConfig) -> None:
    """Refuse networks that no machine holds before memory is taken for them."""
    key, network = f"{config.task}.network", config.score.network
    with torch.device("meta"):
        match config.task:
            case "score":
                made: list[nn.Module] = [build_unet(network)]
            case "distill":
                made = [build_unet(config.distill.network)]
            case "classifier":
                made = [NoisedClassifier(config.classifier.network)]
            case "mi":
                key, made = "mi.estimator", [Estimator(config.mi.estimator)]
            case "cut" | "asp":
                players = config.cut if config.task == "cut" else config.asp
                key = f"{config.task}.generator, {config.task}.discriminator"
                made = [Generator(players.generator), Discriminator(players.discriminator)]
    count = sum(weight.numel() for one in made for weight in one.parameters())
    if count > MOST_WEIGHTS:
        raise ConfigError(f"{key}: found {count:,} weights, expected at most {MOST_WEIGHTS:,}")


def _check_stains(config: RunConfig) -> None:
    """Refuse what contradicts itself between `task`, `data`, `he` and `paired`, before any image is looked for."""
    if config.task not in BOTH_STAINS:
        if config.he is not None or config.paired:
            key = "he" if config.he is not None else "paired"
            raise ConfigError(
                f"'{key}': the task '{config.task}' learns from the images of 'data' alone; leave it out"
            )
        return
    if config.he is None:
        if not all(names_both_stains(source) for source in config.data.sources):
            raise ConfigError(
                "'he' is missing: give he.sources, or data.sources that are published datasets with a 'split'"
            )
        return
    he, data = config.he, config.data
    same: dict[str, tuple[object, object]] = {"size": (he.size, data.size), "mpp": (he.mpp, data.mpp)}
    same |= {"fit": (he.fit, data.fit), "native": (he.native, data.native)}
    if config.paired:
        same["scale_jitter"] = (he.scale_jitter, data.scale_jitter)
        same["dihedral"] = (he.dihedral, data.dihedral)
    for key, (found, expected) in same.items():
        if found != expected:
            raise ConfigError(f"he.{key}: found {found}, expected {expected} as data.{key}, or nothing")


def _check_generator(config: RunConfig) -> None:
    if config.task == "asp" and not config.paired:
        raise ConfigError("'paired': found false, expected true: ASP learns from pairs")
    if len(config.markers) > 1:
        raise ConfigError(
            f"'markers': found {len(config.markers)}, expected at most one: a generator stains one marker"
        )
    least = config.asp.least if config.task == "asp" else config.cut.discriminator.least
    if config.data.size < least:
        raise ConfigError(
            f"data.size: found {config.data.size}, expected at least {least} for '{config.task}'"
        )
