"""Translating with one pass of a generator, and the model folder that keeps it.

model_index.json                      the method it was trained by, and its card
generator/                            config.json and diffusion_pytorch_model.safetensors
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miudiff.checkpoints import WEIGHTS, fill, load_weights, read_json, save_weights, write_json
from miudiff.device import Placement
from miudiff.errors import CheckpointError
from miudiff.gan import Generator, GeneratorConfig
from miudiff.methods.folder import INDEX, fingerprint, whole
from miudiff.methods.model import Card, model_folder, parse_part, write_index
from miudiff.noise import NoiseSource

MethodName = Literal["cut", "fastcut", "asp"]
MULTIPLE = 4  # the generator halves its input twice


class GeneratorTranslator:
    """The translator of CUT, FastCUT and ASP. Nothing in it is random: the keys change nothing."""

    reverse = None

    def __init__(self, generator: Generator, placement: Placement) -> None:
        self.generator, self.placement = generator.eval(), placement

    @torch.no_grad()
    def translate(self, he: Tensor, keys: Sequence[NoiseSource]) -> Tensor:
        """Virtual IHC of `he`, both [B, 3, H, W] in [-1, 1]; sides of at least 8, mirrored up to multiples of 4."""
        height, width = he.shape[2:]
        padded = F.pad(he, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="reflect")
        with self.placement.autocast():
            ihc = self.generator(padded)
        return ihc[:, :, :height, :width].float()


@dataclass(frozen=True)
class GeneratorModel:
    """A loaded generator, its card, and the method that trained it."""

    generator: Generator
    card: Card
    method: MethodName
    fingerprint: str = ""

    @property
    def identity(self) -> str:
        """Name and digest: what a result was made with."""
        return f"{self.card.name} {self.fingerprint}"

    @property
    def multiple(self) -> int:
        """What the sides of a tile must be a multiple of."""
        return MULTIPLE


def without_norms(generator: Generator) -> Generator:
    """A generator in eval mode that does what `generator` does in it, each spectral norm folded into its weight."""
    plain = Generator(generator.config.model_copy(update={"spectral_norm": False}))
    training = generator.training
    generator.eval()  # a weight that is looked at in training mode moves the power iteration on
    weights = {
        f"{name}.{kind}": value
        for name, module in generator.named_modules()
        if isinstance(module, nn.Conv2d)
        for kind, value in (("weight", module.weight), ("bias", module.bias))
        if value is not None
    }
    generator.train(training)
    plain.load_state_dict(plain.state_dict() | weights)
    return plain.eval()


def save_generator_model(folder: Path, model: GeneratorModel, dtype: torch.dtype | None = None) -> None:
    """Write a model folder in place of one that is there; weights as `dtype` (float16 halves the size) or as they are.

    Raises:
        DataError: It cannot be written, or the folder holds more than a model.
    """
    with whole(folder) as new:
        write_json(new / "generator" / "config.json", model.generator.config.model_dump(mode="json"))
        save_weights(new / "generator" / WEIGHTS, model.generator.state_dict(), dtype)
        index = {
            "_class_name": "VirtualStainer",
            "method": model.method,
            "generator": ["miudiff.gan", "Generator"],
        }
        write_index(new, index, model.card)


def load_generator_model(name: str | Path, placement: Placement | None = None) -> GeneratorModel:
    """Load a model folder, ready for use on `placement`'s device.

    Raises:
        CheckpointError: Missing or damaged files, another kind of model, or weights that do not fit their configuration.
    """
    folder = model_folder(name)
    path = folder / INDEX
    index = read_json(path)
    about = {key: value for key, value in index.items() if not key.startswith("_") and key != "sha256"}
    method = about.pop("method", None)
    if about.pop("generator", None) is None or method not in get_args(MethodName):
        raise CheckpointError(
            f"{path}: 'method': found {method!r}, expected a generator of {', '.join(get_args(MethodName))}"
        )
    part = folder / "generator"
    card = parse_part(Card, about, path)
    config = parse_part(GeneratorConfig, read_json(part / "config.json"), part / "config.json")
    with torch.device("meta"):  # no memory before the weights fit
        generator = Generator(config)
    fill(generator, load_weights(part / WEIGHTS), part / WEIGHTS, "its config.json", assign=True)
    device = placement.device if placement else torch.device("cpu")
    generator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub leaves it out
    generator = generator.eval().requires_grad_(False).to(device)
    return GeneratorModel(generator, card, method, fingerprint(folder, index))
