"""CUT and FastCUT (Park et al. 2020): unpaired translation in one pass, kept to its source by the patch loss.

    L_G = λ_GAN E[(D(G(x)) − 1)²] + ½ λ_NCE (NCE(x, G(x)) + NCE(y, G(y)))          CUT
    L_G = λ_GAN E[(D(G(x)) − 1)²] + λ_NCE NCE(x, G(x)),  x mirrored every second time     FastCUT

x is H&E, y IHC of other tissue. NCE compares the generator's own encoder features of source and result, place by place.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from pydantic import Field, model_validator
from torch import Tensor

from miudiff.checkpoints import Part
from miudiff.gan import least_squares
from miudiff.methods.adversarial import AdversarialConfig, Players
from miudiff.methods.model import Card
from miudiff.noise import NoiseKey
from miudiff.training.learner import Tensors, draw_nothing

# What FastCUT changes of CUT's defaults.
FASTCUT = {"nce_weight": 10.0, "identity": False, "flip": True, "epochs": 150, "decay_epochs": 50}


class CUTConfig(AdversarialConfig):
    """CUT; `mode: fastcut` has other defaults: `FASTCUT`."""

    mode: Literal["cut", "fastcut"] = Field("cut", description="Whose defaults the other keys have.")
    flip: bool = Field(False, description="Flip-equivariance: every second step translates mirrored images.")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_mode(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("mode") == "fastcut":
            return FASTCUT | dict(values)
        return values


class CUTLearner:
    """One step of the discriminator, then one of the generator and the heads, on unpaired {"he", "ihc"}."""

    def __init__(
        self,
        config: CUTConfig,
        accelerator: Accelerator,
        seed: int,
        steps: int,
        card: Card | None = None,
    ) -> None:
        self.config, self.seed, self.card = config, seed, card or Card(name=config.mode)
        self.players = Players(config, accelerator, seed, steps)
        self.descent, self.draw = self.players.descent, draw_nothing

    def parts(self) -> Mapping[str, Part]:
        return self.players.parts()

    def step(self, batch: Tensors, step: int) -> Tensors:
        config, players = self.config, self.players
        he, ihc = batch["he"], batch["ihc"]
        # Drawn for a step, not for an image, as in the official code.
        flipped = config.flip and bool(NoiseKey(self.seed, "flip").uniform("augment", step, 1) < 0.5)
        sources = torch.cat([he, ihc]) if config.identity else he
        translated = players.generate(sources.flip(3) if flipped else sources)
        fake, same = translated[: len(he)], translated[len(he) :]
        judged = players.discriminate(fake, ihc, step)

        adversarial = least_squares(players.judge(fake), real=True)
        contrast = self._nce(he, fake, flipped, step, "nce")
        logs = {"gan": adversarial.detach(), "discriminator": judged, "nce": contrast.detach()}
        if config.identity:
            identity = self._nce(ihc, same, flipped, step, "identity")
            contrast = 0.5 * (contrast + identity)
            logs["identity"] = identity.detach()
        norm = players.improve(config.gan_weight * adversarial + config.nce_weight * contrast, step)
        return {**logs, "gradient_norm": norm}

    def _nce(self, source: Tensor, result: Tensor, flipped: bool, step: int, loss: str) -> Tensor:
        """The patch loss of translated images against their sources."""
        query = self.players.encode(result)
        if flipped:  # the features are turned back, not the image: that is the equivariance
            query = [features.flip(3) for features in query]
        with torch.no_grad():
            key = self.players.encode(source)
        return self.players.nce(query, key, step, loss)

    def export(self, folder: Path) -> None:
        """Write the generator as a model folder."""
        self.players.export(folder, self.config.mode, self.card)
