"""A pathology encoder from a file of its weights: a vision transformer with timm's names for its parameters.

    tokens = [class, registers, patches]
    x += γ₁ · attention(norm₁ x);   x += γ₂ · mlp(norm₂ x)          features = class token of norm(x)

Covers what UNI and other encoders that are published as timm checkpoints are made of: layer scale or none,
register tokens or none, GELU or SwiGLU. Sizes are the weights' own. The number of heads is not in them: it is
the width over 64, the rule of ViT, unless the caller knows better.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

HEAD = 64  # channels
EPSILON = 1e-6  # of the layer norms
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of RGB in [0, 1]
SIGN = "patch_embed.proj.weight"  # a name that these weights have and no other network's


class VisionTransformer:
    """float32 RGB [B, 3, H, W] in [0, 1] to the class token [B, width]."""

    def __init__(self, weights: Mapping[str, Tensor], heads: int | None = None) -> None:
        self.weights = weights
        self.width, _, self.patch, _ = weights[SIGN].shape
        self.heads = heads or self.width // HEAD
        if not self.heads or self.width % self.heads:
            raise ValueError(f"{self.heads} heads of a width of {self.width}")
        self.depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
        positions = weights["pos_embed"].shape[1]
        self.grid = int(positions**0.5)  # patches a side; with or without one position for the class token
        self.class_has_position = positions == self.grid**2 + 1
        if not self.class_has_position and positions != self.grid**2:
            raise ValueError(f"{positions} positions are no square, with or without a class token")

    def __call__(self, images: Tensor) -> Tensor:
        side = self.grid * self.patch
        x = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False, antialias=True)
        x = (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)
        x = F.conv2d(x, self.weights[SIGN], self.weights.get("patch_embed.proj.bias"), stride=self.patch)
        x = self._tokens(x.flatten(2).transpose(1, 2))
        for block in range(self.depth):
            x = x + self._scaled(self._attention(self._norm(x, f"blocks.{block}.norm1"), block), block, "ls1")
            x = x + self._scaled(self._mlp(self._norm(x, f"blocks.{block}.norm2"), block), block, "ls2")
        return self._norm(x[:, 0], "norm")

    def _tokens(self, patches: Tensor) -> Tensor:
        first = self.weights["cls_token"].expand(len(patches), -1, -1)
        position = self.weights["pos_embed"]
        if self.class_has_position:
            first, patches = first + position[:, :1], patches + position[:, 1:]
        else:
            patches = patches + position
        registers = self.weights.get("reg_token")
        others = [] if registers is None else [registers.expand(len(patches), -1, -1)]
        return torch.cat([first, *others, patches], dim=1)

    def _attention(self, x: Tensor, block: int) -> Tensor:
        batch, length, _ = x.shape
        parts = self._linear(x, f"blocks.{block}.attn.qkv").view(batch, length, 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
        return self._linear(mixed.reshape(batch, length, self.width), f"blocks.{block}.attn.proj")

    def _mlp(self, x: Tensor, block: int) -> Tensor:
        hidden = self._linear(x, f"blocks.{block}.mlp.fc1")
        if hidden.shape[-1] == 2 * self.weights[f"blocks.{block}.mlp.fc2.weight"].shape[1]:  # SwiGLU, packed
            gate, hidden = hidden.chunk(2, dim=-1)
            return self._linear(F.silu(gate) * hidden, f"blocks.{block}.mlp.fc2")
        return self._linear(F.gelu(hidden), f"blocks.{block}.mlp.fc2")

    def _scaled(self, x: Tensor, block: int, name: str) -> Tensor:
        gamma = self.weights.get(f"blocks.{block}.{name}.gamma")
        return x if gamma is None else x * gamma

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(
            x, (self.width,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], EPSILON
        )

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))
