"""What moves a student: the distribution-matching gradient (Yin et al. 2024, DMD; RDMD, arXiv:2406.14762) and its transport cost.

    dL/dy0 = (D_fake(y_t) - D_real(y_t)) / mean |y0 - D_real(y_t)|

D_real and D_fake are the clean estimates of two score models, one of the IHC set and one of the student's own images. Their
difference is that of the two distributions' scores at y_t, up to a factor, so the student moves its images to where IHC is denser
and its own images are not.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

LEAST = 1e-3  # mean distance of an image and its estimate: a flat image has none


def matching_gradient(y0: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """dL/dy0 for images and the two clean estimates of their noised selves, all [B, C, H, W]; no gradient flows through it."""
    distance = (y0 - real).abs().flatten(1).mean(1).clamp(min=LEAST)
    return ((fake - real) / distance.view(-1, 1, 1, 1)).detach()


def as_loss(y0: Tensor, gradient: Tensor) -> Tensor:
    """A scalar whose gradient in `y0` is `gradient` over the number of its elements."""
    return 0.5 * (y0 - (y0 - gradient).detach()).square().mean()


def coarse_squares(y0: Tensor, source: Tensor, block: int) -> Tensor:
    """The mean squared difference of the means of squares of `block` pixels: the cost of moving colours, which leaves detail free."""
    return F.mse_loss(F.avg_pool2d(y0, block), F.avg_pool2d(source, block))
