"""FID's Inception-v3, from a file of its weights: images in, the 2048 features that FID is defined on out.

The network is the TensorFlow one of 2015 that FID was published with, in the PyTorch form of pytorch-fid
(`pt_inception-2015-12-05-6726825d.pth`, 1008 classes). It differs from torchvision's in two places: average
pooling leaves the padding out of the mean, and the last block pools by maximum. Kernel sizes and channels are
the weights' own, so the forward pass needs names, strides and paddings alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 299  # pixels
WIDTH = 2048
EPSILON = 1e-3  # of the batch norms
SIGN = "Mixed_7c.branch_pool.conv.weight"  # a name that these weights have and no other network's


class Inception:
    """float32 RGB [B, 3, H, W] in [0, 1] to features [B, 2048]."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights

    def __call__(self, images: Tensor) -> Tensor:
        # As pytorch-fid: bilinear without antialiasing, whatever the size.
        x = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        x = self._conv(2 * x - 1, "Conv2d_1a_3x3", stride=2, padded=False)
        x = self._conv(x, "Conv2d_2a_3x3", padded=False)
        x = _halved(self._conv(x, "Conv2d_2b_3x3"))
        x = self._conv(x, "Conv2d_3b_1x1")
        x = _halved(self._conv(x, "Conv2d_4a_3x3", padded=False))
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self._square(x, name)
        x = self._first_reduction(x, "Mixed_6a")
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self._factored(x, name)
        x = self._second_reduction(x, "Mixed_7a")
        x = self._split(x, "Mixed_7b", _mean_pool(x))
        x = self._split(x, "Mixed_7c", F.max_pool2d(x, 3, stride=1, padding=1))
        return x.mean(dim=(2, 3))

    def _conv(self, x: Tensor, name: str, stride: int = 1, padded: bool = True) -> Tensor:
        kernel = self.weights[f"{name}.conv.weight"]
        padding = [side // 2 if padded else 0 for side in kernel.shape[2:]]
        x = F.conv2d(x, kernel, stride=stride, padding=padding)
        mean, variance, weight, bias = (
            self.weights[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, variance, weight, bias, eps=EPSILON))

    def _chain(self, x: Tensor, block: str, names: Sequence[str]) -> Tensor:
        for name in names:
            x = self._conv(x, f"{block}.{name}")
        return x

    def _square(self, x: Tensor, block: str) -> Tensor:
        branches = [
            self._chain(x, block, ["branch1x1"]),
            self._chain(x, block, ["branch5x5_1", "branch5x5_2"]),
            self._chain(x, block, ["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"]),
            self._chain(_mean_pool(x), block, ["branch_pool"]),
        ]
        return torch.cat(branches, dim=1)

    def _first_reduction(self, x: Tensor, block: str) -> Tensor:
        double = self._chain(x, block, ["branch3x3dbl_1", "branch3x3dbl_2"])
        branches = [
            self._conv(x, f"{block}.branch3x3", stride=2, padded=False),
            self._conv(double, f"{block}.branch3x3dbl_3", stride=2, padded=False),
            _halved(x),
        ]
        return torch.cat(branches, dim=1)

    def _factored(self, x: Tensor, block: str) -> Tensor:
        branches = [
            self._chain(x, block, ["branch1x1"]),
            self._chain(x, block, [f"branch7x7_{step}" for step in (1, 2, 3)]),
            self._chain(x, block, [f"branch7x7dbl_{step}" for step in (1, 2, 3, 4, 5)]),
            self._chain(_mean_pool(x), block, ["branch_pool"]),
        ]
        return torch.cat(branches, dim=1)

    def _second_reduction(self, x: Tensor, block: str) -> Tensor:
        small = self._chain(x, block, ["branch3x3_1"])
        large = self._chain(x, block, [f"branch7x7x3_{step}" for step in (1, 2, 3)])
        branches = [
            self._conv(small, f"{block}.branch3x3_2", stride=2, padded=False),
            self._conv(large, f"{block}.branch7x7x3_4", stride=2, padded=False),
            _halved(x),
        ]
        return torch.cat(branches, dim=1)

    def _split(self, x: Tensor, block: str, pooled: Tensor) -> Tensor:
        small = self._chain(x, block, ["branch3x3_1"])
        double = self._chain(x, block, ["branch3x3dbl_1", "branch3x3dbl_2"])
        branches = [
            self._chain(x, block, ["branch1x1"]),
            self._chain(small, block, ["branch3x3_2a"]),
            self._chain(small, block, ["branch3x3_2b"]),
            self._chain(double, block, ["branch3x3dbl_3a"]),
            self._chain(double, block, ["branch3x3dbl_3b"]),
            self._chain(pooled, block, ["branch_pool"]),
        ]
        return torch.cat(branches, dim=1)


def _halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


def _mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
