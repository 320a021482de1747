"""Sums into numbers: what each measure is called, what it means, and its value in each region and sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from miudiff.cells import MODERATE, STRONG, WEAK
from miudiff.naming import is_nuclear as is_nuclear
from miudiff.naming import squeeze
from miudiff.slide_report.blocks import POSITIVE, Sums
from miudiff.stains import Floats


@dataclass(frozen=True)
class Measure:
    """What a key is, for the page and the files.

    Attributes:
        title: Heads a column.
        unit: "mm²", "%", "OD" and so on; a share is kept as 0 to 1 and shown in %.
        about: What it is, in a sentence.
        needs: What it needs to be measured.
    """

    title: str
    unit: Literal["mm²", "%", "OD", ""]
    about: str
    needs: Literal["", "scale", "cells"] = ""


MEASURES: Mapping[str, Measure] = {
    "tissue_mm2": Measure("Tissue", "mm²", "Area of the tissue that was measured.", "scale"),
    "positive_area_share": Measure(
        "Positive area",
        "%",
        f"Share of the tissue whose DAB optical density is above {POSITIVE:g}.",
    ),
    "mean_dab_od": Measure("Mean DAB", "OD", "Mean DAB optical density of the tissue."),
    "cells": Measure("Cells", "", "Nuclei and stained cells found.", "cells"),
    "cells_per_mm2": Measure("Cells per mm²", "", "Cells found, over the tissue's area.", "cells"),
    "positive_cell_share": Measure(
        "Positive cells", "%", f"Share of the cells found whose mean DAB density is above {WEAK:g}.", "cells"
    ),
    "h_score": Measure(
        "H-score",
        "",
        f"100 · (share of cells above {WEAK:g} + above {MODERATE:g} + above {STRONG:g}), 0 to 300.",
        "cells",
    ),
}


@dataclass(frozen=True)
class Row:
    """The numbers of one region.

    Attributes:
        name: The region's.
        index: Its number among the regions; None for all together.
        values: By key of `MEASURES`; NaN where it is not defined.
        samples: The same for each sample, the result first: [K] by key.
        agreement: Share of the tissue where all samples agree on positive; NaN for one sample.
    """

    name: str
    index: int | None
    values: Mapping[str, float]
    samples: Mapping[str, Floats]
    agreement: float

    def mean(self, key: str) -> float:
        """Over the samples."""
        return float(self.samples[key].mean())

    def deviation(self, key: str) -> float:
        """Standard deviation over the samples, of n - 1; NaN for one."""
        values = self.samples[key]
        return float(values.std(ddof=1)) if len(values) > 1 else float("nan")


def title_of(key: str, marker: str) -> str:
    """What a measure is called for this marker."""
    return (
        "Ki-67 index" if key == "positive_cell_share" and squeeze(marker) == "ki67" else MEASURES[key].title
    )


def rows_of(sums: Sums, names: Sequence[str], mpp: float | None, cells: bool) -> list[Row]:
    """All that was measured first, then the regions that hold tissue.

    Args:
        mpp: Micrometres of a pixel of the plane.
        cells: Whether cells were measured.
    """
    rows = []
    for index, name in enumerate(["All tissue", *names]):
        if index and not sums.pixels[index]:
            continue
        samples = _values(sums, index, mpp, cells)
        values = {key: float(found[0]) for key, found in samples.items()}
        several = sums.positive.shape[1] > 1 and sums.pixels[index]
        agreement = float(sums.agreed[index] / sums.pixels[index]) if several else float("nan")
        rows.append(Row(name, index - 1 if index else None, values, samples, agreement))
    return rows


def _values(sums: Sums, index: int, mpp: float | None, cells: bool) -> dict[str, Floats]:
    samples = sums.positive.shape[1]
    unknown = np.full(samples, np.nan)
    pixels = float(sums.pixels[index])
    area = np.full(samples, pixels * (mpp / 1000) ** 2) if mpp is not None else unknown
    counted = sums.cells[index].astype(np.float64) if cells else unknown
    above = sums.above[index].astype(np.float64)
    return {
        "tissue_mm2": area,
        "positive_area_share": _ratio(sums.positive[index], pixels),
        "mean_dab_od": _ratio(sums.dab[index], pixels),
        "cells": counted,
        "cells_per_mm2": _ratio(counted, area),
        "positive_cell_share": _ratio(above[:, 0], counted),
        "h_score": 100 * _ratio(above.sum(axis=1), counted),
    }


def _ratio(part: Floats, whole: Floats | float) -> Floats:
    """NaN where there is no whole."""
    part, total = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    return np.divide(part, total, out=np.full(total.shape, np.nan), where=total > 0)
