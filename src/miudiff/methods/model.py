"""A model to use: score network, MI estimator, and what a user must know of them, in one diffusers-style folder.

model_index.json                      what it is, its markers, its scale, the digests of its files
unet/                                 plain diffusers: UNet2DModel.from_pretrained(folder, subfolder="unet")
scheduler/scheduler_config.json       plain diffusers: DDPMScheduler
mi_estimator/, classifier/            config.json and safetensors; the classifier is for EGSDE alone
README.md                             the model card
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from miudiff.checkpoints import WEIGHTS, fill, load_weights, read_json, save_weights, write_json
from miudiff.config import LARGEST_TILE, Scale, Strict, did_you_mean, parse
from miudiff.device import Placement
from miudiff.diffusion.classifier import NoisedClassifier, load_classifier, save_classifier
from miudiff.diffusion.score import ScoreModel, load_unet
from miudiff.diffusion.sde import MOST_STEPS, VPSDE
from miudiff.errors import CheckpointError, ConfigError
from miudiff.guards.reference import HEReference, reference_of
from miudiff.images import Pixels, resize, write_bytes
from miudiff.information.estimator import Estimator, EstimatorConfig
from miudiff.information.learner import save_estimator
from miudiff.methods.folder import INDEX, PARTS, digests, fingerprint, whole
from miudiff.methods.palette import Palette
from miudiff.naming import SHIPPED


class Card(Strict):
    """What a model says of itself, `model_index.json`."""

    name: str
    markers: tuple[str, ...] = Field(
        (), description="The markers it can stain; empty for a model of one, unnamed."
    )
    mpp: Scale | None = Field(None, description="Micrometres per pixel that it was trained at.")
    tile: int = Field(256, ge=8, le=LARGEST_TILE, description="Side of a tile that it handles at once.")
    palette: dict[str, Palette] = Field({}, description="The palette of each marker, `methods.palette`.")
    he_reference: HEReference | None = Field(
        None, description="The H&E that it knows, which a far image is warned of: `guards.reference`."
    )
    licence: str = "not stated"
    description: str = ""

    def check_marker(self, marker: str | None) -> None:
        """Make sure that the model has a marker; None is whatever it has.

        Raises:
            ConfigError: It has not.
        """
        if marker is not None and marker not in self.markers:
            raise ConfigError(
                f"marker '{marker}': the model '{self.name}' has {', '.join(self.markers) or 'one, without a name'}{did_you_mean(marker, self.markers)}"
            )


@dataclass(frozen=True)
class Model:
    """Loaded weights and their card."""

    score: ScoreModel
    estimator: Estimator | None
    card: Card
    fingerprint: str = ""
    classifier: NoisedClassifier | None = None

    @property
    def identity(self) -> str:
        """Name and digest: what a result was made with."""
        return f"{self.card.name} {self.fingerprint}"

    @property
    def multiple(self) -> int:
        """What the sides of a tile must be a multiple of."""
        return self.score.multiple

    def palette(self, marker: str | None) -> Palette | None:
        """The marker's palette, if the model has one."""
        return self.card.palette.get(marker or "")

    def for_marker(self, marker: str | None) -> ScoreModel:
        """The score model that speaks of one marker.

        Raises:
            ConfigError: A marker that the model does not have.
        """
        self.card.check_marker(marker)
        if self.score.unet.config.num_class_embeds is None:
            return self.score
        return ScoreModel(self.score.unet, self.score.sde, self.card.markers.index(marker) if marker else 0)


def model_folder(name: str | Path) -> Path:
    """The folder of a model given by path, or by the name of one that ships with the package.

    Raises:
        CheckpointError: Neither.
    """
    shipped = Path(str(files("miudiff"))) / "weights"
    for folder in (Path(name), shipped / str(name)):
        if (folder / INDEX).is_file():
            return folder
    found = sorted(p.parent.name for p in shipped.glob("*/model_index.json"))
    raise CheckpointError(
        f"{name}: no model there (no model_index.json), expected a model folder or one of: {', '.join(found) or 'none ships'}{did_you_mean(Path(name).name, found)}"
    )


def load_model(name: str | Path = SHIPPED, placement: Placement | None = None) -> Model:
    """Load a model, ready for use on `placement`'s device.

    Raises:
        CheckpointError: Missing or damaged files, or weights that do not fit their configuration.
    """
    folder = model_folder(name)
    index = read_json(folder / INDEX)
    card = _card(index, folder / INDEX)
    sde = _read_schedule(folder / "scheduler" / "scheduler_config.json")
    score = ScoreModel(load_unet(folder / "unet"), sde)
    check_markers(score.unet.config.num_class_embeds, card, folder / INDEX)
    estimator = None
    if "mi_estimator" in index:  # a folder that is only left there by another model is none of this one
        estimator = _load_estimator(folder / "mi_estimator", sde).eval().requires_grad_(False)
    classifier = None
    if "classifier" in index:
        classifier = load_classifier(folder / "classifier").eval().requires_grad_(False)
    device = placement.device if placement else torch.device("cpu")
    return Model(
        score.eval().requires_grad_(False).to(device),
        estimator.to(device) if estimator else None,
        card,
        fingerprint(folder, index, card.palette),
        classifier.to(device) if classifier else None,
    )


def _card(index: Mapping[str, Any], path: Path) -> Card:
    about = {
        k: v for k, v in index.items() if not k.startswith("_") and k not in (*PARTS, "sha256", "tone")
    }  # "tone": of folders before November 2026
    return parse_part(Card, about, path)


Settings = TypeVar("Settings", bound=Strict)


def parse_part(kind: type[Settings], values: Mapping[str, Any], path: Path) -> Settings:
    """`parse`, for a file that is part of a model and not of a user's configuration."""
    try:
        return parse(kind, values, str(path))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error


class _Schedule(BaseModel):
    """What of diffusers' `scheduler_config.json` the noise depends on."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    num_train_timesteps: int = Field(ge=2, le=MOST_STEPS)
    beta_start: float = Field(gt=0, lt=1)
    beta_end: float = Field(gt=0, lt=1)
    trained_betas: None = None
    rescale_betas_zero_snr: Literal[False] = False

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.beta_end < self.beta_start:
            raise ValueError(
                f"beta_end: found {self.beta_end:g}, expected at least beta_start, {self.beta_start:g}"
            )
        return self


def _read_schedule(path: Path) -> VPSDE:
    values = read_json(path)
    for key, expected in (("beta_schedule", "linear"), ("prediction_type", "epsilon")):
        if values.get(key, expected) != expected:
            raise CheckpointError(f"{path}: '{key}': found {values[key]!r}, expected {expected}")
    try:
        stated = parse(_Schedule, values, "cannot be used")
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    # `VPSDE` counts betas as for 1000 steps, diffusers as they are
    share = stated.num_train_timesteps / 1000
    return VPSDE(stated.num_train_timesteps, stated.beta_start * share, stated.beta_end * share)


def _load_estimator(folder: Path, sde: VPSDE | None = None) -> Estimator:
    settings = read_json(folder / "config.json")
    config = parse_part(EstimatorConfig, settings, folder / "config.json")
    with torch.device("meta"):  # no memory before the weights fit
        estimator = Estimator(config, sde)
    fill(estimator, load_weights(folder / WEIGHTS), folder / WEIGHTS, "its config.json", assign=True)
    return estimator


def check_markers(classes: int | None, card: Card, where: Path) -> None:
    """Make sure that a card names as many markers as its network has classes; None is a network of one.

    Raises:
        CheckpointError: It does not.
    """
    classes = classes or 1
    if card.markers and len(card.markers) != classes:
        raise CheckpointError(
            f"{where}: {len(card.markers)} markers ({', '.join(card.markers)}), but the network has {classes}"
        )


def save_model(
    folder: Path, model: Model, dtype: torch.dtype | None = None, readme: str | None = None
) -> None:
    """Write a model folder in place of one that is there; weights as `dtype` (float16 halves the size) or as they are.

    Raises:
        DataError: It cannot be written, or the folder holds more than a model.
    """
    with whole(folder) as new:
        _save_parts(new, model, dtype)
        index = {
            "_class_name": "VirtualStainer",
            "unet": ["diffusers", "UNet2DModel"],
            "scheduler": ["diffusers", "DDPMScheduler"],
        }
        if model.estimator is not None:
            index["mi_estimator"] = ["miudiff.information.estimator", "Estimator"]
        if model.classifier is not None:
            index["classifier"] = ["miudiff.diffusion.classifier", "NoisedClassifier"]
        write_index(new, index, model.card, readme)


def write_index(folder: Path, index: Mapping[str, Any], card: Card, readme: str | None = None) -> None:
    """Write `model_index.json` of a folder whose parts are there: what it is, its card and the digests; and its README."""
    if readme is not None:
        write_bytes(folder / "README.md", readme.encode())
    write_json(folder / INDEX, {**index, **json.loads(card.model_dump_json()), "sha256": digests(folder)})


def _save_parts(folder: Path, model: Model, dtype: torch.dtype | None) -> None:
    sde = model.score.sde
    write_json(folder / "unet" / "config.json", json.loads(model.score.unet.to_json_string()))
    save_weights(folder / "unet" / WEIGHTS, model.score.unet.state_dict(), dtype)
    if model.estimator is not None:
        save_estimator(folder / "mi_estimator", model.estimator.config, model.estimator.state_dict(), dtype)
    if model.classifier is not None:
        save_classifier(folder / "classifier", model.classifier)
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "DDPMScheduler",
            "num_train_timesteps": sde.steps,
            "beta_start": sde.beta_min * 1000 / sde.steps,
            "beta_end": sde.beta_max * 1000 / sde.steps,
            "beta_schedule": "linear",
            "variance_type": "learned_range" if model.score.learned_variance else "fixed_small",
            "clip_sample": True,
            "prediction_type": "epsilon",
        },
    )


def from_runs(
    score_weights: Path, estimator_weights: Path | None, card: Card, classifier_weights: Path | None = None
) -> Model:
    """A model from the `weights` folders of a score run, an MI run, and a run of EGSDE's classifier.

    Raises:
        CheckpointError: Missing or damaged files, or a card of other markers than the network's.
    """
    score = ScoreModel(load_unet(score_weights))
    classes = score.unet.config.num_class_embeds
    check_markers(classes, card, score_weights)
    if classes and not card.markers:
        raise CheckpointError(
            f"{score_weights}: a network of {classes} markers, but nothing names them; give --marker for each, in the order that it was trained in"
        )
    estimator = _load_estimator(estimator_weights) if estimator_weights else None
    classifier = load_classifier(classifier_weights) if classifier_weights else None
    return Model(score, estimator, card, classifier=classifier)


def write_palettes(folder: Path, palettes: Mapping[str, Palette]) -> None:
    """Put palettes into the card of a model folder, in place of those of the same markers."""
    index = read_json(folder / INDEX)
    made = {marker: json.loads(palette.model_dump_json()) for marker, palette in palettes.items()}
    write_json(folder / INDEX, index | {"palette": index.get("palette", {}) | made})


def at_mpp(image: Pixels, mpp: float | None, target: float) -> Pixels:
    """The image, uint8 [H, W, 3], at `target` micrometres per pixel; as it is where its own scale is not known."""
    factor = (mpp or target) / target
    return resize(image, *(max(round(side * factor), 1) for side in image.shape[:2]))


def add_reference(folder: Path, he: Path, mpp: float | None) -> HEReference:
    """Measure the H&E that a model knows on the images of the folder `he`, and write it into the card.

    Args:
        mpp: Micrometres per pixel of the images; None takes what each states, or else the model's.

    Raises:
        CheckpointError: No model folder there.
        DataError: Too few images, one that cannot be read, or one without a scale.
    """
    path = folder / INDEX
    index = read_json(path)
    reference = reference_of(he, mpp, index.get("mpp"))
    index["he_reference"] = json.loads(reference.model_dump_json())
    write_json(path, index)
    return reference
