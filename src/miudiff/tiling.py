"""Images larger than a tile: overlapping tiles on a fixed grid, blended with a linear window.

Each tile's noise is the window of one field at the tile's place, so overlapping tiles begin from the same noise; the blend then
joins two versions of the same tissue. Images are mirrored up to what the network can take and cut back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import product

import numpy as np
from numpy.typing import NDArray

from miudiff.images import Pixels

TileFunction = Callable[[Pixels, int, int], Pixels]
Placed = tuple[Pixels, int, int]  # a tile, its top and its left
AllTilesFunction = Callable[[list[Placed]], Iterable[Pixels]]


def places(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side: as few as overlap by at least `overlap`, evenly from border to border."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def tile_grid(height: int, width: int, tile: int, overlap: int) -> Iterator[tuple[int, int]]:
    """(top, left) of each tile in reading order."""
    return product(places(height, tile, overlap), places(width, tile, overlap))


def window(height: int, width: int, overlap: int) -> NDArray[np.float32]:
    """Weights [H, W] that fall linearly to the border over `overlap` pixels and are never 0."""

    def side(length: int) -> NDArray[np.float32]:
        ramp = np.minimum(np.arange(1, length + 1), np.arange(length, 0, -1)).astype(np.float32)
        return np.minimum(ramp / max(1, overlap), 1.0)

    return np.outer(side(height), side(width))


def over_tiles(image: Pixels, function: TileFunction, tile: int, overlap: int, multiple: int) -> Pixels:
    """Apply `function(tile, top, left)` all over uint8 [H, W, 3]; the result has the image's size, see `over_all_tiles`."""
    return over_all_tiles(
        image, lambda pieces: (function(*piece) for piece in pieces), tile, overlap, multiple
    )


def over_all_tiles(
    image: Pixels, function: AllTilesFunction, tile: int, overlap: int, multiple: int
) -> Pixels:
    """Apply to uint8 [H, W, 3] a function of all its tiles, which gives one for each in their order; the result has the image's size.

    Args:
        tile: Largest side given to `function`; smaller images are given whole.
        multiple: Sides given to `function` are multiples of this; the image is mirrored up to it.
    """
    height, width = image.shape[:2]
    padded = _mirror(image, -(-height // multiple) * multiple, -(-width // multiple) * multiple)
    total = np.zeros(padded.shape, np.float32)
    weight = np.zeros((*padded.shape[:2], 1), np.float32)
    pieces = [
        (padded[top : top + tile, left : left + tile], top, left)
        for top, left in tile_grid(padded.shape[0], padded.shape[1], tile, overlap)
    ]
    for (piece, top, left), result in zip(pieces, function(pieces), strict=True):
        share = window(piece.shape[0], piece.shape[1], overlap)[..., None]
        total[top : top + tile, left : left + tile] += result * share
        weight[top : top + tile, left : left + tile] += share
    return np.round(total / weight).clip(0, 255).astype(np.uint8)[:height, :width]


def _mirror(image: Pixels, height: int, width: int) -> Pixels:
    """Mirrored at the lower and right border; an image smaller than the border it needs is mirrored again and again."""
    return np.pad(
        image, ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0)), mode="symmetric"
    )
