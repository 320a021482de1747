"""EGSDE (Zhao et al. 2022): the SDEdit loop with its mean moved by two energies at the current sample.

    y_{i-1} = mean(y_i) - w_i (ls grad S + li grad D) + 1[i > 0] sqrt(beta~_i) z,      w_i = beta_i / sqrt(alpha_i)

    S(y, x_i) = mean over places of cos(f(y, i), f(x_i, i))        looks like the source's domain: realism asks for less
    D(y, x_i) = |phi(y) - phi(x_i)|^2                              coarsely apart from the source: faithfulness asks for less

f are the features of a classifier of source and target that is trained on noised images (`diffusion.classifier`), phi is
`resizer.low_pass`. x_i is the source noised to i with the noise that y started from, the same in each step. Both gradients are taken
at y_i; the factor is w_i, not the variance, so the last step is moved, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from miudiff.device import Placement
from miudiff.diffusion.resizer import Kernel, low_pass
from miudiff.diffusion.score import ScoreModel
from miudiff.diffusion.sde import Times, at
from miudiff.errors import ConfigError
from miudiff.methods.palette import Palette
from miudiff.methods.sdedit import Reverse, SDEditConfig
from miudiff.noise import NoiseSource, normal


class EGSDEConfig(SDEditConfig):
    """EGSDE's settings; the defaults are the official code's."""

    start: int = Field(
        500, ge=2, description="S: the source is noised to index S - 1 of the full chain's 1000."
    )
    gray: bool = Field(False, description="Remove the source's colour first.")
    scale_realism: float = Field(500.0, ge=0, description="ls, the weight of S; 0 needs no classifier.")
    scale_faithful: float = Field(2.0, ge=0, description="li, the weight of D.")
    down_factor: int = Field(32, ge=1, description="D compares what is coarser than about this many pixels.")
    kernel: Kernel = Field("linear", description="The resizer's.")
    repeats: int = Field(
        1,
        ge=1,
        description="Walks, each from the result of the one before; the source of the energies stays.",
    )
    frozen_noise: bool = Field(
        True, description="Noise the source with the start's noise in every step; false: with fresh noise."
    )


PRESETS: Mapping[str, EGSDEConfig] = {"official": EGSDEConfig(), "paper": EGSDEConfig(start=300)}


class Features(Protocol):
    """What EGSDE needs of a classifier."""

    def features(self, y: Tensor, t: Times) -> Tensor:
        """[B, C, h, w] of images `y` [B, 3, H, W] noised to index `t` of the full chain."""
        ...


class EGSDE:
    """The EGSDE translator.

    Raises:
        ConfigError: A weight for realism, but no classifier.
    """

    def __init__(
        self,
        score: ScoreModel,
        classifier: Features | None,
        config: EGSDEConfig,
        placement: Placement,
        palette: Palette | None = None,
    ) -> None:
        if config.scale_realism and classifier is None:
            raise ConfigError(
                f"scale_realism: found {config.scale_realism:g}, but there is no classifier of source and target; train one, or set it to 0"
            )
        self.config, self.classifier = config, classifier
        self.reverse = Reverse(score, config, placement, palette)

    def translate(self, he: Tensor, keys: Sequence[NoiseSource]) -> Tensor:
        """Virtual IHC of `he`, both [B, 3, H, W] in [-1, 1].

        Raises:
            ConfigError: `down_factor` is larger than the image's shorter side.
        """
        config, reverse, sde = self.config, self.reverse, self.reverse.sde
        y = source = reverse.source(he, keys)
        for repeat in range(config.repeats):
            noise = normal(keys, "start", repeat, source)
            y = sde.perturb(y, len(sde) - 1, noise)
            clean: Tensor | None = None
            for index in reversed(range(len(sde))):
                reverse.report(y, index)
                if not config.frozen_noise:
                    noise = normal(keys, "condition", repeat * len(sde) + index, source)
                he_t = sde.perturb(source, index, noise)
                shift = self.shift(y, he_t, index)
                transition = reverse.transition(y, index, before=clean).moved(-shift)
                y, clean = reverse.step(transition, index, keys, repeat), transition.clean
        return y.clamp(-1, 1)

    def shift(self, y: Tensor, he_t: Tensor, index: int) -> Tensor:
        """What is taken from the mean at `index`, w_i (ls grad S + li grad D), like `y`; `he_t` is noised to `index`.

        It is taken in float32: bf16 would round features whose cosine is then weighed by hundreds.
        """
        config, sde = self.config, self.reverse.sde
        weight = at(sde.betas / (1 - sde.betas).sqrt(), index, y)
        shift = torch.zeros_like(y)
        with torch.enable_grad(), torch.autocast(y.device.type, enabled=False):
            point = y.detach().requires_grad_(True)
            if config.scale_realism and self.classifier is not None:
                energy = similarity(self.classifier, point, he_t, sde.network_time(index))
                shift += config.scale_realism * _gradient(energy, point)
            if config.scale_faithful:
                energy = coarse_distance(point, he_t, config.down_factor, config.kernel)
                shift += config.scale_faithful * _gradient(energy, point)
        return weight * shift


def similarity(classifier: Features, y: Tensor, he_t: Tensor, t: Times) -> Tensor:
    """S: mean cosine of the classifier's features of `y` and `he_t`, place by place; [B]."""
    with torch.no_grad():
        source = F.normalize(classifier.features(he_t, t), dim=1, eps=1e-10)
    return (F.normalize(classifier.features(y, t), dim=1, eps=1e-10) * source).sum(1).mean((1, 2))


def coarse_distance(y: Tensor, he_t: Tensor, factor: int, kernel: Kernel) -> Tensor:
    """D: the squared distance of the images' coarse parts, [B]."""
    return low_pass(y - he_t, factor, kernel).square().flatten(1).sum(1)


def _gradient(energy: Tensor, y: Tensor) -> Tensor:
    """Gradient of each image's energy [B] by that image; the graph is freed."""
    (gradient,) = torch.autograd.grad(energy.sum(), y)
    return gradient
