"""ILVR (Choi et al. 2021): from pure noise, each step takes over the coarse part of the source noised to the same level.

    y' ~ p(y_{i-1} | y_i),   x_i ~ q(. | x) with fresh noise,   y_{i-1} = y' - phi(y') + phi(x_i)   where i > range_t

phi is `resizer.low_pass`. The estimate of the clean image is clipped and the variance is the learned one. As in the official code
the source is noised to i, not to the level i - 1 that y' is at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor

from miudiff.config import Strict
from miudiff.device import Placement
from miudiff.diffusion.resizer import Kernel, low_pass
from miudiff.diffusion.sampling import Variance
from miudiff.diffusion.score import ScoreModel
from miudiff.errors import ConfigError
from miudiff.methods.sdedit import Reverse, ReverseConfig
from miudiff.noise import NoiseSource, normal


class ILVRConfig(Strict):
    """ILVR's settings; the defaults are the official code's."""

    steps: int | None = Field(
        None, ge=2, description="Steps spread over the whole chain; None takes every index."
    )
    down_factor: int = Field(
        32, ge=1, description="What is coarser than about this many pixels is taken over."
    )
    range_t: int = Field(
        0, ge=0, description="Take over while the index of the walked chain, respaced perhaps, is above this."
    )
    kernel: Kernel = Field("cubic", description="The resizer's.")
    variance: Variance = Field("learned", description="Sigma: learned, the posterior's, or beta.")
    clip: bool = Field(True, description="Clip the estimate of the clean image to [-1, 1] in each step.")
    gray: bool = Field(False, description="Remove the source's colour first.")

    def reverse(self, indices: int) -> ReverseConfig:
        """The walk from the last of `indices` indices."""
        return ReverseConfig(
            start=indices, steps=self.steps, variance=self.variance, clip=self.clip, gray=self.gray
        )


# ILVR has no start below T, so Table 1's "300 steps" are 300 of the whole chain.
PRESETS: Mapping[str, ILVRConfig] = {"official": ILVRConfig(), "paper": ILVRConfig(steps=300)}


class ILVR:
    """The ILVR translator.

    Raises:
        ConfigError: A learned variance is asked of a model that has none.
    """

    def __init__(self, score: ScoreModel, config: ILVRConfig, placement: Placement) -> None:
        if config.variance == "learned" and not score.learned_variance:
            raise ConfigError(
                "variance: found learned, but the model has not learned it; expected fixed_small or fixed_large"
            )
        self.config = config
        self.reverse = Reverse(score, config.reverse(len(score.sde)), placement)

    def translate(self, he: Tensor, keys: Sequence[NoiseSource]) -> Tensor:
        """Virtual IHC of `he`, both [B, 3, H, W] in [-1, 1].

        Raises:
            ConfigError: `down_factor` is larger than the image's shorter side.
        """
        config, reverse, sde = self.config, self.reverse, self.reverse.sde
        source = reverse.source(he, keys)
        y = normal(keys, "start", 0, source)
        for index in reversed(range(len(sde))):
            reverse.report(y, index)
            y = reverse.step(reverse.transition(y, index), index, keys)
            if index > config.range_t:
                he_t = sde.perturb(source, index, normal(keys, "condition", index, source))
                y = y + low_pass(he_t - y, config.down_factor, config.kernel)
        return y.clamp(-1, 1)
