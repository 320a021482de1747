"""Tone matching: one fixed curve from the grey of H&E to the luma of a marker's IHC (an extension of the paper).

Removing colour leaves luma, and luma means other things in the two stains: an H&E field is darker all over, so the reverse process,
which keeps the coarse luma that it begins from, stains too much or too little. The curve maps the quantiles of an unpaired H&E
population to those of an IHC population. The grey can be H&E's red in place of its luma: hematoxylin absorbs red and eosin hardly
does, so collagen and red cells turn as pale as they are in an IHC section.

A field's ground is as bright as its scanner made it, in both stains alike, which no curve of the population can know. So the curve
moves a pixel by as much as it is stained, and what has no colour stays as it is. It is the same for every tile and every pixel, so
a tile's result still depends on that tile alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from miudiff.config import Strict
from miudiff.errors import DataError
from miudiff.images import LUMA, Pixels, to_gray, to_tensor
from miudiff.stains import Floats

POINTS = 33
LEVELS = 2048  # of grey, when populations are compared
# Chosen on the training fields of BCI and MIST, each left out in turn: docs/results.md, "Grounds".
CHROMA = (0.015, 0.2)
Channel = Literal["luma", "red"]


class ToneCurve(Strict):
    """Quantiles of grey in [-1, 1], increasing, at evenly spaced probabilities, and which pixels they move."""

    channel: Channel = Field("luma", description="What of the H&E is its grey: its luma, or its red.")
    source: tuple[float, ...] = Field(min_length=2, description="Of the H&E population.")
    target: tuple[float, ...] = Field(min_length=2, description="Of the marker's IHC population.")
    chroma: tuple[float, float] | None = Field(
        None,
        description="The difference of a pixel's largest and smallest optical density (log10) from which the curve begins to move it, and from which it does so in full. None: it moves every pixel.",
    )

    @model_validator(mode="after")
    def _monotone(self) -> ToneCurve:
        if len(self.source) != len(self.target):
            raise ValueError(
                f"{len(self.source)} source and {len(self.target)} target quantiles, expected as many"
            )
        if any(b <= a for a, b in zip(self.source, self.source[1:])) or any(
            b < a for a, b in zip(self.target, self.target[1:])
        ):
            raise ValueError("quantiles must increase")
        if self.chroma and not 0 <= self.chroma[0] < self.chroma[1]:
            raise ValueError("chroma must be two increasing densities, not negative")
        return self

    def __call__(self, he: Tensor) -> Tensor:
        """The H&E [B, 3, H, W] in [-1, 1] without colour, at the marker's luma; the same shape.

        Linear between the points, moved by the end points' difference beyond them.
        """
        gray = to_gray(he) if self.channel == "luma" else he[:, :1].expand_as(he)
        source = torch.tensor(self.source, dtype=gray.dtype, device=gray.device)
        target = torch.tensor(self.target, dtype=gray.dtype, device=gray.device)
        inside = gray.clamp(self.source[0], self.source[-1]).contiguous()
        right = torch.searchsorted(source, inside).clamp(1, len(source) - 1)
        share = (inside - source[right - 1]) / (source[right] - source[right - 1])
        mapped = target[right - 1] + share * (target[right] - target[right - 1]) + (gray - inside)
        if self.chroma:
            ground = to_gray(he)
            mapped = ground + stained(he, self.chroma) * (mapped - ground)
        return mapped.clamp(-1, 1)


def stained(he: Tensor, chroma: tuple[float, float]) -> Tensor:
    """How far each pixel of H&E [B, 3, H, W] in [-1, 1] is stained and not ground: [B, 1, H, W] in [0, 1]."""
    light = ((he + 1) / 2).clamp(1 / 255, 1)
    chromatic = torch.log10(light.amax(1, keepdim=True) / light.amin(1, keepdim=True))
    return ((chromatic - chroma[0]) / (chroma[1] - chroma[0])).clamp(0, 1)


def measure_tone(
    he: Iterable[Pixels], ihc: Iterable[Pixels], channel: Channel = "luma", keep_ground: bool = True
) -> ToneCurve:
    """The curve between two unpaired populations; each image counts alike, whatever its size.

    The H&E's ground is in the IHC population too, as it is. The curve maps what is stained to what of the IHC is left beside it.

    Args:
        keep_ground: Whether what has no colour stays as it is; else the curve moves every pixel.

    Raises:
        DataError: H&E without any colour.
    """
    luma, grey = np.array(LUMA), np.array(LUMA if channel == "luma" else (1.0, 0.0, 0.0))
    moved, ground = [], []
    for image in he:
        share = (
            stained(to_tensor(image).double(), CHROMA)[0, 0].numpy()
            if keep_ground
            else np.ones(image.shape[:2])
        )
        moved.append(_levels(image, grey, share))
        ground.append(_levels(image, luma, 1 - share))
    source, whole = np.mean(moved, axis=0), np.mean([_levels(image, luma) for image in ihc], axis=0)
    rest = np.clip(whole - np.mean(ground, axis=0), 0, None)
    if source.sum() < 1e-6:
        raise DataError("the H&E images hold no colour, so nothing tells stain from ground; expected H&E")
    # equal quantiles of the source would make a step
    quantiles = _quantiles(source) + 1e-5 * np.arange(POINTS), _quantiles(rest if rest.any() else whole)
    return ToneCurve(
        channel=channel,
        source=tuple(quantiles[0].round(6).tolist()),
        target=tuple(quantiles[1].round(6).tolist()),
        chroma=CHROMA if keep_ground else None,
    )


def _levels(image: Pixels, weights: Floats, share: Floats | None = None) -> Floats:
    """Share of an image's pixels at each of LEVELS greys in [-1, 1]."""
    grey = image.astype(np.float64) @ weights / 127.5 - 1
    counts, _ = np.histogram(grey, LEVELS, (-1, 1), weights=share)
    return counts / grey.size


def _quantiles(levels: Floats) -> Floats:
    """POINTS quantiles of greys that are spread evenly within their level."""
    edges = np.linspace(-1, 1, LEVELS + 1)
    below = np.concatenate([[0.0], np.cumsum(levels)]) / levels.sum()
    held = np.flatnonzero(levels)
    first, last = held[0], held[-1] + 1
    return np.interp(np.linspace(0, 1, POINTS), below[first : last + 1], edges[first : last + 1])
