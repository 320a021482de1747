"""The measures that a page draws: five that together say how near a set is to the real stain, on axes that show their goals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from miudiff.evaluation.panel import FOREMOST
from miudiff.evaluation.statistics import Interval
from miudiff.evaluation.truth import DARKNESS
from miudiff.pages.parts import Dot


class Axis(NamedTuple):
    """How a measure is axis.

    Attributes:
        title: What it says, in words.
        unit: Behind its value.
        end: Of its axis, which begins with 0; both give way to values beyond them.
        target: What a perfect stain has; None where that is infinite.
        meaning: What the target stands for.
    """

    title: str
    unit: str = ""
    end: float = 1.0
    target: float | None = 1.0
    meaning: str = "as the real stain"


# What a hollow mark stands for.
BESIDE = "The darkness of the H&E alone, taken for DAB: what a method must beat"

# By key of `panel.MEASURES`: the foremost, then what stands in for those that a set does not have.
AXES = {
    "dab_dice_real": Axis("DAB in the same places (Dice)"),
    "dab_r_real": Axis("DAB in the same amounts (r)"),
    "iod_field_error": Axis("Error of a field's DAB", " %", 100.0, 0.0),
    "nuclei_dice_source": Axis("Nuclei of the H&E kept (Dice)", meaning="as the H&E"),
    "sharpness_real": Axis("Sharpness, of the real stain's", "", 2.0),
    "hist_rgb256": Axis("Colours (histogram correlation)"),
    "psnr_real": Axis("PSNR", " dB", 30.0, None),
    "gradient_correlation_source": Axis("Edges of the H&E kept (r)", meaning="as the H&E"),
    "ssim_real_win7": Axis("Structure (SSIM)"),
    "vif_real": Axis("Detail (VIF)"),
}


def dots(summary: Mapping[str, Interval]) -> list[Dot]:
    """As many measures of `AXES` as are foremost, the first that have a finite mean, with their intervals.

    Beside those of DAB stands what the H&E's darkness scores, where it is known.
    """
    there = [key for key in AXES if key in summary and math.isfinite(summary[key].mean)]
    return [_dot(AXES[key], summary[key], summary.get(f"{DARKNESS}{key}")) for key in there[: len(FOREMOST)]]


def _dot(axis: Axis, found: Interval, darkness: Interval | None) -> Dot:
    low, high = found.low, found.high
    between = f"{low:.3g} to {high:.3g}" if low is not None and high is not None else ""
    beside = darkness.mean if darkness is not None and math.isfinite(darkness.mean) else None
    values = [found.mean, *(value for value in (low, high, beside) if value is not None)]
    start, end = _round_down(min(0.0, *values)), max(axis.end, -_round_down(-max(values)))
    value = f"{found.mean:.3g}{axis.unit}"
    return Dot(
        axis.title, value, between, found.mean, low, high, start, end, axis.target, axis.meaning, beside
    )


def _round_down(value: float) -> float:
    """The next number of one digit that is not above the value."""
    if value == 0:
        return 0.0
    unit = 10.0 ** math.floor(math.log10(abs(value)))
    return math.floor(value / unit) * unit
