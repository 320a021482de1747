"""Training the MI estimator on IHC images alone, with a held-out curve to watch and to choose by.

Image and structure are noised independently: with shared noise the network would recognise the noise itself. Structure is taken
clean or at the image's level, half of the samples each, so one estimator serves both readings of Eq. 2. `noise: clean` is the
paper's literal variant; a clean image determines its gradient map, so there the bound has no ceiling but the critic's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor

from miudiff.checkpoints import WEIGHTS, Part, save_weights, write_json
from miudiff.config import Strict
from miudiff.diffusion.sde import VPSDE
from miudiff.information.estimator import Estimator, EstimatorConfig, grid_offset
from miudiff.information.mine import MovingDenominator, bin_means, donsker_varadhan
from miudiff.noise import NoiseKey
from miudiff.training.average import Average
from miudiff.training.descent import Descent
from miudiff.training.learner import (
    OptimizerConfig,
    Tensors,
    adamw,
    descend,
    learning_rate,
    sample_noise,
    sample_times,
)


class MIConfig(Strict):
    """The MI estimator and its training."""

    estimator: EstimatorConfig = EstimatorConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    noise: Literal["independent", "clean"] = Field(
        "independent", description="'clean' is the paper's literal variant."
    )
    max_time: int = Field(500, ge=1, le=1000, description="Noise levels 0 to this are trained on.")
    low_noise: float = Field(
        0.5, ge=0, le=1, description="Share of samples with a level below a fifth of `max_time`."
    )
    rate: float = Field(
        0.01, gt=0, le=1, description="Rate of the moving average in the gradient's denominator."
    )
    bins: int = Field(10, ge=1, le=1000, description="Noise levels with moving averages of their own.")
    ema: float = Field(0.995, ge=0, lt=1)


class MILearner:
    """One ascent of the bias-corrected Donsker-Varadhan bound."""

    def __init__(self, config: MIConfig, accelerator: Accelerator, seed: int, steps: int) -> None:
        self.config, self.accelerator, self.seed, self.steps = config, accelerator, seed, steps
        torch.manual_seed(seed)
        self.estimator = Estimator(config.estimator).to(accelerator.device)
        self.average = Average(self.estimator, config.ema)
        self.denominator = MovingDenominator(config.rate, config.bins)
        self.descent = Descent(accelerator)
        self.draw = partial(draw_pairs, config=config, seed=seed)
        rule = config.optimizer
        self.network, self.optimizer = accelerator.prepare(
            self.estimator, adamw(self.estimator.parameters(), rule.lr, rule.weight_decay)
        )

    def parts(self) -> Mapping[str, Part]:
        return {
            "estimator": self.estimator,
            "optimizer": self.optimizer.optimizer,
            "average": self.average,
            "denominator": self.denominator,
        }

    def step(self, batch: Tensors, step: int) -> Tensors:
        y, structure, t, structure_t = noised_pairs(self.estimator, batch)
        joint, marginal = self.network(structure, y, t, structure_t, self._offset(step, y))
        which = t.clamp(min=0) * self.config.bins // self.config.max_time
        means = self._means(marginal, which)
        loss = self.denominator.loss(joint, marginal, which, means)
        rate = learning_rate(self.config.optimizer, step, self.steps)
        parameters, clip = self.network.parameters(), self.config.optimizer.clip
        norm = descend(self.descent, loss, self.optimizer, parameters, rate, clip, step)
        self.average.update(self.estimator)
        bound = donsker_varadhan(joint, marginal).detach()
        return {"bound": bound.mean(), "gradient_norm": norm}

    def _offset(self, step: int, y: Tensor) -> tuple[int, int]:
        """A random grid each step, so that no edge of a patch is learned."""
        return grid_offset(NoiseKey(self.seed, "grid"), step, self.config.estimator.patch, y)

    def _means(self, marginal: Tensor, which: Tensor) -> Tensor | None:
        if self.accelerator.num_processes == 1:
            return None
        return bin_means(self.accelerator.reduce(self.denominator.bin_sums(marginal, which), "sum"))

    def export(self, folder: Path) -> None:
        """Write the averaged weights with their configuration."""
        save_estimator(folder, self.config.estimator, self.average.weights())


def draw_pairs(batch: Tensors, config: MIConfig, seed: int) -> dict[str, Tensor]:
    """`batch` with the "time" [B] of images and "structure_time" of structures, -1 clean, and the "noise" of each [B, 3, size, size]."""
    keys, y0 = batch["key"], batch["ihc"]
    if config.noise == "clean":
        clean = torch.full((len(y0),), -1)
        return {**batch, "time": clean, "structure_time": clean}
    low = sample_times(keys, seed, max(1, config.max_time // 5), draw=1)
    chance = sample_times(keys, seed, 1000, draw=2)
    t = torch.where(chance < 1000 * config.low_noise, low, sample_times(keys, seed, config.max_time))
    matched = sample_times(keys, seed, 2, draw=3).bool()
    return {
        **batch,
        "time": t,
        "structure_time": torch.where(matched, t, -1),
        "noise": sample_noise(keys, seed, "batch", y0),
        "structure_noise": sample_noise(keys, seed, "condition", y0),
    }


def noised_pairs(estimator: Estimator, drawn: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y_t, structure, t, structure_t) for the clean images of a batch and what `draw_pairs` drew for them."""
    sde: VPSDE = estimator.sde
    y = source = y0 = drawn["ihc"]
    t, structure_t = drawn["time"], drawn["structure_time"]
    if "noise" in drawn:
        y = sde.perturb(y0, t, drawn["noise"])
        source = sde.perturb(y0, structure_t, drawn["structure_noise"])
    return y, estimator.structure_map(source), t, structure_t


def save_estimator(
    folder: Path, config: EstimatorConfig, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None
) -> None:
    """Write `config.json` and `diffusion_pytorch_model.safetensors`."""
    write_json(folder / "config.json", config.model_dump(mode="json"))
    save_weights(folder / WEIGHTS, weights, dtype)


@torch.no_grad()
def held_out_curve(
    estimator: Estimator, y0: Tensor, times: tuple[int, ...], seed: int = 0, draws: int = 4
) -> dict[int, tuple[float, float]]:
    """The bound in nats on images that were not trained on, at each time (-1 is clean): (structure clean, structure at the same level).

    Pairs are pooled over images and draws before the logarithm: a mean of bounds of few pairs each would lie too high.
    """
    return {t: _held_out_bounds(estimator, y0, t, seed, draws) for t in times}


def _held_out_bounds(estimator: Estimator, y0: Tensor, t: int, seed: int, draws: int) -> tuple[float, float]:
    level = torch.full((len(y0),), t, device=y0.device)
    pairs: list[list[tuple[Tensor, Tensor]]] = [[], []]
    for draw in range(draws):
        keys = torch.arange(len(y0)) + 1_000_000 * (draw + 1)
        y = estimator.sde.perturb(y0, level, sample_noise(keys, seed, "batch", y0))
        noisy = estimator.sde.perturb(y0, level, sample_noise(keys, seed, "condition", y0))
        for which, (source, at) in enumerate([(y0, torch.full_like(level, -1)), (noisy, level)]):
            pairs[which].append(estimator.statistics(estimator.structure_map(source), y, level, at))
    clean, noised = (
        float(donsker_varadhan(*(torch.cat([pair[i].flatten() for pair in found]) for i in (0, 1))))
        for found in pairs
    )
    return clean, noised
