"""Tone matching: one fixed curve from the grey of H&E to the luma of a marker's IHC (an extension of the paper).

Removing colour leaves luma, and luma means other things in the two stains: an H&E field is darker all over, so the reverse process,
which keeps the coarse luma that it begins from, stains too much or too little. The curve maps the quantiles of an unpaired H&E
population to those of an IHC population. The grey can be H&E's red in place of its luma: hematoxylin absorbs red and eosin hardly
does, so collagen and red cells turn as pale as they are in an IHC section. It is the same for every tile, so a blank tile stays blank and a tile's result still
depends on that tile alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from miudiff.config import Strict
from miudiff.images import LUMA, Pixels, to_gray
from miudiff.stains import Floats

POINTS = 33
Channel = Literal["luma", "red"]


class ToneCurve(Strict):
    """Quantiles of grey in [-1, 1], increasing, at evenly spaced probabilities."""

    channel: Channel = Field("luma", description="What of the H&E is its grey: its luma, or its red.")
    source: tuple[float, ...] = Field(min_length=2, description="Of the H&E population.")
    target: tuple[float, ...] = Field(min_length=2, description="Of the marker's IHC population.")

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
        mapped = target[right - 1] + share * (target[right] - target[right - 1])
        return (mapped + (gray - inside)).clamp(-1, 1)


def measure_tone(he: Iterable[Pixels], ihc: Iterable[Pixels], channel: Channel = "luma") -> ToneCurve:
    """The curve between two unpaired populations; each image counts alike, whatever its size."""
    weights = np.array(LUMA), np.array(LUMA if channel == "luma" else (1.0, 0.0, 0.0))
    target, source = (
        np.mean([_quantiles(image, weight) for image in images], axis=0)
        for images, weight in zip((ihc, he), weights, strict=True)
    )
    source = np.maximum.accumulate(source) + 1e-5 * np.arange(POINTS)  # equal quantiles would make a step
    return ToneCurve(
        channel=channel,
        source=tuple(source.round(6).tolist()),
        target=tuple(np.maximum.accumulate(target).round(6).tolist()),
    )


def _quantiles(image: Pixels, weights: Floats) -> Floats:
    return np.quantile(image.astype(np.float64) @ weights / 127.5 - 1, np.linspace(0, 1, POINTS))
