"""What the loop trains: a learner takes one optimizer step and names everything that a state must hold.

Randomness inside a step comes from the batch's keys (`sample_noise`), one for each sample: so a step does not depend on how the
batch is spread over processes, and a resumed run draws what the uninterrupted one draws. It is drawn where the tiles are read, in
processes of their own perhaps, by the learner's `draw`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn

from miudiff.checkpoints import Part
from miudiff.config import LAST_STEP, Strict
from miudiff.noise import NoiseKey
from miudiff.training.descent import Descent, optimizer_over

Tensors = Mapping[str, Tensor]


class OptimizerConfig(Strict):
    """AdamW, as the paper takes it."""

    lr: float = Field(
        1e-4, gt=0, description="Learning rate; ILVR's author found 1e-4 unstable at 256 x 256 and took 2e-5."
    )
    weight_decay: float = Field(1e-5, ge=0)
    warmup: int = Field(0, ge=0, le=LAST_STEP, description="Steps over which the rate rises from 0.")
    decay_from: int | None = Field(
        None,
        ge=0,
        le=LAST_STEP,
        description="Step from which the rate falls along a cosine to a hundredth.",
    )
    clip: float = Field(1.0, gt=0, description="Largest gradient norm.")


class Learner(Protocol):
    """One learner on one process."""

    descent: Descent

    @property
    def draw(self) -> Callable[[Tensors], Tensors]:
        """Adds to a batch what is random of each image, on the processor; can be pickled, for a process that reads tiles."""
        ...

    def parts(self) -> Mapping[str, Part]:
        """All that a state must hold."""
        ...

    def step(self, batch: Tensors, step: int) -> Tensors:
        """One optimizer step on what `draw` gave; returns scalars to log."""
        ...

    def export(self, folder: Path) -> None:
        """Write the weights as they are to be used."""
        ...


def draw_nothing(batch: Tensors) -> Tensors:
    """The `draw` of a learner whose step needs nothing random of each image."""
    return batch


def adamw(parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Adam:
    return optimizer_over(torch.optim.AdamW, parameters, lr=lr, weight_decay=weight_decay)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of step `step` (0-based) in a run of `steps`."""
    rate = config.lr * min(1.0, (step + 1) / config.warmup) if config.warmup else config.lr
    if config.decay_from is not None and step >= config.decay_from:
        done = torch.tensor((step - config.decay_from) / max(1, steps - config.decay_from))
        rate *= 0.01 + 0.99 * 0.5 * float(1 + torch.cos(torch.pi * done))
    return rate


def descend(
    descent: Descent,
    loss: Tensor,
    optimizer: Any,
    parameters: Iterable[nn.Parameter],
    rate: float,
    clip: float,
    step: int,
) -> Tensor:
    """Backward, clip, step; returns the gradient norm before clipping.

    Raises:
        NonFiniteError: As `Descent.take`.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    descent.accelerator.backward(loss)
    norm = torch.as_tensor(descent.accelerator.clip_grad_norm_(list(parameters), clip)).detach()
    descent.take([optimizer], loss, norm, step)
    return norm


def sample_noise(keys: Tensor, seed: int, stream: str, like: Tensor, draw: int = 0) -> Tensor:
    """Normal noise like `like` [B, C, H, W], each image's from its own key [B]."""
    shape = (like.shape[1], like.shape[2], like.shape[3])
    return torch.stack([NoiseKey(seed, f"sample{k}").normal(stream, draw, shape) for k in keys.tolist()]).to(
        like
    )


def sample_times(keys: Tensor, seed: int, high: int, draw: int = 0) -> Tensor:
    """A time index in [0, high) for each key, int64 [B]."""
    return torch.cat([NoiseKey(seed, f"sample{k}").integers("time", draw, 1, high) for k in keys.tolist()])
