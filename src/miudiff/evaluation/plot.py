"""The measures that a page draws: five that together say how near a set is to the real stain, on axes that show their goals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from miudiff.evaluation.panel import too_few
from miudiff.evaluation.statistics import Interval
from miudiff.pages.parts import Dot

DRAWN = 5


class Drawn(NamedTuple):
    """How a measure is drawn.

    Attributes:
        key: Of `panel.MEASURES`.
        title: What it says, in words.
        unit: Behind its value.
        end: Of its axis, which begins with 0; both give way to values beyond them.
        target: What a perfect stain has; None where that is infinite.
        meaning: What the target stands for.
    """

    key: str
    title: str
    unit: str = ""
    end: float = 1.0
    target: float | None = 1.0
    meaning: str = "as the real stain"


# The first five that a set has: the same places, the same amounts, the sum, the tissue, the sharpness; then what else there is.
IN_ORDER = (
    Drawn("dab_dice_real", "DAB in the same places (Dice)"),
    Drawn("dab_r_real", "DAB in the same amounts (r)"),
    Drawn("iod_mape", "Error of a field's DAB", " %", 100.0, 0.0),
    Drawn("nuclei_dice_source", "Nuclei of the H&E kept (Dice)", meaning="as the H&E"),
    Drawn("sharpness_real", "Sharpness", " of the real stain's", 2.0),
    Drawn("hist_rgb256", "Colours (histogram correlation)"),
    Drawn("psnr_real", "PSNR", " dB", 30.0, None),
    Drawn("gradient_correlation_source", "Edges of the H&E kept (r)", meaning="as the H&E"),
    Drawn("ssim_real_win7", "Structure (SSIM)"),
    Drawn("vif_real", "Detail (VIF)"),
)


def dots(summary: Mapping[str, Interval]) -> list[Dot]:
    """The first five of `IN_ORDER` that have a finite mean, with their intervals."""
    there = [
        drawn
        for drawn in IN_ORDER
        if drawn.key in summary
        and math.isfinite(summary[drawn.key].mean)
        and not too_few(drawn.key, summary[drawn.key].n)
    ]
    return [_dot(drawn, summary[drawn.key]) for drawn in there[:DRAWN]]


def _dot(drawn: Drawn, found: Interval) -> Dot:
    low, high = found.low, found.high
    between = f"{low:.3g} to {high:.3g}" if low is not None and high is not None else ""
    values = [found.mean, *(value for value in (low, high) if value is not None)]
    start, end = _round_down(min(0.0, *values)), max(drawn.end, -_round_down(-max(values)))
    value = f"{found.mean:.3g}{drawn.unit}"
    return Dot(drawn.title, value, between, found.mean, low, high, start, end, drawn.target, drawn.meaning)


def _round_down(value: float) -> float:
    """The next number of one digit that is not above the value."""
    if value == 0:
        return 0.0
    unit = 10.0 ** math.floor(math.log10(abs(value)))
    return math.floor(value / unit) * unit
