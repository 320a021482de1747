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
        if which is None:
            which = torch.zeros(len(joint), dtype=torch.int64, device=joint.device)
        exponential = torch.exp(marginal).mean(-1)
        self._update(bin_means(self.bin_sums(marginal, which)) if means is None else means)
        denominator = self.value[which].to(marginal) + 1e-6
        return -(joint.mean(-1) - exponential / denominator).mean()

    def bin_sums(self, marginal: Tensor, which: Tensor) -> Tensor:
        """Sums of E_marginal[exp T] over each bin's rows, and the numbers of rows, float64 [2, bins]."""
        values = torch.exp(marginal.detach()).mean(-1).double()
        return values.new_zeros(2, len(self.value)).index_add_(
            1, which, torch.stack([values, torch.ones_like(values)])
        )

    def _update(self, means: Tensor) -> None:
        self.value = self.value.to(means.device)  # where the run began; it stays there
        moved = torch.where(self.value == 0, means, self.rate * means + (1 - self.rate) * self.value)
        self.value = torch.where(torch.isnan(means), self.value, moved)

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        if state["value"].shape != self.value.shape:
            raise ValueError("another number of noise bins")
        self.value = state["value"].clone()


def bin_means(sums: Tensor) -> Tensor:
    """E_marginal[exp T] of each bin from `MovingDenominator.bin_sums` [2, bins], perhaps of several processes; NaN without rows."""
    return sums[0] / sums[1].where(sums[1] > 0, torch.nan)


def gaussian_information(correlation: float) -> float:
    """The mutual information of two Gaussians, -1/2 log(1 - rho^2) nats."""
    return -0.5 * math.log(1 - correlation**2)
