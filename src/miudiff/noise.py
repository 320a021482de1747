"""Counter-based noise: randomness is a function of (seed, image, position, stream, step), never of history.

Noise is a field over the plane: the value at a pixel depends on that pixel's absolute coordinates, so two tiles of one slide
that overlap see the same noise where they overlap, and a tile's result does not depend on its batch, on the order of work,
on earlier calls or on the number of processes. The field is cut into cells of 64 x 64 pixels; each cell is one block of
the Philox counter-based generator (Salmon et al. 2011).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from miudiff.device import upload

CELL = 64
LOOK = 2  # steps that `Ahead` draws before they are asked for

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
    "palette": 9,
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


class Ahead(Sequence[NoiseSource]):
    """Keys of one batch, whose next noise threads draw while the network runs; `normal` takes it, the same as it would draw.

    A walk counts down: who takes a step's noise will ask for the step below in the same stream. LOOK steps are drawn ahead and no
    more are held. Numpy lets go of the interpreter while it draws. Use it as a context: the threads end with it.

    Args:
        keys: Draw the same whatever is drawn before, as `NoiseKey` does.
        threads: How many.
        pinned: Draw into memory that an accelerator copies from on its own.
    """

    def __init__(self, keys: Sequence[NoiseSource], threads: int, pinned: bool) -> None:
        self._keys, self._pinned = keys, pinned
        self._pool = ThreadPoolExecutor(threads, "noise")
        self._coming: dict[tuple[str, int], tuple[Tensor, list[Future[None]]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    @overload
    def __getitem__(self, at: int) -> NoiseSource: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[NoiseSource]: ...

    def __getitem__(self, at: int | slice) -> NoiseSource | Sequence[NoiseSource]:
        return self._keys[at]

    def __len__(self) -> int:
        return len(self._keys)

    def take(self, stream: str, step: int, shape: torch.Size) -> Tensor:
        """The batch's noise [B, C, H, W], on the processor."""
        wanted = {(stream, step): None} | {(stream, s): None for s in self._below(stream, step)}
        for place in wanted:
            if place not in self._coming or self._coming[place][0].shape != shape:
                self._coming[place] = self._begin(*place, shape)
        self._coming = {at: held for at, held in self._coming.items() if at in wanted or at[0] != stream}
        noise, filling = self._coming.pop((stream, step))
        for part in filling:
            part.result()
        return noise

    def _below(self, stream: str, step: int) -> range:
        """The steps that a walk will ask for next; what noise it begins with is drawn once, and its last step draws none."""
        if stream not in ("step", "condition"):
            return range(0)
        return range(step - 1, max(step - 1 - LOOK, 0 if stream == "step" else -1), -1)

    def _begin(self, stream: str, step: int, shape: torch.Size) -> tuple[Tensor, list[Future[None]]]:
        noise = torch.empty(shape, pin_memory=self._pinned)

        def fill(part: NDArray[np.float32], key: NoiseSource) -> None:
            part[:] = key.normal(stream, step, (shape[1], shape[2], shape[3])).numpy()

        return noise, [self._pool.submit(fill, *one) for one in zip(noise.numpy(), self._keys, strict=True)]


def normal(keys: Sequence[NoiseSource], stream: str, step: int, like: Tensor) -> Tensor:
    """Noise of `like`'s shape [B, C, H, W], device and dtype, one key for each image of the batch."""
    if isinstance(keys, Ahead):
        noise = keys.take(stream, step, like.shape)
    else:
        _, channels, height, width = like.shape
        noise = torch.stack([key.normal(stream, step, (channels, height, width)) for key in keys])
    return upload(noise, like.device).to(like.dtype)
