"""A model to use: score network, MI estimator, and what a user must know of them, in one diffusers-style folder.

model_index.json                      what it is, its markers, its scale
unet/                                 plain diffusers: UNet2DModel.from_pretrained(folder, subfolder="unet")
scheduler/scheduler_config.json       plain diffusers: DDPMScheduler
mi_estimator/                         config.json and safetensors
README.md                             the model card
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from pydantic import Field

from miudiff.checkpoints import load_weights, read_json, save_weights, write_json
from miudiff.config import Strict, parse
from miudiff.device import Placement
from miudiff.diffusion.score import ScoreModel, load_unet
from miudiff.diffusion.sde import VPSDE
from miudiff.errors import CheckpointError, ConfigError
from miudiff.information.estimator import Estimator, EstimatorConfig
from miudiff.information.learner import save_estimator

SHIPPED = "ki67-small"
WEIGHTS = "diffusion_pytorch_model.safetensors"


class Card(Strict):
    """What a model says of itself, `model_index.json`."""

    name: str
    markers: tuple[str, ...] = Field(
        (), description="The markers it can stain; empty for a model of one, unnamed."
    )
    mpp: float | None = Field(None, gt=0, description="Micrometres per pixel that it was trained at.")
    tile: int = Field(256, ge=8, description="Side of a tile that it handles at once.")
    licence: str = "not stated"
    description: str = ""


@dataclass(frozen=True)
class Model:
    """Loaded weights and their card."""

    score: ScoreModel
    estimator: Estimator | None
    card: Card

    def for_marker(self, marker: str | None) -> ScoreModel:
        """The score model that speaks of one marker.

        Raises:
            ConfigError: A marker that the model does not have.
        """
        markers = self.card.markers
        if marker is not None and marker not in markers:
            raise ConfigError(
                f"marker '{marker}': the model '{self.card.name}' has {', '.join(markers) or 'one, without a name'}"
            )
        if self.score.unet.config.num_class_embeds is None:
            return self.score
        return ScoreModel(self.score.unet, self.score.sde, markers.index(marker) if marker else 0)


def model_folder(name: str | Path) -> Path:
    """The folder of a model given by path, or by the name of one that ships with the package.

    Raises:
        CheckpointError: Neither.
    """
    shipped = Path(str(files("miudiff"))) / "weights" / str(name)
    for folder in (Path(name), shipped):
        if (folder / "model_index.json").is_file():
            return folder
    found = sorted(p.parent.name for p in shipped.parent.glob("*/model_index.json"))
    raise CheckpointError(
        f"{name}: no model there (no model_index.json), expected a model folder or one of: {', '.join(found) or 'none ships'}"
    )


def load_model(name: str | Path = SHIPPED, placement: Placement | None = None) -> Model:
    """Load a model, ready for use on `placement`'s device.

    Raises:
        CheckpointError: Missing or damaged files, or weights that do not fit their configuration.
    """
    folder = model_folder(name)
    index = {
        k: v
        for k, v in read_json(folder / "model_index.json").items()
        if not k.startswith("_") and k not in _COMPONENTS
    }
    try:
        card = parse(Card, index, str(folder / "model_index.json"))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    schedule = read_json(folder / "scheduler" / "scheduler_config.json")
    try:
        sde = VPSDE(
            int(schedule["num_train_timesteps"]), float(schedule["beta_start"]), float(schedule["beta_end"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: its configuration cannot be used ({type(error).__name__}: {error})"
        ) from error
    score = ScoreModel(load_unet(folder / "unet"), sde)
    estimator = None
    if (folder / "mi_estimator").is_dir():
        settings = read_json(folder / "mi_estimator" / "config.json")
        estimator = Estimator(
            parse(EstimatorConfig, settings, str(folder / "mi_estimator" / "config.json")), sde
        )
        _fill(estimator, folder / "mi_estimator" / WEIGHTS)
        estimator = estimator.eval().requires_grad_(False)
    device = placement.device if placement else torch.device("cpu")
    score = score.eval().requires_grad_(False).to(device)
    return Model(score, estimator.to(device) if estimator else None, card)


_COMPONENTS = ("unet", "scheduler", "mi_estimator")


def _fill(module: torch.nn.Module, path: Path) -> None:
    try:
        module.load_state_dict(load_weights(path))
    except RuntimeError as error:
        raise CheckpointError(
            f"{path}: does not fit its config.json ({str(error).splitlines()[-1].strip()[:160]})"
        ) from error


def save_model(
    folder: Path, model: Model, dtype: torch.dtype | None = None, readme: str | None = None
) -> None:
    """Write a model folder; weights as `dtype` (float16 halves the size) or as they are."""
    sde = model.score.sde
    folder.mkdir(parents=True, exist_ok=True)
    model.score.unet.save_config(folder / "unet")
    save_weights(folder / "unet" / WEIGHTS, model.score.unet.state_dict(), dtype)
    if model.estimator is not None:
        save_estimator(folder / "mi_estimator", model.estimator.config, model.estimator.state_dict(), dtype)
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "DDPMScheduler",
            "num_train_timesteps": sde.steps,
            "beta_start": sde.beta_min,
            "beta_end": sde.beta_max,
            "beta_schedule": "linear",
            "variance_type": "learned_range" if model.score.learned_variance else "fixed_small",
            "clip_sample": True,
            "prediction_type": "epsilon",
        },
    )
    index = {
        "_class_name": "VirtualStainer",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", "DDPMScheduler"],
    }
    if model.estimator is not None:
        index["mi_estimator"] = ["miudiff.information.estimator", "Estimator"]
    if readme is not None:
        (folder / "README.md").write_text(readme, encoding="utf-8")
    write_json(folder / "model_index.json", index | json.loads(model.card.model_dump_json()))


def from_runs(score_weights: Path, estimator_weights: Path | None, card: Card) -> Model:
    """A model from the `weights` folders of a score run and of an MI run."""
    estimator = None
    if estimator_weights is not None:
        settings = read_json(estimator_weights / "config.json")
        estimator = Estimator(parse(EstimatorConfig, settings, str(estimator_weights / "config.json")))
        _fill(estimator, estimator_weights / WEIGHTS)
    return Model(ScoreModel(load_unet(score_weights)), estimator, card)
