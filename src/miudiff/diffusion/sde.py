"""The VP-SDE: clean images drift to noise, dy = -1/2 beta(t) y dt + sqrt(beta(t)) dw  (Song et al. 2021, Eq. 11).

Two views of one process. `VPSDE` is the discrete chain that the networks are trained on: indices t = 0 (almost clean) to
T - 1 (noise), betas linear. `ContinuousVPSDE` has the marginals in continuous time t in [0, 1]; the chain with T steps is its
discretisation. `sampling.py` holds one reverse step, `score.py` the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from miudiff.device import upload

Times = int | Tensor
MOST_STEPS = 10_000  # of a chain: ten times what networks are trained on


@dataclass(frozen=True)
class VPSDE:
    """Discrete VP schedule with T linear betas, in float64.

    Args:
        steps: T.
        beta_min, beta_max: First and last beta for T = 1000; for another T they scale by 1000 / T, which keeps the noise at
            the end of the chain.
        timesteps: The indices of the T-step chain that are kept, increasing; None keeps all. A respaced chain has betas such
            that its alpha_bar at kept indices is the full chain's (Nichol and Dhariwal 2021).
    """

    steps: int = 1000
    beta_min: float = 1e-4
    beta_max: float = 0.02
    timesteps: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return self.steps if self.timesteps is None else len(self.timesteps)

    @cached_property
    def betas(self) -> Tensor:
        """beta_t, float64 [len]."""
        scale = 1000 / self.steps
        full = torch.linspace(self.beta_min * scale, self.beta_max * scale, self.steps, dtype=torch.float64)
        if self.timesteps is None:
            return full
        kept = torch.cumprod(1 - full, 0)[list(self.timesteps)]
        return 1 - kept / torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])

    @cached_property
    def alpha_bar(self) -> Tensor:
        """alpha_bar_t = prod (1 - beta), float64 [len]: the share of the signal's variance that is left."""
        return torch.cumprod(1 - self.betas, 0)

    @cached_property
    def alpha_bar_before(self) -> Tensor:
        """alpha_bar_{t-1}, 1 at t = 0."""
        return torch.cat([torch.ones(1, dtype=torch.float64), self.alpha_bar[:-1]])

    @cached_property
    def posterior_variance(self) -> Tensor:
        """Variance of q(y_{t-1} | y_t, y_0), float64 [len]; at least 1e-20, which is its value at t = 0."""
        return (self.betas * (1 - self.alpha_bar_before) / (1 - self.alpha_bar)).clamp(min=1e-20)

    def network_time(self, t: Times) -> Times:
        """The index of the full chain that the network was trained on, for index `t` of this chain."""
        if self.timesteps is None:
            return t
        if isinstance(t, int):
            return self.timesteps[t]
        return torch.tensor(self.timesteps, device=t.device)[t]

    def respaced(self, count: int) -> VPSDE:
        """`count` indices spread evenly from the first to the last."""
        if self.timesteps is not None:
            raise ValueError("this chain is respaced already")
        return VPSDE(self.steps, self.beta_min, self.beta_max, tuple(space_timesteps(self.steps, count)))

    def perturb(self, y0: Tensor, t: Times, noise: Tensor) -> Tensor:
        """A draw of q(y_t | y_0) = sqrt(alpha_bar_t) y_0 + sqrt(1 - alpha_bar_t) noise.

        Args:
            y0, noise: [B, C, H, W].
            t: An index or one for each image [B]; -1 is the clean image.
        """
        return at(self.signal, t, y0) * y0 + at(self.spread, t, y0) * noise

    @cached_property
    def signal(self) -> Tensor:
        """sqrt(alpha_bar_t); the last entry is t = -1, the clean image."""
        return torch.cat([self.alpha_bar.sqrt(), torch.ones(1, dtype=torch.float64)])

    @cached_property
    def spread(self) -> Tensor:
        """sqrt(1 - alpha_bar_t), the standard deviation of the noise in y_t; the last entry is t = -1."""
        return torch.cat([(1 - self.alpha_bar).sqrt(), torch.zeros(1, dtype=torch.float64)])


def at(table: Tensor, t: Times, like: Tensor) -> Tensor:
    """`table[t]` in `like`'s dtype, shaped to multiply `like` [B, C, H, W]; on `like`'s device where `t` is a tensor.

    One index gives a number that stays on the processor: a kernel takes it as an argument, whereas its copy to an accelerator would
    wait for all the work before it.
    """
    if isinstance(t, int):
        return table[t].to(like.dtype)
    return upload(table.to(like.dtype), like.device)[t].view(-1, *[1] * (like.ndim - 1))


def space_timesteps(steps: int, count: int) -> list[int]:
    """`count` of `steps` indices, evenly from 0 to `steps` - 1, as guided-diffusion spaces one section."""
    if not 1 <= count <= steps:
        raise ValueError(f"cannot keep {count} of {steps} steps")
    stride = 1.0 if count == 1 else (steps - 1) / (count - 1)
    return [round(stride * i) for i in range(count)]


def space_in_log_snr(full: VPSDE, start: int, count: int) -> set[int]:
    """At most `count` indices of `full` from `start` - 1 to 0, as evenly in log(alpha / sigma) as whole indices allow."""
    levels = (full.signal[:start] / full.spread[:start]).log()
    wanted = torch.linspace(float(levels[-1]), float(levels[0]), count, dtype=torch.float64)
    return set((levels[None] - wanted[:, None]).abs().argmin(1).tolist())


def space_ddim(steps: int, count: int) -> list[int]:
    """`count` of `steps` indices with a whole stride from 0, as guided-diffusion's `ddimN` spaces them.

    Raises:
        ValueError: No whole stride gives exactly `count` indices.
    """
    for stride in range(1, steps + 1):
        if len(range(0, steps, stride)) == count:
            return list(range(0, steps, stride))
    raise ValueError(f"no whole stride keeps {count} of {steps} steps")


@dataclass(frozen=True)
class ContinuousVPSDE:
    """dy = -1/2 beta(t) y dt + sqrt(beta(t)) dw, beta rising linearly, t in [0, 1]; any shape in, that shape out."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def beta(self, t: Tensor) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def mean_coefficient(self, t: Tensor) -> Tensor:
        """How much of y(0) is left in y(t): exp(-1/2 integral of beta)."""
        return torch.exp(-0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min)

    def std(self, t: Tensor) -> Tensor:
        """Standard deviation of y(t) given y(0)."""
        return torch.sqrt(1 - self.mean_coefficient(t) ** 2)

    def drift(self, y: Tensor, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t) * y

    def diffusion(self, t: Tensor) -> Tensor:
        return torch.sqrt(self.beta(t))

    def reverse_drift(self, y: Tensor, t: Tensor, score: Tensor) -> Tensor:
        """Drift of the reverse-time SDE: f - beta s = -1/2 beta y - beta s."""
        return self.drift(y, t) - self.beta(t) * score
