"""The systems that turn H&E into IHC. Each file holds one method's loop, to be read against its paper.

A translator keeps one promise, tested over all of them: same shape; values in [-1, 1]; finite; and a tile's result depends on that tile
and its key alone, whatever the batch, the order, or earlier calls.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from miudiff.noise import NoiseSource


class Translator(Protocol):
    """Turns H&E tiles into IHC tiles."""

    def translate(self, he: Tensor, keys: Sequence[NoiseSource]) -> Tensor:
        """[B, 3, H, W] in [-1, 1] to the same, one key for each tile."""
        ...
