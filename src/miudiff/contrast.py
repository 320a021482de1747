"""The patch-contrastive loss: what is at a place in one image should know the same place in the other from all other places.

    l = -log exp(q.k+ / tau) / (exp(q.k+ / tau) + sum_- exp(q.k- / tau))       (Park et al. 2020, CUT)

MIU-Diff takes it without a trained head on a score model's encoder features (Section 2.3; the encoder as ZeCon taps it).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

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
    """Features [B, C, h, w] at `positions` [P] (row-major), each divided by its length + 1e-7; [B, P, C]."""
    picked = features.flatten(2)[:, :, positions].transpose(1, 2)
    return picked / (picked.norm(dim=-1, keepdim=True) + 1e-7)


def layered_patch_nce(
    queries: Sequence[Tensor], keys: Sequence[Tensor], positions: Sequence[Tensor], temperature: float = 0.07
) -> Tensor:
    """Mean over positions, sum over layers, of one image's features (Section 2.3's sum over i); a scalar."""
    losses = [
        patch_nce(unit_features(q, p), unit_features(k, p), temperature).mean()
        for q, k, p in zip(queries, keys, positions, strict=True)
    ]
    return torch.stack(losses).sum()


def layered_squares(queries: Sequence[Tensor], keys: Sequence[Tensor], positions: Sequence[Tensor]) -> Tensor:
    """Table 1's "l2 optimization": the mean squared difference of the same features, summed over layers; a scalar."""
    losses = [
        F.mse_loss(unit_features(q, p), unit_features(k, p).detach())
        for q, k, p in zip(queries, keys, positions, strict=True)
    ]
    return torch.stack(losses).sum()
