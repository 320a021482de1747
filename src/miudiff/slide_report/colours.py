"""Maps as colours: a scale from pale to dark, equal steps of which look about equal, and grey where nothing was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from miudiff.images import Pixels
from miudiff.stains import Floats

# Colours at equal steps. Luminance falls all the way, so a print in black and white and every eye sees the same order.
Colours = tuple[tuple[int, int, int], ...]
BROWN: Colours = (
    (252, 246, 236),
    (237, 209, 165),
    (209, 159, 96),
    (164, 104, 47),
    (106, 58, 20),
    (52, 24, 6),
)
BLUE = ((243, 247, 250), (187, 213, 229), (120, 171, 206), (62, 123, 176), (30, 75, 133), (12, 30, 74))
VIOLET = ((250, 245, 251), (219, 196, 228), (181, 142, 199), (141, 88, 165), (97, 42, 120), (50, 12, 66))

NOTHING = (255, 255, 255)  # glass, or beyond the regions
LOST = (200, 200, 200)  # could not be read


@dataclass(frozen=True)
class Scale:
    """A scale of colours from `low` to `high`; what is beyond has the colour of its end."""

    colours: Colours
    low: float
    high: float

    def table(self, steps: int = 256) -> Pixels:
        """The colours from the lowest to the highest, uint8 [steps, 3]."""
        anchors = np.array(self.colours, np.float64)
        at = np.linspace(0, len(anchors) - 1, steps)
        columns = [np.interp(at, np.arange(len(anchors)), anchors[:, c]) for c in range(3)]
        return np.rint(np.stack(columns, axis=-1)).astype(np.uint8)

    def paint(self, values: Floats, nothing: tuple[int, int, int] = NOTHING) -> Pixels:
        """Values [H, W] as colours, uint8 [H, W, 3]; NaN is `nothing`."""
        span = self.high - self.low
        share = np.clip((np.nan_to_num(values, nan=self.low) - self.low) / span, 0, 1)
        painted = self.table()[np.rint(share * 255).astype(np.int64)]
        painted[np.isnan(values)] = nothing
        return painted


def scale_for(values: Floats, colours: Colours, least: float) -> Scale:
    """A scale from 0 to a round number that 99 % of the values lie below, at least `least`."""
    finite = values[np.isfinite(values)]
    top = float(np.percentile(finite, 99)) if finite.size else 0.0
    return Scale(colours, 0.0, max(_round_up(top), least))


def enlarge(pixels: Pixels, factor: int) -> Pixels:
    """Each pixel as a square of factor x factor."""
    return np.repeat(np.repeat(pixels, factor, axis=0), factor, axis=1)


def _round_up(value: float) -> float:
    """The next of 1, 1.5, 2, 3, 4, 5, 6, 8, 10 times a power of ten."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    steps: NDArray[np.float64] = np.array([1, 1.5, 2, 3, 4, 5, 6, 8, 10])
    return float(steps[np.searchsorted(steps, value / power - 1e-9)] * power)
