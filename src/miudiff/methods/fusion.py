"""Overlapping tiles that take the reverse walk together: after each step all agree on what they share (Bar-Tal et al. 2023).

    y_{i-1}(p) = sum_k w_k(p) y_{i-1}^k(p) / sum_k w_k(p)        over the tiles k that hold the pixel p

Tiles draw their noise from one field, so a mean of draws is a draw of the mean: mean and spread are fused in one, and a step's
noise keeps its variance. (Independent noise would lose it in the overlaps, and the fused field with it its grain.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from miudiff.tiling import tile_grid, window


class Fusion:
    """The tiles of one field of `height` x `width` pixels, on the grid of `tiling.tile_grid`; no side shorter than a tile's."""

    def __init__(self, height: int, width: int, tile: int, overlap: int) -> None:
        self.size, self.tile = (height, width), tile
        self.corners = list(tile_grid(height, width, tile, overlap))
        self.share = torch.from_numpy(window(tile, tile, overlap))
        self.weight = torch.zeros(height, width)
        for top, left in self.corners:
            self.weight[top : top + tile, left : left + tile] += self.share

    def cut(self, field: Tensor) -> Tensor:
        """The tiles [N, C, tile, tile] of a field [1, C, H, W]."""
        tile = self.tile
        return torch.cat([field[:, :, top : top + tile, left : left + tile] for top, left in self.corners])

    def field(self, tiles: Tensor) -> Tensor:
        """The field [1, C, H, W] of tiles [N, C, tile, tile]; where they overlap, their weighted mean."""
        total = tiles.new_zeros((1, tiles.shape[1], *self.size))
        # Copied once: an accelerator would be waited for in each step.
        self.share, self.weight = self.share.to(tiles), self.weight.to(tiles)
        for one, (top, left) in zip(tiles, self.corners):
            total[0, :, top : top + self.tile, left : left + self.tile] += one * self.share
        return total / self.weight

    def __call__(self, tiles: Tensor) -> Tensor:
        """The tiles as they are once they agree; a lone tile stays as it is, to the bit."""
        return tiles if len(self.corners) == 1 else self.cut(self.field(tiles))
