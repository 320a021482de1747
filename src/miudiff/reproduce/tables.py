"""From a row's images to a table beside the paper's numbers, and to the pages that show both."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from miudiff.checkpoints import write_json
from miudiff.evaluation.panel import MEASURES
from miudiff.evaluation.publish import plain
from miudiff.evaluation.statistics import Interval, interval
from miudiff.evaluation.truth import DARKNESS, SPANS
from miudiff.images import Pixels, write_bytes, write_image
from miudiff.naming import is_nuclear
from miudiff.pages.page import write_page
from miudiff.pages.parts import MISSING, Cell, Figure, Folded, Notes, Part, Rows, Table, markdown_table
from miudiff.pages.pictures import contact_sheet
from miudiff.reproduce.cases import Case
from miudiff.reproduce.published import DATASETS, REPORTED, reported_for

SHOWN = 6  # test images on a table's sheet
BASELINE = f"{DARKNESS.strip('_')} of the H&E"  # no method: what stain truth is there without one
POSITIVE = "ki67_index_mae"  # of cells, so for nuclear markers alone
NUCLEI = "nuclei_dice_source"
# key of `evaluation.panel.MEASURES` -> heading; the paper's own four, then what they leave open.
COLUMNS: Mapping[str, str] = {
    "psnr_real": "PSNR ↑",
    "vif_source": "VIF (H&E) ↑",
    "hist_rgb256": "Hist ↑",
    "iod_sum_1e7": "IOD x1e7 → 0",
    "dab_dice_real": "DAB Dice ↑",
    "dab_iou_real": "DAB IoU ↑",
    "dab_r_real": "DAB r ↑",
    **{f"dab_r_{span}um_real": f"at {span} µm ↑" for span in SPANS},
    "iod_field_error": "IOD of each field, % off ↓",
    POSITIVE: "positive share off by ↓",
    NUCLEI: "nuclei Dice (H&E) ↑",
    "gradient_r_2um_source": "gradient r at 2 µm (H&E) ↑",
    "sharpness_real": "sharpness → 1",
    "iod_percent": "IOD, % of real → 0",
    "iod_percent_cells": "IOD in cells, % → 0",
    "vif_real": "VIF (real) ↑",
    "ssim_real_win7": "SSIM ↑",
    "seconds": "s / image",
}
# What a page shows open, with `POSITIVE` in the place of `NUCLEI` where that is known; Markdown has all columns.
FOREMOST = (
    "psnr_real",
    "vif_source",
    "hist_rgb256",
    "iod_field_error",
    "dab_dice_real",
    "dab_r_real",
    NUCLEI,
    "gradient_r_2um_source",
    "sharpness_real",
)
SAME_NOISE = "First seed; every diffusion row of a tile begins from the same noise."
BEST = "Bold is the best system of a column (the H&E's darkness is none), and what its interval over seeds does not tell from the best"


@dataclass(frozen=True)
class Result:
    """One row of one case: the first `SHOWN` images of the first seed, and for each seed the means of its scores."""

    images: tuple[Pixels, ...]
    scores: tuple[Mapping[str, float], ...]


@dataclass(frozen=True)
class Finished:
    """A case with its rows' results, and what else a reader of them must know, a sentence each."""

    case: Case
    results: Mapping[str, Result]
    notes: tuple[str, ...] = ()


def write_table(out: Path, stem: str, title: str, found: Sequence[Finished], note: str) -> Path:
    """Write a table for every case as Markdown, JSON and HTML; returns the Markdown file."""
    paper = _paper_tables(found)
    tables = [_table(each, _keys(each)) for each in found]
    path = out / f"{stem}.md"
    blocks = [f"### {t.title}\n\n{markdown_table(t.header, t.rows)}\n{t.note}\n" for t in (*tables, *paper)]
    write_bytes(path, "\n".join([f"## {title}\n\n{note}\n", *blocks]).encode())
    write_json(
        out / f"{stem}.json",
        {
            "note": note,
            "about": {each.case.name: [*each.case.notes, *each.notes] for each in found},
            "cases": {
                each.case.name: {row: [plain(s) for s in r.scores] for row, r in each.results.items()}
                for each in found
            },
        },
    )
    parts: list[Part] = []
    more: list[Part] = []
    sheets: list[Part] = []
    for each in found:
        sheet = _sheet(each)
        write_image(out / f"{stem}-{each.case.name}.png", sheet)
        first, others = _on_page(each)
        parts += [*first, _first_image(each)]
        more += others
        sheets.append(Figure(each.case.name, SAME_NOISE, sheet))
    folded = [*more, Folded("More test images", sheets), Folded("What the paper reports", paper)]
    write_page(out / f"{stem}.html", title, note, [*parts, *folded])
    return path


def write_figure(out: Path, stem: str, found: Sequence[Finished], note: str, most: int = 3) -> Path:
    """Figure 3: a line for each of the first `most` test images of every case, a column for each system.

    A system that a case does not have leaves its place white.
    """
    systems = list(dict.fromkeys(row for each in found for row in each.results))
    grid: list[list[Pixels]] = []
    titles: list[str] = []
    for each in found:
        he, real = each.case.read("HE", most), each.case.read("IHC", most)
        for i in range(len(he)):
            made = {row: result.images[i] for row, result in each.results.items()}
            grid.append([he[i], *(made.get(row, np.full_like(he[i], 255)) for row in systems), real[i]])
            titles.append(f"{each.case.name} {i + 1}")
    sheet = contact_sheet(grid, ["H&E", *systems, "real IHC"], titles)
    path = out / f"{stem}.png"
    write_image(path, sheet)
    about = [f"{each.case.name}: {_sentence(n)}" for each in found for n in (*each.case.notes, *each.notes)]
    parts: list[Part] = [Figure("Visual comparison", "First seed.", sheet), Notes("Notes", about)]
    write_page(out / f"{stem}.html", "Figure 3", note, parts)
    return path


def _keys(found: Finished) -> list[str]:
    """The columns that a case has."""
    results = found.results.values()
    nuclear = found.case.marker is not None and is_nuclear(found.case.marker)
    return [
        key
        for key in COLUMNS
        if (nuclear or key != POSITIVE) and any(key in each for result in results for each in result.scores)
    ]


def _on_page(found: Finished) -> tuple[list[Part], list[Part]]:
    """A case's foremost columns, and the others folded; each none or one."""
    keys = _keys(found)
    foremost = {POSITIVE if key == NUCLEI and POSITIVE in keys else key for key in FOREMOST}
    first = [key for key in keys if key in foremost]
    others = [key for key in keys if key not in foremost]
    tables: list[Part] = [_table(found, first)] if first else []
    folded: list[Part] = []
    if others:
        name = f"{found.case.name}: {'more ' if first else ''}measures"
        folded.append(Folded(name, [replace(_table(found, others), title=name, note="")]))
    return tables, folded


def _table(found: Finished, keys: Sequence[str]) -> Table:
    results = found.results
    body: list[list[object]] = [[row] for row in results]
    for key in keys:
        column = [interval([each.get(key, math.nan) for each in r.scores]) for r in results.values()]
        for line, each, good in zip(body, column, best(key, column), strict=True):
            line.append(_cell(each, good))
    if baseline := _baseline(results):
        known = [interval([baseline.get(key, math.nan)]) for key in keys]
        body.insert(0, [BASELINE, *(_cell(each, False) for each in known)])
    sentences = [f"{len(found.case.test)} test images", *found.case.notes, *found.notes, BEST]
    about = " ".join(_sentence(each) for each in sentences)
    return Table(found.case.name, ["row", *(COLUMNS[key] for key in keys)], body, about)


def _baseline(results: Mapping[str, Result]) -> dict[str, float]:
    """What the H&E's darkness alone scores; every row's scores hold it, for it hangs on no row."""
    scores = next((each for result in results.values() for each in result.scores), {})
    return {key.removeprefix(DARKNESS): scores[key] for key in scores if key.startswith(DARKNESS)}


def best(key: str, column: Sequence[Interval]) -> list[bool]:
    """Which rows of a column are the best: the first of them, and those whose interval reaches its own.

    Without intervals (one seed) only what equals the first one counts. A column without a better side, or with one known row, has no best.
    """
    side = (
        "near 0" if key.startswith("iod_percent") else MEASURES[key].better if key in MEASURES else "context"
    )
    costs: dict[str, Callable[[float], float]] = {
        "higher": lambda v: -v,
        "lower": lambda v: v,
        "near 0": abs,
        "near 1": lambda v: abs(v - 1),
    }
    known = [each for each in column if math.isfinite(each.mean)]
    if side not in costs or len(known) < 2:
        return [False] * len(column)
    cost = costs[side]
    first = min(known, key=lambda each: cost(each.mean))
    low, high = _ends(first)
    return [_ends(each)[0] <= high and low <= _ends(each)[1] for each in column]


def _ends(found: Interval) -> tuple[float, float]:
    if found.low is None or found.high is None:
        return found.mean, found.mean
    return found.low, found.high


def _sheet(found: Finished) -> Pixels:
    case = found.case
    rows = [
        case.read("HE", SHOWN),
        case.read("IHC", SHOWN),
        *(list(r.images) for r in found.results.values()),
    ]
    return contact_sheet(rows, [n[:20] for n in case.test[:SHOWN]], ["H&E", "real IHC", *found.results])


def _first_image(found: Finished) -> Rows:
    case = found.case
    images = {"H&E": case.read("HE", 1)[0], "real IHC": case.read("IHC", 1)[0]}
    images |= {row: result.images[0] for row, result in found.results.items()}
    figures = [Figure(name, "", image) for name, image in images.items()]
    return Rows(f"{case.name}, {case.test[0]}", [("", figures)], SAME_NOISE, photo=True, curtain=False)


def _paper_tables(found: Sequence[Finished]) -> list[Table]:
    """What the paper reports for the rows that are here, on its dataset of the case's name, else on all three."""
    rows = {row for each in found for row in each.results}
    meant = [reported_for(f"{each.case.name} {each.case.marker or ''}") for each in found]
    shown = [d for d in DATASETS if d in meant] or list(DATASETS)
    header = ["row", "PSNR ↑", "VIF ↑", "Hist ↑", "IOD x1e7"]
    note = (
        "The paper's own test parts, networks and measures; to be read for its trends, not cell against cell."
    )
    return [
        Table(
            f"The paper reports, {dataset}",
            header,
            [
                [row, *("" if v is None else f"{v:.3f}" for v in values)]
                for row, values in REPORTED[dataset].items()
                if row in rows or row == "MIU-Diff"
            ],
            note,
        )
        for dataset in shown
    ]


def _cell(found: Interval, is_best: bool) -> Cell:
    """Mean and interval over seeds; seeds whose value is undefined or infinite are left out and counted."""
    if not found.n:
        return Cell(MISSING, True)
    between = "" if found.low is None or found.high is None else f"[{found.low:.3g}, {found.high:.3g}]"
    counted = f"({found.n} of {found.n + found.left_out} seeds)" if found.left_out else ""
    return Cell(f"{found.mean:.3g}", True, is_best, f"{between} {counted}".strip())


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."
