"""One reverse step: the transition p(y_{t-1} | y_t) of the learned chain, and its shift by an energy (Eq. 3).

Every method shares these functions and keeps its own loop. The network's noise estimate eps comes in as a tensor, so nothing
here knows a network; s = -eps / sqrt(1 - alpha_bar) is the score.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from miudiff.diffusion.sde import VPSDE, Times, at

Variance = Literal["fixed_small", "fixed_large", "learned"]


class Transition(NamedTuple):
    """A Gaussian step: `mean` [B, C, H, W] and `std`, broadcastable to it: one number on the processor, or like `mean`.

    `clean` is the estimate of the clean image that it is made of, [B, C, H, W], which a second-order step takes from the step before.
    """

    mean: Tensor
    std: Tensor
    clean: Tensor | None = None

    def shift(self, gradient: Tensor) -> Transition:
        """Eq. 3: the density times exp(-energy), with the energy linear at the mean, has the mean mu - Sigma k."""
        return self.moved(-(self.std**2) * gradient)

    def moved(self, by: Tensor) -> Transition:
        """The same step around another mean."""
        return self._replace(mean=self.mean + by)

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + self.std * noise


def denoised(sde: VPSDE, y: Tensor, t: Times, eps: Tensor) -> Tensor:
    """Tweedie's estimate of the clean image, (y - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)."""
    return (y - at(sde.spread, t, y) * eps) / at(sde.signal, t, y)


def log_variance(
    sde: VPSDE, t: Times, like: Tensor, variance: Variance, fraction: Tensor | None = None
) -> Tensor:
    """log Sigma_t: the posterior's (`fixed_small`), beta's (`fixed_large`), or between them (`learned`).

    `fixed_large` is beta with its first entry replaced by the posterior's second, as is `fixed_small`'s logarithm under
    `learned`: log 1e-20 would otherwise be interpolated.

    Args:
        fraction: The network's second half [B, C, H, W] in about [-1, 1]: -1 is the posterior's variance, 1 is beta.
    """
    posterior = sde.posterior_variance
    small = torch.cat([posterior[1:2], posterior[1:]]).log()
    if variance == "fixed_small":
        return at(posterior.log(), t, like)
    if variance == "fixed_large":
        return at(torch.cat([posterior[1:2], sde.betas[1:]]).log(), t, like)
    if fraction is None:
        raise ValueError("a learned variance needs the network's second half")
    share = (fraction + 1) / 2
    return share * at(sde.betas.log(), t, like) + (1 - share) * at(small, t, like)


def ancestral(
    sde: VPSDE,
    y: Tensor,
    t: Times,
    eps: Tensor,
    variance: Variance = "fixed_small",
    fraction: Tensor | None = None,
) -> Transition:
    """The DDPM step without clipping: mean (y - beta / sqrt(1 - alpha_bar) eps) / sqrt(alpha), as SDEdit and EGSDE take it."""
    mean = (y - at(sde.betas / sde.spread[:-1], t, y) * eps) / at((1 - sde.betas).sqrt(), t, y)
    return Transition(mean, torch.exp(0.5 * log_variance(sde, t, y, variance, fraction)))


def posterior(
    sde: VPSDE,
    y: Tensor,
    t: Times,
    y0: Tensor,
    variance: Variance = "fixed_small",
    fraction: Tensor | None = None,
) -> Transition:
    """The step from an estimate `y0` of the clean image, q(y_{t-1} | y_t, y_0); clip `y0` first for ILVR and ADM sampling."""
    before = sde.alpha_bar_before
    weight0 = sde.betas * before.sqrt() / (1 - sde.alpha_bar)
    weight_t = (1 - before) * (1 - sde.betas).sqrt() / (1 - sde.alpha_bar)
    mean = at(weight0, t, y) * y0 + at(weight_t, t, y) * y
    return Transition(mean, torch.exp(0.5 * log_variance(sde, t, y, variance, fraction)))


def euler_maruyama(sde: VPSDE, y: Tensor, t: Times, eps: Tensor) -> Transition:
    """The Euler-Maruyama step of dy = [-1/2 beta y - beta s] dt + sqrt(beta) dw, backwards over one index.

    It agrees with `ancestral` to first order in beta.
    """
    beta = at(sde.betas, t, y)
    score = -eps / at(sde.spread, t, y)
    return Transition(y + 0.5 * beta * y + beta * score, beta.sqrt())


def multistep(
    sde: VPSDE, y: Tensor, t: int, y0: Tensor, before: Tensor | None = None, noise: float = 1.0
) -> Transition:
    """The step of DPM-Solver++(2M) from index t to t - 1, for any of the reverse SDEs that share the flow's marginals.

    With l = log(alpha / sigma), h = l_{t-1} - l_t > 0, the estimate D at t and D' at t + 1, r = h' / h, and tau = `noise`:

        mu    = (sigma_{t-1} / sigma_t) e^{-tau^2 h} y + alpha_{t-1} (1 - e^{-(1 + tau^2) h}) [D + (D - D') / 2r]
        Sigma = sigma_{t-1}^2 (1 - e^{-2 tau^2 h})

    tau = 1 is SDE-DPM-Solver++(2M), tau = 0 the ODE's DPM-Solver++(2M), which draws nothing (Lu et al. 2022, midpoint form); between
    them lies SA-Solver's family (Xue et al. 2023, Eq. 8). The first step, without D', and the last, to the clean image, are of first order.

    Args:
        y0: D, the estimate of the clean image at t.
        before: D', that of the step before; None at the first step.
        noise: tau, 0 to 1.
    """
    if t == 0:
        return Transition(y0, torch.zeros((), dtype=y.dtype), y0)
    signal, spread = sde.signal, sde.spread
    levels = (signal[:-1] / spread[:-1]).log()
    h = levels[t - 1] - levels[t]
    guess = y0
    if before is not None:
        ratio = (levels[t] - levels[t + 1]) / h
        guess = y0 + (y0 - before) / (2 * float(ratio))
    decay = spread[t - 1] / spread[t] * torch.exp(-(noise**2) * h)
    share = -torch.expm1(-(1 + noise**2) * h)
    std = spread[t - 1] * (-torch.expm1(-2 * noise**2 * h)).sqrt()
    # Numbers stay on the processor, as those of `sde.at`.
    decay, share, std = (number.to(y.dtype) for number in (decay, signal[t - 1] * share, std))
    return Transition(decay * y + share * guess, std, y0)


def ddim(sde: VPSDE, y: Tensor, t: int, eps: Tensor, clip: bool = False) -> Tensor:
    """The deterministic step of Song et al. 2021 (DDIM, eta 0) to index t - 1."""
    y0 = denoised(sde, y, t, eps)
    if clip:
        y0 = y0.clamp(-1, 1)
        eps = (y - at(sde.signal, t, y) * y0) / at(sde.spread, t, y)
    return at(sde.signal, t - 1, y) * y0 + at(sde.spread, t - 1, y) * eps
