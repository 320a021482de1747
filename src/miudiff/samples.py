"""Unconditional samples of a score model: what it takes IHC images to be, with no source to help it.

    y_{T-1} ~ N(0, 1),   y_{i-1} = mean(y_i, clipped y_0) + 1[i > 0] Sigma_i^(1/2) z,   i = T - 1 ... 0

Where they look like no tissue, no guidance will mend a translation. Sample i depends on (seed, i) alone, not on how many are drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from miudiff.config import LARGEST_TILE
from miudiff.device import Placement, enough_memory, place
from miudiff.errors import ConfigError, NonFiniteError
from miudiff.images import SUFFIXES, Pixels, to_uint8, write_image
from miudiff.methods.model import Model, load_model
from miudiff.methods.sdedit import Reverse, ReverseConfig
from miudiff.noise import NoiseKey, normal
from miudiff.progress import Progress

MOST = 4096  # samples of one picture
ACROSS = 8  # samples in a row of the picture


def draw_samples(
    model: Model, marker: str | None, count: int, size: int, steps: int, seed: int, placement: Placement
) -> Iterator[Pixels | None]:
    """`count` samples, uint8 [size, size, 3]; None after each step, so that a caller can tell how far it is.

    Raises:
        ConfigError: A size that the network cannot halve, more steps than it knows, or not a marker of the model.
        DeviceError: Out of memory.
        NonFiniteError: The network gave a NaN or an infinity.
    """
    score = model.for_marker(marker or next(iter(model.card.markers), None))
    if not 8 <= size <= LARGEST_TILE or size % score.multiple:
        raise ConfigError(
            f"--size: found {size}, expected a multiple of {score.multiple} between 8 and {LARGEST_TILE}"
        )
    if not 2 <= steps <= len(score.sde):
        raise ConfigError(f"--steps: found {steps}, expected 2 to {len(score.sde)}")
    variance = "learned" if score.learned_variance else "fixed_small"
    config = ReverseConfig(start=len(score.sde), steps=steps, variance=variance, clip=True)
    reverse = Reverse(score, config, placement)
    like = torch.empty(1, 3, size, size, device=placement.device)
    for number in range(count):
        keys = [NoiseKey(seed, f"sample{number}")]
        y = normal(keys, "start", 0, like)
        for index in reversed(range(len(reverse.sde))):
            with enough_memory(f"a sample of {size} x {size} on {placement.device}", "take a smaller --size"):
                y = reverse.step(reverse.transition(y, index), index, keys)
            yield None
        if not torch.isfinite(y).all():
            raise NonFiniteError(
                f"sample {number}: the network gave a NaN or an infinity; are its weights damaged?"
            )
        yield to_uint8(y)[0]


def grid(images: Sequence[Pixels]) -> Pixels:
    """Images of one size in rows of `ACROSS`, uint8 [H, W, 3]; what is left of the last row is white."""
    across = min(ACROSS, len(images))
    blank = [np.full_like(images[0], 255)] * (-len(images) % across)
    tiles = [*images, *blank]
    return np.vstack([np.hstack(tiles[i : i + across]) for i in range(0, len(tiles), across)])


def write_samples(
    name: str,
    out: Path,
    marker: str | None,
    count: int,
    size: int,
    steps: int,
    seed: int,
    device: str,
    say: Callable[[str], None],
) -> None:
    """Draw samples of the model `name` and write them as one picture."""
    if not 1 <= count <= MOST:
        raise ConfigError(f"--count: found {count}, expected 1 to {MOST}")
    if out.suffix.lower() not in SUFFIXES or out.is_dir():
        raise ConfigError(f"{out}: expected the name of a picture to write, ending in {', '.join(SUFFIXES)}")
    placement = place(device)
    model = load_model(name, placement)
    say(f"{model.card.name}, {count} samples of {size} x {size}, {steps} steps, seed {seed}, {placement}")
    images: list[Pixels] = []
    done, began = 0, time.monotonic()
    progress = Progress("steps", say)
    for image in draw_samples(model, marker, count, size, steps, seed, placement):
        progress(done, count * steps)
        if image is None:
            done += 1
        else:
            images.append(image)
    write_image(out, grid(images))
    say(f"{out}  ({time.monotonic() - began:.0f} s)")
