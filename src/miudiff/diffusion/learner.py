"""Stage 1: learning the score of the IHC distribution, from IHC images alone.

    L = |eps - eps_net(y_t, t)|^2 + L_vb

The second term trains the variance alone (the noise is detached in it), as in Nichol and Dhariwal 2021: the KL divergence in bits
between the true posterior and the model's step, or the discretised likelihood at t = 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import UNet2DModel
from pydantic import Field
from torch import Tensor

from miudiff.checkpoints import WEIGHTS, Part, fill, save_weights, write_json
from miudiff.config import Strict
from miudiff.diffusion.adm import load_adm
from miudiff.diffusion.sampling import denoised, log_variance, posterior
from miudiff.diffusion.score import NetworkConfig, ScoreModel, build_unet, load_unet
from miudiff.diffusion.sde import VPSDE, at
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


class ScoreConfig(Strict):
    """The score model and its training."""

    network: NetworkConfig = NetworkConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    init: Path | None = Field(
        None, description="Weights to begin with: a model's `unet` folder, or an official ADM file (.pt)."
    )
    ema: float = Field(0.9999, ge=0, lt=1, description="Decay of the weights' moving average.")


class ScoreLearner:
    """One step of epsilon loss plus variational term."""

    def __init__(self, config: ScoreConfig, accelerator: Accelerator, seed: int, steps: int) -> None:
        self.config, self.accelerator, self.seed, self.steps = config, accelerator, seed, steps
        torch.manual_seed(seed)  # the initial weights
        unet = build_unet(config.network)
        if config.init is not None:
            begin_with(unet, config.init, config.network)
        self.model = ScoreModel(unet).to(accelerator.device)
        self.average = Average(self.model.unet, config.ema)
        self.descent = Descent(accelerator)
        self.draw = partial(draw_noise, seed=seed, levels=len(self.model.sde))
        rule = config.optimizer
        self.network, self.optimizer = accelerator.prepare(
            self.model, adamw(self.model.parameters(), rule.lr, rule.weight_decay)
        )

    def parts(self) -> Mapping[str, Part]:
        return {"model": self.model.unet, "optimizer": self.optimizer.optimizer, "average": self.average}

    def step(self, batch: Tensors, step: int) -> Tensors:
        y0, t, noise = batch["ihc"], batch["time"], batch["noise"]
        y = self.model.sde.perturb(y0, t, noise)
        marker = batch["marker"] if self.config.network.markers else None
        if self.config.network.dropout:  # it draws from torch's own generator, which no state holds
            torch.manual_seed(hash((self.seed, step, self.accelerator.process_index)))
        output = self.network(y, t, marker).float()
        mse = (output[:, :3] - noise).square().mean()
        loss, logs = mse, {"mse": mse.detach()}
        if self.model.learned_variance:
            vb = variational_bound(self.model.sde, y0, y, t, output[:, :3].detach(), output[:, 3:]).mean()
            loss, logs["vb"] = loss + vb, vb.detach()
        rate = learning_rate(self.config.optimizer, step, self.steps)
        norm = descend(
            self.descent,
            loss,
            self.optimizer,
            self.network.parameters(),
            rate,
            self.config.optimizer.clip,
            step,
        )
        self.average.update(self.model.unet)
        return {**logs, "gradient_norm": norm}

    def export(self, folder: Path) -> None:
        """Write the averaged weights as a diffusers `UNet2DModel` folder."""
        unet = self.model.unet
        tensors = dict(unet.state_dict()) | self.average.weights()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "config.json", json.loads(unet.to_json_string()))
        save_weights(folder / WEIGHTS, tensors)


def draw_noise(batch: Tensors, seed: int, levels: int) -> dict[str, Tensor]:
    """`batch` with a "time" [B] in [0, levels) and the "noise" [B, 3, size, size] of each image."""
    keys, y0 = batch["key"], batch["ihc"]
    drawn = {"time": sample_times(keys, seed, levels), "noise": sample_noise(keys, seed, "batch", y0)}
    return {**batch, **drawn}


def begin_with(unet: UNet2DModel, path: Path, network: NetworkConfig) -> None:
    """Put the weights of another network of the same shape into `unet`.

    Raises:
        CheckpointError: Not there, or of another shape.
    """
    # An ADM file does not say how its attention is cut into heads: the network's configuration does.
    heads = {"num_heads": network.heads} if network.heads else {"num_head_channels": network.head_channels}
    source = load_adm(path, heads).unet if path.suffix == ".pt" else load_unet(path)
    fill(unet, source.state_dict(), path, "score.network")


def variational_bound(sde: VPSDE, y0: Tensor, y: Tensor, t: Tensor, eps: Tensor, fraction: Tensor) -> Tensor:
    """The bound's term at t in bits for each dimension, [B]: guided-diffusion's `vb`, which does not clip y0."""
    model = posterior(sde, y, t, denoised(sde, y, t, eps))
    log_var = log_variance(sde, t, y, "learned", fraction)
    first = sde.posterior_variance[1]
    true_log_var = at(torch.cat([first[None], sde.posterior_variance[1:]]).log(), t, y)
    true_mean = posterior(sde, y, t, y0).mean
    kl = 0.5 * (
        -1
        + log_var
        - true_log_var
        + torch.exp(true_log_var - log_var)
        + (true_mean - model.mean) ** 2 * torch.exp(-log_var)
    )
    likelihood = -_discretised_log_likelihood(y0, model.mean, 0.5 * log_var)
    term = torch.where((t == 0).view(-1, 1, 1, 1), likelihood, kl)
    return term.flatten(1).mean(1) / math.log(2)


def _discretised_log_likelihood(y0: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """log of a Gaussian's mass on the grey level (width 2 / 255) that y0 is; the outer levels take the tails."""
    upper = _normal_cdf((y0 - mean + 1 / 255) * torch.exp(-log_std))
    lower = _normal_cdf((y0 - mean - 1 / 255) * torch.exp(-log_std))
    mass = torch.where(y0 < -0.999, upper, torch.where(y0 > 0.999, 1 - lower, upper - lower))
    return mass.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation that guided-diffusion's numbers rest on."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
