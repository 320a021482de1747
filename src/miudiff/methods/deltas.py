"""Changes of few weights, a set for each image of a batch, around a network whose own weights all images share.

    norms     GN(x) (w + dw) + b + db                 dw, db [B, C]
    low rank  W * x + L (R * x)                       L [B, C, r], R fixed (LoRA-FA, Zhang et al. 2023)

All changes begin at zero, where the network is the frozen one. One forward and one backward pass serve the whole batch, and the
gradient of an image's changes comes from that image alone.
"""

from __future__ import annotations

import copy
import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miudiff.diffusion.score import ScoreModel

DECODER = ("mid_block", "up_blocks", "conv_norm_out", "conv_out")  # a U-Net's parts behind its encoder


class NormPerImage(nn.Module):
    """A frozen GroupNorm whose scale and shift change by an amount of their own in each of `count` images."""

    def __init__(self, norm: nn.GroupNorm, count: int) -> None:
        super().__init__()
        self.norm = norm
        self.scale = nn.Parameter(norm.weight.new_zeros(count, norm.num_channels))
        self.shift = nn.Parameter(norm.weight.new_zeros(count, norm.num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, C, ...] normalised."""
        weight, bias = (self.norm.weight + self.scale).flatten(), (self.norm.bias + self.shift).flatten()
        # All images' groups, side by side, are the groups of one image. An image alone stays as it lies in memory.
        joined = x if len(x) == 1 else x.reshape(1, -1, *x.shape[2:])
        groups = len(x) * self.norm.num_groups
        return F.group_norm(joined, groups, weight, bias, self.norm.eps).view_as(x)


class LowRankPerImage(nn.Module):
    """A frozen convolution whose kernel changes by a product of rank `rank` in each of `count` images.

    The right factor is drawn from `generator` and stays; all images share it, so it costs them one convolution. The left one learns.
    """

    def __init__(self, conv: nn.Conv2d, count: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.conv = conv
        right = torch.randn(rank, *conv.weight.shape[1:], generator=generator)
        self.right = right.to(conv.weight) / right[0].numel() ** 0.5
        self.left = nn.Parameter(conv.weight.new_zeros(count, conv.out_channels, rank))

    def forward(self, x: Tensor) -> Tensor:
        """`x` [B, C, H, W] convolved."""
        conv = self.conv
        inner = F.conv2d(x, self.right, None, conv.stride, conv.padding, conv.dilation)
        pixels = inner.permute(0, 2, 3, 1)  # [B, H, W, r], as channels lie in memory
        change = pixels.flatten(1, 2) @ self.left.transpose(1, 2)
        return conv(x) + change.view(*pixels.shape[:3], -1).permute(0, 3, 1, 2)


def with_norms(frozen: ScoreModel, count: int) -> tuple[ScoreModel, list[nn.Parameter]]:
    """`frozen` for `count` images with norms of their own, and the parameters that learn."""
    score = _same_weights(frozen)
    changes: list[nn.Parameter] = []
    for path, norm in list(score.unet.named_modules()):
        if isinstance(norm, nn.GroupNorm):
            own = NormPerImage(norm, count)
            score.unet.set_submodule(path, own)
            changes += [own.scale, own.shift]
    return score, changes


def with_low_rank(frozen: ScoreModel, count: int, rank: int) -> tuple[ScoreModel, list[nn.Parameter]]:
    """`frozen` for `count` images with changes of their own in the decoder's convolutions, and the parameters that learn."""
    score = _same_weights(frozen)
    generator = torch.Generator().manual_seed(0)  # the same directions for every image of every run
    changes: list[nn.Parameter] = []
    for path, conv in list(score.unet.named_modules()):
        if isinstance(conv, nn.Conv2d) and path.startswith(DECODER):
            own = LowRankPerImage(conv, count, rank, generator)
            score.unet.set_submodule(path, own)
            changes.append(own.left)
    return score, changes


def _same_weights(frozen: ScoreModel) -> ScoreModel:
    """Modules of its own around the tensors of `frozen`: they can be replaced, and `frozen` does not see it."""
    tensors = itertools.chain(frozen.parameters(), frozen.buffers())
    return copy.deepcopy(frozen, {id(tensor): tensor for tensor in tensors})
