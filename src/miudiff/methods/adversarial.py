"""What CUT and ASP share: two players, the heads of the patch loss, and how each takes its step; the losses are the methods'.

The places of the patches are drawn from (seed, step): all images of a batch share them, as in the official code, and so do all
processes. Gradients are averaged over processes here and not by DistributedDataParallel, since
the generator runs several times to one backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor
from torch.nn.utils import get_total_norm

from miudiff.checkpoints import Part
from miudiff.config import Strict, Width
from miudiff.contrast import Epsilon, PatchHeads, patch_nce
from miudiff.device import upload
from miudiff.gan import (
    Discriminator,
    DiscriminatorConfig,
    Generator,
    GeneratorConfig,
    initialise,
    least_squares,
)
from miudiff.methods.generator import GeneratorModel, MethodName, save_generator_model, without_norms
from miudiff.methods.model import Card
from miudiff.noise import NoiseKey
from miudiff.training.descent import Descent, average_gradients, optimizer_over, placed

Share = Annotated[float, Field(ge=0, lt=1)]
TAPS = (0, 4, 8, 12, 16)  # CUT's layers


def _taps_in_the_encoder(values: dict[str, Any]) -> tuple[int, ...]:
    """CUT's layers, as far as the generator's encoder has them."""
    generator = values.get("generator")  # none where it is wrong, which is told
    return tuple(tap for tap in TAPS if generator is None or tap < generator.encoder_layers)


class AdamConfig(Strict):
    """Adam, for all three networks."""

    lr: float = Field(2e-4, gt=0)
    betas: tuple[Share, Share] = (0.5, 0.999)


class AdversarialConfig(Strict):
    """The settings that CUT and ASP share; the defaults are CUT's.

    A run of `steps` is divided into `epochs` + `decay_epochs` equal parts, so it is the official schedule where `steps` is their
    number times that of the training images.
    """

    generator: GeneratorConfig = GeneratorConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    optimizer: AdamConfig = AdamConfig()
    epochs: int = Field(200, ge=0, le=10**6, description="Parts of the run at the full learning rate.")
    decay_epochs: int = Field(200, ge=0, le=10**6, description="Parts over which the rate falls linearly.")
    gan_weight: float = Field(1.0, ge=0, description="Of the generator's adversarial loss.")
    nce_weight: float = Field(1.0, ge=0, description="Of the patch loss between H&E and virtual IHC.")
    identity: bool = Field(True, description="The patch loss between real IHC and its translation too.")
    taps: tuple[int, ...] = Field(
        default_factory=_taps_in_the_encoder,
        min_length=1,
        max_length=64,
        description="The layers of the generator's encoder that are compared; by default CUT's 0, 4, 8, 12, 16, as far as it has them.",
    )
    patches: int = Field(256, ge=2, le=65_536, description="Places of each layer that are compared.")
    head_width: Width = Field(256, description="Width of the heads.")
    temperature: float = Field(0.07, gt=0)

    @field_validator("taps")
    @classmethod
    def _in_the_encoder(cls, taps: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        generator = info.data.get("generator")
        if generator and not 0 <= min(taps) <= max(taps) < generator.encoder_layers:
            raise ValueError(f"expected layers of the encoder, 0 to {generator.encoder_layers - 1}")
        return taps

    @property
    def decay_from(self) -> float:
        """The share of the run after which the learning rate falls."""
        return self.epochs / max(1, self.epochs + self.decay_epochs)

    def epoch(self, step: int, steps: int) -> int:
        """The epoch, from 0, that `step` lies in."""
        return step * (self.epochs + self.decay_epochs) // steps

    def learning_rate(self, step: int, steps: int) -> float:
        """The rate of step `step` (0-based) in a run of `steps`."""
        return self.optimizer.lr * linear_decay(self.epoch(step, steps), self.epochs, self.decay_epochs)


def linear_decay(epoch: int, epochs: int, decay_epochs: int) -> float:
    """CUT's factor of the learning rate in epoch `epoch`, from 0: 1 - max(0, epoch + 1 - epochs) / (decay_epochs + 1)."""
    return 1.0 - max(0, epoch + 1 - epochs) / (decay_epochs + 1)


class Players:
    """Generator, discriminator and heads on one process, with an Adam each."""

    def __init__(
        self,
        config: AdversarialConfig,
        accelerator: Accelerator,
        seed: int,
        steps: int,
        epsilon: Epsilon = "outside",
    ) -> None:
        self.config, self.accelerator, self.seed, self.steps = config, accelerator, seed, steps
        torch.manual_seed(seed)  # the initial weights
        self.generator = placed(Generator(config.generator), accelerator)
        heads = PatchHeads(self.generator.channels(config.taps), config.head_width, epsilon)
        initialise(heads)
        self.heads = placed(heads, accelerator)
        self.discriminator = placed(Discriminator(config.discriminator), accelerator)
        self.networks = {
            "generator": self.generator,
            "heads": self.heads,
            "discriminator": self.discriminator,
        }
        self.descent = Descent(accelerator)
        self.optimizers = {
            name: optimizer_over(
                torch.optim.Adam,
                network.parameters(),
                lr=config.optimizer.lr,
                betas=config.optimizer.betas,
            )
            for name, network in self.networks.items()
        }

    def parts(self) -> Mapping[str, Part]:
        optimizers = {f"{name}_optimizer": optimizer for name, optimizer in self.optimizers.items()}
        return {**self.networks, **optimizers}

    def generate(self, images: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return self.generator(images).float()

    def judge(self, images: Tensor) -> Tensor:
        with self.accelerator.autocast():
            return self.discriminator(images).float()

    def encode(self, images: Tensor) -> list[Tensor]:
        """The tapped features of images."""
        with self.accelerator.autocast():
            return self.generator.features(images, self.config.taps)

    def patches(
        self, query: Sequence[Tensor], key: Sequence[Tensor], step: int, loss: str
    ) -> list[tuple[Tensor, Tensor]]:
        """Unit features (query, key) of each layer, [B, P, width] each, at places drawn for this step and this loss."""
        places = [
            upload(self._places(f"{loss} {layer}", step, features.shape[2:].numel()), features.device)
            for layer, features in enumerate(query)
        ]
        with self.accelerator.autocast():
            # The queries first: autocast keeps the weights it has cast, and would give them those that the keys cast without gradient.
            queries = self.heads(query, places)
            with torch.no_grad():  # the patch loss stops at its keys
                keys = self.heads(key, places)
        return list(zip(queries, keys, strict=True))

    def _places(self, name: str, step: int, count: int) -> Tensor:
        key = NoiseKey(self.seed, name)
        return key.distinct("patches", step, min(self.config.patches, count), count)

    def nce(self, query: Sequence[Tensor], key: Sequence[Tensor], step: int, loss: str) -> Tensor:
        """The patch loss of tapped features, mean over layers and places; a scalar."""
        pairs = self.patches(query, key, step, loss)
        return torch.stack([patch_nce(q, k, self.config.temperature).mean() for q, k in pairs]).mean()

    def discriminate(self, fake: Tensor, real: Tensor, step: int) -> Tensor:
        """The discriminator's step; its loss."""
        self.discriminator.requires_grad_(True)
        loss = 0.5 * (
            least_squares(self.judge(fake.detach()), real=False) + least_squares(self.judge(real), real=True)
        )
        self._descend(loss, ("discriminator",), step)
        # Its gradients are of no use to the generator's step that follows.
        self.discriminator.requires_grad_(False)
        return loss.detach()

    def improve(self, loss: Tensor, step: int) -> Tensor:
        """The generator's and the heads' step; the norm of their gradients."""
        return self._descend(loss, ("generator", "heads"), step)

    def _descend(self, loss: Tensor, names: Sequence[str], step: int) -> Tensor:
        """Backward and step of the named networks; the gradient norm.

        Raises:
            NonFiniteError: As `Descent.take`.
        """
        optimizers = [self.optimizers[name] for name in names]
        parameters = [p for name in names for p in self.networks[name].parameters()]
        rate = self.config.learning_rate(step, self.steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        average_gradients(self.accelerator, parameters)
        norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.descent.take(optimizers, loss, norm, step, f"loss of the {names[0]}")
        return norm.detach()

    def export(self, folder: Path, method: MethodName, card: Card) -> None:
        """Write the generator as a model folder."""
        save_generator_model(folder, GeneratorModel(without_norms(self.generator), card, method))
