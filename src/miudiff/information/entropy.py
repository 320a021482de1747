"""Differential entropy H(y) of an image's colours, in nats, differentiable: what Eq. 2 calls for and the paper leaves open.

The Gaussian estimator is the default: closed form, smooth, and exact for the noise that an image at t > 0 mostly is. Each gives
the mean over the patches of the same grid as the MI.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

EntropyKind = Literal["gaussian", "channels", "histogram", "none"]


def gaussian_entropy(colours: Tensor, floor: float = 1e-4) -> Tensor:
    """1/2 log det(2 pi e (Cov + floor I)) of colour samples [..., n, 3]; [...]."""
    centred = colours - colours.mean(-2, keepdim=True)
    covariance = centred.transpose(-1, -2) @ centred / colours.shape[-2]
    identity = floor * torch.eye(colours.shape[-1], dtype=colours.dtype, device=colours.device)
    # Cholesky because logdet's gradient through LU is not deterministic on every device
    # (and not `cholesky`, which waits for an accelerator to see whether it went well: NaN goes in where NaN comes out).
    diagonal = torch.linalg.cholesky_ex(covariance + identity).L.diagonal(dim1=-2, dim2=-1)
    return diagonal.log().sum(-1) + 0.5 * colours.shape[-1] * math.log(2 * math.pi * math.e)


def channel_entropy(colours: Tensor, floor: float = 1e-4) -> Tensor:
    """The Gaussian entropy of each channel alone, summed: correlation between colours is ignored. [..., n, 3] -> [...]."""
    variance = colours.var(-2, correction=0) + floor
    return 0.5 * (variance.log() + math.log(2 * math.pi * math.e)).sum(-1)


def histogram_entropy(colours: Tensor, bins: int = 64) -> Tensor:
    """Entropy of each channel's soft histogram over [-1, 1], summed: Gaussian kernels of one bin's width. [..., n, 3] -> [...].

    Bounded above by 3 log 2, the entropy of three uniform channels.
    """
    width = 2 / bins
    centres = torch.linspace(-1 + width / 2, 1 - width / 2, bins, dtype=colours.dtype, device=colours.device)
    weights = torch.exp(-0.5 * ((colours.clamp(-1, 1).unsqueeze(-1) - centres) / width) ** 2)
    density = (weights / weights.sum(-1, keepdim=True)).mean(-3) / width  # [..., 3, bins]
    return -(density * (density + 1e-12).log()).sum((-1, -2)) * width


def entropy(patches: Tensor, kind: EntropyKind) -> Tensor:
    """H of each image, the mean over its patches [B, L, 3, h, w]; [B]. "none" is 0: U = -I then."""
    if kind == "none":
        return torch.zeros(len(patches), dtype=patches.dtype, device=patches.device)
    colours = patches.flatten(3).transpose(2, 3)
    estimators = {"gaussian": gaussian_entropy, "channels": channel_entropy, "histogram": histogram_entropy}
    return estimators[kind](colours).mean(-1)
