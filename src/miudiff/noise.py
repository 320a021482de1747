"""Counter-based noise: randomness is a function of (seed, image, position, stream, step), never of history.

Noise is a field over the plane: the value at a pixel depends on that pixel's absolute coordinates, so two tiles of one slide
that overlap see the same noise where they overlap, and a tile's result does not depend on its batch, on the order of work,
on earlier calls or on the number of processes. The field is cut into cells of 64 x 64 pixels; each cell is one block of
the Philox counter-based generator (Salmon et al. 2011).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

CELL = 64

# One stream for each use of randomness, so that adding a use never changes another's draws.
STREAMS = {
    "start": 0,
    "step": 1,
    "condition": 2,
    "grid": 3,
    "patches": 4,
    "batch": 5,
    "time": 6,
    "augment": 7,
    "shuffle": 8,
}


class NoiseSource(Protocol):
    """What a sampler needs of randomness; `NoiseKey` is the one in use, tests put recorded draws in its place."""

    def normal(self, stream: str, step: int, shape: tuple[int, int, int]) -> Tensor: ...

    def integers(self, stream: str, step: int, count: int, high: int) -> Tensor: ...

    def permutation(self, stream: str, step: int, length: int) -> Tensor: ...


@dataclass(frozen=True)
class NoiseKey:
    """Names one tile's randomness.

    Args:
        seed: The user's seed.
        name: What the field belongs to: an image's or a slide's name. Different names are independent.
        x, y: The tile's left upper corner in the field, in pixels.
    """

    seed: int
    name: str = ""
    x: int = 0
    y: int = 0

    def at(self, x: int, y: int) -> NoiseKey:
        """The same field seen from another corner."""
        return replace(self, x=x, y=y)

    def normal(self, stream: str, step: int, shape: tuple[int, int, int]) -> Tensor:
        """Standard normal noise of `shape` (channels, height, width), float32 on the CPU."""
        channels, height, width = shape
        rows = range(self.y // CELL, (self.y + height - 1) // CELL + 1)
        columns = range(self.x // CELL, (self.x + width - 1) // CELL + 1)
        field = np.concatenate(
            [
                np.concatenate([self._cell(stream, step, channels, r, c) for c in columns], axis=2)
                for r in rows
            ],
            axis=1,
        )
        top, left = self.y - rows[0] * CELL, self.x - columns[0] * CELL
        return torch.from_numpy(np.ascontiguousarray(field[:, top : top + height, left : left + width]))

    def integers(self, stream: str, step: int, count: int, high: int) -> Tensor:
        """`count` integers in [0, high), int64."""
        return torch.from_numpy(self._generator(stream, step, self.y, self.x).integers(0, high, count))

    def permutation(self, stream: str, step: int, length: int) -> Tensor:
        """The integers 0 to `length` - 1 in a random order, int64."""
        return torch.from_numpy(self._generator(stream, step, self.y, self.x).permutation(length))

    def distinct(self, stream: str, step: int, count: int, high: int) -> Tensor:
        """`count` different integers in [0, high) in a random order, int64; quick where they are few of many."""
        draws = self._generator(stream, step, self.y, self.x).choice(high, count, replace=False)
        return torch.from_numpy(draws)

    def uniform(self, stream: str, step: int, count: int) -> Tensor:
        """`count` numbers in [0, 1), float64."""
        return torch.from_numpy(self._generator(stream, step, self.y, self.x).random(count))

    def _cell(self, stream: str, step: int, channels: int, row: int, column: int) -> np.ndarray:
        return self._generator(stream, step, row, column).standard_normal(
            (channels, CELL, CELL), dtype=np.float32
        )

    def _generator(self, stream: str, step: int, row: int, column: int) -> np.random.Generator:
        # A file's name need not be text; one that is not keeps its bytes.
        words = f"{self.seed}\0{self.name}".encode(errors="surrogateescape")
        digest = hashlib.blake2b(words, digest_size=16).digest()
        key = np.frombuffer(digest, dtype=np.uint64)
        place = np.array([row, column], dtype=np.int64).astype(np.uint64)
        # Counter word 0 counts the draws of one cell; the other three say which cell, step and stream it is.
        counter = np.array([0, place[0], place[1], (step << 8) | STREAMS[stream]], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(keys: Sequence[NoiseSource], stream: str, step: int, like: Tensor) -> Tensor:
    """Noise of `like`'s shape [B, C, H, W], device and dtype, one key for each image of the batch."""
    _, channels, height, width = like.shape
    draws = [key.normal(stream, step, (channels, height, width)) for key in keys]
    return torch.stack(draws).to(like)
