"""ASP (Li et al. 2023): paired translation that trusts a pair only where its two images agree.

    L_G = λ_GAN E[(D(G(x)) − 1)²] + λ_NCE NCE(x, G(x)) + λ_ASP E[w · NCE(y, G(x))] + λ_GP GP(G(x), y)

x is H&E and y IHC of the same place, from consecutive sections and so not aligned to the pixel. The weight w of a place falls, as
training goes on, where G(x) and y are unlike (`contrast.adaptive_weights`); GP compares them on coarser and coarser levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor

from miudiff.checkpoints import Part
from miudiff.contrast import Epsilon, LookUp, Schedule, adaptive_weights, patch_nce, uniform_share
from miudiff.device import upload
from miudiff.gan import DiscriminatorConfig, GeneratorConfig, blur_kernel, least_squares
from miudiff.methods.adversarial import AdversarialConfig, Players
from miudiff.methods.model import Card
from miudiff.training.learner import Tensors, draw_nothing

BINOMIAL = (1.0, 4.0, 6.0, 4.0, 1.0)


class ASPConfig(AdversarialConfig):
    """ASP; the defaults are those of the official run on MIST."""

    generator: GeneratorConfig = GeneratorConfig(blocks=6, spectral_norm=True)
    discriminator: DiscriminatorConfig = DiscriminatorConfig(width=32, layers=5, spectral_norm=True)
    epochs: int = Field(30, ge=0, le=10**6, description="Parts of the run at the full learning rate.")
    decay_epochs: int = Field(10, ge=0, le=10**6, description="Parts over which the rate falls linearly.")
    nce_weight: float = Field(10.0, ge=0, description="Of the patch loss between H&E and virtual IHC.")
    identity: bool = Field(
        False, description="Add the patch loss between real IHC and its translation; not in the official run."
    )
    asp_weight: float = Field(
        10.0, ge=0, description="Of the weighted patch loss between real and virtual IHC."
    )
    schedule: Schedule | Literal["none"] = Field(
        "lambda", description="How weighting sets in; 'none': never."
    )
    look_up: LookUp = Field("linear", description="A place's weight by its likeness.")
    pyramid_weight: float = Field(10.0, ge=0, description="Of the Gaussian pyramid's loss.")
    pyramid: tuple[float, ...] = Field(
        (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0),
        min_length=2,
        max_length=12,
        description="Weights of the pyramid's levels, the finest first.",
    )
    epsilon: Epsilon = Field(
        "inside", description="Where 1e-7 enters the length of features; 'outside' is CUT's."
    )

    @property
    def least(self) -> int:
        """The smallest side of an image that the discriminator and the pyramid can take."""
        return max(self.discriminator.least, 3 * 2 ** (len(self.pyramid) - 2))


class ASPLearner:
    """One step of the discriminator, then one of the generator and the heads, on pairs {"he", "ihc"}."""

    def __init__(
        self,
        config: ASPConfig,
        accelerator: Accelerator,
        seed: int,
        steps: int,
        card: Card | None = None,
    ) -> None:
        self.config, self.card, self.steps = config, card or Card(name="asp"), steps
        self.players = Players(config, accelerator, seed, steps, config.epsilon)
        self.descent, self.draw = self.players.descent, draw_nothing

    def parts(self) -> Mapping[str, Part]:
        return self.players.parts()

    def step(self, batch: Tensors, step: int) -> Tensors:
        config, players = self.config, self.players
        he, ihc = batch["he"], batch["ihc"]
        translated = players.generate(torch.cat([he, ihc]) if config.identity else he)
        fake, same = translated[: len(he)], translated[len(he) :]
        judged = players.discriminate(fake, ihc, step)

        with torch.no_grad():
            he_features, ihc_features = players.encode(he), players.encode(ihc)
        fake_features = players.encode(fake)
        terms = {
            "gan": (config.gan_weight, least_squares(players.judge(fake), real=True)),
            "nce": (config.nce_weight, players.nce(fake_features, he_features, step, "nce")),
            "asp": (config.asp_weight, self._adaptive_nce(fake_features, ihc_features, step)),
            "pyramid": (config.pyramid_weight, pyramid_loss(fake, ihc, config.pyramid)),
        }
        if config.identity:  # added, where CUT takes the mean of both
            identity = players.nce(players.encode(same), ihc_features, step, "identity")
            terms["identity"] = (config.nce_weight, identity)
        norm = players.improve(torch.stack([weight * loss for weight, loss in terms.values()]).sum(), step)
        logs = {name: loss.detach() for name, (_, loss) in terms.items()}
        return {**logs, "discriminator": judged, "gradient_norm": norm}

    def _adaptive_nce(self, query: Sequence[Tensor], key: Sequence[Tensor], step: int) -> Tensor:
        """The patch loss against real IHC, each place weighted by how alike the two are there."""
        config = self.config
        found = []
        for q, k in self.players.patches(query, key, step, "asp"):
            loss = patch_nce(q, k, config.temperature)
            if config.schedule != "none":
                share = uniform_share(self._progress(step), config.schedule, 1 - config.decay_from)
                # Weights of mean 1 in each image. The official ones have it over the batch, which is one image there; so a step
                # does not depend on how a batch is spread over processes.
                loss = loss * adaptive_weights((q * k).sum(-1), share, config.look_up)
            found.append(loss.mean())
        return torch.stack(found).mean()

    def _progress(self, step: int) -> float:
        """(epoch - 1) / epochs."""
        return self.config.epoch(step, self.steps) / max(1, self.config.epochs + self.config.decay_epochs)

    def export(self, folder: Path) -> None:
        """Write the generator as a model folder."""
        self.players.export(folder, "asp", self.card)


def pyramid_loss(fake: Tensor, real: Tensor, weights: Sequence[float]) -> Tensor:
    """Mean over levels of the weighted mean absolute difference of two images' pyramids; a scalar."""
    levels = zip(
        weights, gaussian_pyramid(fake, len(weights)), gaussian_pyramid(real, len(weights)), strict=True
    )
    return torch.stack([weight * F.l1_loss(a, b) for weight, a, b in levels]).mean()


def gaussian_pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """`images` [B, C, H, W] blurred, then every second pixel of that blurred, and so on; the last level is not blurred again."""
    kernel = upload(blur_kernel(BINOMIAL, images.shape[1]).to(images.dtype), images.device)
    found = []
    for _ in range(levels - 1):
        padded = F.pad(images, (2, 2, 2, 2), mode="reflect")
        blurred = F.conv2d(padded, kernel, groups=images.shape[1])
        found.append(blurred)
        images = blurred[:, :, ::2, ::2]
    return [*found, images]
