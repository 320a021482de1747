"""Mutual information by a neural lower bound (MINE, Belghazi et al. 2018).

    I(g; y) >= E_joint[T] - log E_marginal[exp T]        (Donsker and Varadhan)

T is any statistics network's value on pairs. The plain gradient of the bound is biased, because the logarithm stands outside of
a mean over a small batch; `MovingDenominator` replaces the batch's mean in the denominator by a moving average.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def log_mean_exp(values: Tensor, dim: int = -1) -> Tensor:
    """log of the mean of exp(values) along `dim`, without overflow."""
    return torch.logsumexp(values, dim) - math.log(values.shape[dim])


def donsker_varadhan(joint: Tensor, marginal: Tensor) -> Tensor:
    """The bound in nats, [...]: statistics of joint pairs [..., n] and of marginal pairs [..., m]."""
    return joint.mean(-1) - log_mean_exp(marginal)


def f_divergence_bound(joint: Tensor, marginal: Tensor) -> Tensor:
    """E_joint[T] - E_marginal[exp(T - 1)], a looser bound without a logarithm, [...]."""
    return joint.mean(-1) - torch.exp(marginal - 1).mean(-1)


class MovingDenominator:
    """The moving average of E_marginal[exp T], one for each bin of noise levels.

    The first batch of a bin sets its average. `loss` has the bound's value negated in its favour: its gradient is that of
    -(E_joint[T] - E_marginal[exp T] / average).

    Args:
        rate: Weight of a new batch (MINE's alpha, 0.01).
        bins: Noise levels whose exp T differ by orders of magnitude keep averages of their own.
    """

    def __init__(self, rate: float = 0.01, bins: int = 1) -> None:
        self.rate = rate
        self.value = torch.zeros(bins, dtype=torch.float64)

    def loss(
        self, joint: Tensor, marginal: Tensor, which: Tensor | None = None, means: Tensor | None = None
    ) -> Tensor:
        """The scalar to descend.

        Args:
            joint, marginal: Statistics [B, n] and [B, m], one row for each image.
            which: The bin of each row [B]; None is bin 0.
            means: E_marginal[exp T] of every bin over all processes [bins], NaN where a bin got no row; None takes it from
                these rows.
        """
        which = torch.zeros(len(joint), dtype=torch.int64) if which is None else which.cpu()
        exponential = torch.exp(marginal).mean(-1)
        self._update(self.bin_means(marginal, which) if means is None else means)
        denominator = self.value[which].to(marginal) + 1e-6
        return -(joint.mean(-1) - exponential / denominator).mean()

    def bin_means(self, marginal: Tensor, which: Tensor) -> Tensor:
        """E_marginal[exp T] of each bin's rows, float64 [bins]; NaN for a bin without rows."""
        sums, counts = torch.zeros_like(self.value), torch.zeros_like(self.value)
        values = torch.exp(marginal.detach()).mean(-1).double().cpu()
        sums.index_add_(0, which.cpu(), values)
        counts.index_add_(0, which.cpu(), torch.ones_like(values))
        return sums / counts.where(counts > 0, torch.nan)

    def _update(self, means: Tensor) -> None:
        moved = torch.where(self.value == 0, means, self.rate * means + (1 - self.rate) * self.value)
        self.value = torch.where(torch.isnan(means), self.value, moved)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        if state["value"].shape != self.value.shape:
            raise ValueError("another number of noise bins")
        self.value = state["value"].clone()


def gaussian_information(correlation: float) -> float:
    """The mutual information of two Gaussians, -1/2 log(1 - rho^2) nats."""
    return -0.5 * math.log(1 - correlation**2)
