"""The patch-contrastive loss: what is at a place in one image should know the same place in the other from all other places.

    l = -log exp(q.k+ / tau) / (exp(q.k+ / tau) + sum_- exp(q.k- / tau))       (Park et al. 2020, CUT)

MIU-Diff takes it without a trained head on a score model's encoder features (Section 2.3; the encoder as ZeCon taps it). CUT trains
`PatchHeads` on its generator's features. ASP (Li et al. 2023) takes real IHC for the key, which may not be aligned, and trusts a
place by how alike the two already are: `adaptive_weights`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SELF_LOGIT = (
    -10.0
)  # what CUT's code puts, before the division by tau, where a patch would be its own negative


def patch_nce(query: Tensor, key: Tensor, temperature: float = 0.07) -> Tensor:
    """The loss of each patch, [B, P], against the other patches of its own image.

    Args:
        query, key: Unit features [B, P, C]; no gradient flows into `key`.
    """
    # In full precision: at a temperature of 0.07 bf16's two digits would be seen in the logits.
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.float(), key.detach().float()
        positive = (query * key).sum(-1, keepdim=True)
        negative = query @ key.transpose(1, 2)
    own = torch.eye(query.shape[1], dtype=torch.bool, device=query.device)
    logits = torch.cat([positive, negative.masked_fill(own, SELF_LOGIT)], -1) / temperature
    return F.cross_entropy(
        logits.flatten(0, 1),
        torch.zeros(logits.shape[:2].numel(), dtype=torch.int64, device=query.device),
        reduction="none",
    ).view(query.shape[:2])


def unit_features(features: Tensor, positions: Tensor) -> Tensor:
    """Features [B, C, h, w] at `positions`, as `pick` takes them, each divided by its length + 1e-7; [B, P, C]."""
    return unit(pick(features, positions))


def pick(features: Tensor, positions: Tensor) -> Tensor:
    """Features [B, C, h, w] at `positions` (row-major), [P] for all images or [B, P]; [B, P, C]."""
    rows = features.flatten(2)
    if positions.ndim == 1:
        return rows[:, :, positions].transpose(1, 2)
    return rows.gather(2, positions[:, None].expand(-1, rows.shape[1], -1)).transpose(1, 2)


Epsilon = Literal["outside", "inside"]


def unit(x: Tensor, epsilon: Epsilon = "outside") -> Tensor:
    """`x` over its length along the last axis: |x| + 1e-7 (CUT), or |x + 1e-7|, where ASP's code adds it before squaring."""
    if epsilon == "inside":
        return x / (x + 1e-7).square().sum(-1, keepdim=True).sqrt()
    return x / (x.norm(dim=-1, keepdim=True) + 1e-7)


class PatchHeads(nn.Module):
    """CUT's heads: a small network for each tapped layer that maps its features to unit vectors of one width.

    Args:
        channels: Of each layer, in the order in which they will come.
    """

    def __init__(self, channels: Sequence[int], width: int = 256, epsilon: Epsilon = "outside") -> None:
        super().__init__()
        self.epsilon: Epsilon = epsilon
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(count, width), nn.ReLU(), nn.Linear(width, width)) for count in channels
        )

    def forward(self, features: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """Features [B, C, h, w] of each layer at its positions [P]; [B, P, width] of each."""
        return [
            unit(head(pick(layer, places)).float(), self.epsilon)
            for head, layer, places in zip(self.heads, features, positions, strict=True)
        ]


Schedule = Literal["lambda", "sigmoid", "linear", "zero"]
LookUp = Literal["linear", "top", "bell", "uniform"]


def uniform_share(progress: float, schedule: Schedule, decay: float) -> float:
    """ASP's p: how much of a patch's weight does not depend on its likeness.

    Args:
        progress: (epoch - 1) / epochs, in [0, 1).
        decay: Share of the epochs in which the learning rate falls; `lambda` begins to weigh with them.
    """
    if schedule == "sigmoid":
        return 1 / (1 + math.exp(10 * (progress - 0.5)))
    if schedule == "linear":
        return 1 - progress
    if schedule == "lambda" and progress >= 1 - decay:
        return (1 - progress) / decay
    return 1.0


def adaptive_weights(likeness: Tensor, share: float, look_up: LookUp) -> Tensor:
    """ASP's weight of each patch, of mean 1 over the last axis: w = p + (1 - p) w1(likeness).

    Args:
        likeness: Cosine of query and key at each place, [..., P]; no gradient flows into it.
        share: p, `uniform_share`.
    """
    s = likeness.detach()
    if look_up == "linear":
        looked_up = s.relu()
    elif look_up == "top":
        looked_up = (1 - (s.relu() - 1).square()).sqrt()
    elif look_up == "bell":
        looked_up = torch.exp(-(4 * (s - 0.5)).square() / 2) / math.sqrt(2 * math.pi)
    else:
        looked_up = torch.ones_like(s)
    weights = share + (1 - share) * looked_up
    return weights / weights.mean(-1, keepdim=True)


def layered_patch_nce(
    queries: Sequence[Tensor], keys: Sequence[Tensor], positions: Sequence[Tensor], temperature: float = 0.07
) -> Tensor:
    """Mean over positions, sum over layers (Section 2.3's sum over i); of each image, [B]."""
    losses = [
        patch_nce(unit_features(q, p), unit_features(k, p), temperature).mean(1)
        for q, k, p in zip(queries, keys, positions, strict=True)
    ]
    return torch.stack(losses).sum(0)


def layered_squares(queries: Sequence[Tensor], keys: Sequence[Tensor], positions: Sequence[Tensor]) -> Tensor:
    """Table 1's "l2 optimization": the mean squared difference of the same features, summed over layers; of each image, [B]."""
    losses = [
        (unit_features(q, p) - unit_features(k, p).detach()).square().mean((1, 2))
        for q, k, p in zip(queries, keys, positions, strict=True)
    ]
    return torch.stack(losses).sum(0)
