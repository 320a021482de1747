"""Resizing as a linear map: one matrix for the rows, one for the columns, as MATLAB's `imresize` defines them.

    out[o] = sum_p w(o, p) in[p],     w(o, p) ~ k(s (u_o - p)),     u_o = o / s + 1/2 (1 - 1/s)

s is the scale, k the kernel, stretched by 1/s where an image is made smaller (antialiasing); each row's weights add up to one, and
beyond the border the image is mirrored, its edge pixel repeated. ILVR and EGSDE take the coarse part of an image by it.
torch's antialiased `interpolate` is another map: it cuts the kernel off at the border.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from miudiff.errors import ConfigError

Kernel = Literal["linear", "cubic"]


def down(x: Tensor, factor: int, kernel: Kernel) -> Tensor:
    """`x` [..., H, W] made `factor` times smaller; a side that it does not divide is rounded up.

    Raises:
        ConfigError: The factor is larger than the shorter side.
    """
    side = min(x.shape[-2:])
    if factor > side:
        raise ConfigError(f"down_factor: found {factor}, expected at most {side}, the image's shorter side")
    height, width = (-(-side // factor) for side in x.shape[-2:])
    return _resize(x, (height, width), 1 / factor, kernel)


def up(x: Tensor, factor: int, size: tuple[int, int], kernel: Kernel) -> Tensor:
    """`x` [..., h, w] made `factor` times larger, of which the middle `size` is kept."""
    return _resize(x, size, float(factor), kernel)


def low_pass(x: Tensor, factor: int, kernel: Kernel) -> Tensor:
    """up(down(x)): what of `x` [..., H, W] is coarser than about `factor` pixels; linear, any sides from `factor` on.

    Where the factor does not divide a side, the coarse grid lies centred over the image and reaches half of the surplus beyond it
    on either side.
    """
    return up(down(x, factor, kernel), factor, (x.shape[-2], x.shape[-1]), kernel)


def _resize(x: Tensor, size: tuple[int, int], scale: float, kernel: Kernel) -> Tensor:
    rows, columns = (
        _matrix(before, after, scale, kernel, x.device, x.dtype)
        for before, after in zip(x.shape[-2:], size, strict=True)
    )
    # An energy's gradient is taken through here, and the bf16 of a caller's autocast would coarsen it.
    with torch.autocast(x.device.type, enabled=False):
        return rows @ (x @ columns.T)


@lru_cache(maxsize=64)
def _matrix(
    before: int, after: int, scale: float, kernel: Kernel, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Weights [after, before] that take `before` pixels to `after`, `scale` times as dense; made in float64."""
    stretch = min(scale, 1.0)
    support = {"linear": 2.0, "cubic": 4.0}[kernel] / stretch
    surplus = after - before * scale  # the output is laid centred over the input
    place = torch.arange(1, after + 1, dtype=torch.float64) - surplus / 2
    centre = place / scale + 0.5 * (1 - 1 / scale)  # counted from 1, as the taps are
    taps = torch.floor(centre - support / 2)[:, None] + torch.arange(math.ceil(support) + 2)
    weights = _KERNELS[kernel](stretch * (centre[:, None] - taps))
    weights /= weights.sum(1, keepdim=True)
    mirrored = (taps.long() - 1) % (2 * before)
    mirrored = torch.minimum(mirrored, 2 * before - 1 - mirrored)
    matrix = torch.zeros(after, before, dtype=torch.float64).scatter_add_(1, mirrored, weights)
    return matrix.to(device, dtype)


def _linear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -1/2."""
    x = x.abs()
    inner = 1.5 * x**3 - 2.5 * x**2 + 1
    outer = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, inner, torch.where(x <= 2, outer, 0.0))


_KERNELS = {"linear": _linear, "cubic": _cubic}
