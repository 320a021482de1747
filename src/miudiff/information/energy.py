"""The energy of Eq. 2, corrected: low where stain is to be prized early and structure late.

    M = -lambda U - (1 - lambda) I,   U = H - I,   lambda = (t + 1) / S
      = -lambda H + (2 lambda - 1) I

In the first half of the reverse process (lambda > 1/2) the energy lowers the shared information and raises entropy; in the second half
it raises the shared information; at lambda = 1/2 only entropy acts. Lower is better: the sampler moves against its gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from miudiff.config import Strict
from miudiff.device import CPU_FP32, Placement
from miudiff.information.entropy import EntropyKind, entropy
from miudiff.information.estimator import Estimator, patches


class EnergyConfig(Strict):
    """Which energy guides."""

    guidance: Literal["full", "shared", "unique", "none"] = Field(
        "full", description="Eq. 2; 'shared' is -I (I-guided), 'unique' is -U (U-guided), 'none' is 0."
    )
    entropy: EntropyKind = Field("gaussian", description="Estimator of H(y); the paper names none.")
    entropy_weight: float = Field(1.0, ge=0, description="Factor of H.")
    reduction: Literal["mean", "sum"] = Field("mean", description="Over the patches of an image.")
    joint_only: bool = Field(False, description="Use the first term of the bound alone for I.")


@dataclass(frozen=True)
class MIEnergy:
    """M(y, x, t) for a batch, [B]; a value, differentiable in y."""

    estimator: Estimator
    config: EnergyConfig
    placement: Placement = CPU_FP32

    def __call__(
        self,
        y: Tensor,
        structure: Tensor,
        t: int,
        structure_t: int,
        stain_weight: float,
        offset: tuple[int, int] = (0, 0),
    ) -> Tensor:
        """Energy of IHC images `y`.

        Args:
            y: [B, 3, H, W] at noise level `t` (-1 is clean).
            structure: The source's gradient map, from `Estimator.structure_map`.
            structure_t: Noise level of what the map was taken from.
            stain_weight: lambda.
            offset: Where the patch grid begins.
        """
        entropy_factor, shared_factor = self.factors(stain_weight)
        total = torch.zeros(len(y), dtype=y.dtype, device=y.device)
        if shared_factor:
            measure = self.estimator.joint_only if self.config.joint_only else self.estimator.information
            with self.placement.autocast():
                shared = measure(structure, y, t, structure_t, offset)
            total = total + shared_factor * shared
        grid = patches(y, self.estimator.config.patch, offset)
        if entropy_factor:
            total = total + entropy_factor * entropy(grid, self.config.entropy)
        return total * (grid.shape[1] if self.config.reduction == "sum" else 1)

    def factors(self, stain_weight: float) -> tuple[float, float]:
        """What H and I are multiplied by at this lambda: (-lambda, 2 lambda - 1) for Eq. 2."""
        weight = {"full": stain_weight, "shared": 0.0, "unique": 1.0}.get(self.config.guidance)
        if weight is None:
            return 0.0, 0.0
        entropy_weight = 0.0 if self.config.entropy == "none" else self.config.entropy_weight
        return -weight * entropy_weight, 2 * weight - 1

    def gradient(
        self,
        y: Tensor,
        structure: Tensor,
        t: int,
        structure_t: int,
        stain_weight: float,
        offsets: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        """k = dM / dy, [B, 3, H, W]; each image's depends on that image alone.

        Images whose grids have as many patches go through the estimator together, each with its grid where it begins.

        Args:
            offsets: Where each image's patch grid begins; None begins all at the corner.
        """
        if self.factors(stain_weight) == (0.0, 0.0):
            return torch.zeros_like(y)
        size, groups = self.estimator.config.patch, defaultdict(list)
        for image, (top, left) in enumerate(offsets or [(0, 0)] * len(y)):
            rows, columns = ((side - begin) // size * size for side, begin in zip(y.shape[2:], (top, left)))
            groups[rows, columns].append((image, np.s_[:, top : top + rows, left : left + columns]))
        with torch.enable_grad():
            point = y.detach().requires_grad_(True)
            total = torch.zeros((), device=y.device)
            for grids in groups.values():
                images, maps = (
                    torch.stack([whole[image][part] for image, part in grids]) for whole in (point, structure)
                )
                total = total + self(images, maps, t, structure_t, stain_weight).sum()
            return torch.autograd.grad(total, point)[0]
