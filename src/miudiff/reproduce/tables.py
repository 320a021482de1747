"""From a row's images to a table beside the paper's numbers, and to the pages that show both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from miudiff.checkpoints import read_json, write_json
from miudiff.evaluation.report import Figure, Table, contact_sheet, markdown_table, write_report
from miudiff.evaluation.scores import score_images
from miudiff.evaluation.statistics import interval
from miudiff.images import Pixels, write_bytes, write_image
from miudiff.reproduce.cases import Case
from miudiff.reproduce.published import DATASETS, REPORTED, reported_for

NUCLEUS = 8.0  # um across
# key of `evaluation.panel.MEASURES` -> heading; the paper's own four, then what they leave open.
COLUMNS: Mapping[str, str] = {
    "psnr_real": "PSNR ↑",
    "vif_source": "VIF (H&E) ↑",
    "hist_rgb256": "Hist ↑",
    "iod_sum_1e7": "IOD x1e7 → 0",
    "iod_percent": "IOD, % of real → 0",
    "iod_percent_cells": "IOD in cells, % → 0",
    "vif_real": "VIF (real) ↑",
    "ssim_real_win7": "SSIM ↑",
    "gradient_correlation_source": "gradient r (H&E) ↑",
    "seconds": "s / image",
}


@dataclass(frozen=True)
class Result:
    """One row's images of one case: for each seed the test images, the means of their scores, and seconds for an image."""

    images: tuple[tuple[Pixels, ...], ...]
    scores: tuple[Mapping[str, float], ...]


def score_once(folder: Path, generated: Sequence[Pixels], case: Case, seconds: float) -> dict[str, float]:
    """The mean scores of one seed's images, from `folder`/scores.json or measured now."""
    path = folder / "scores.json"
    if path.exists():
        return {key: float(value) for key, value in read_json(path)["mean"].items()}
    nucleus = NUCLEUS / case.mpp if case.mpp else None
    scores = score_images(generated, case.read("IHC"), case.read("HE"), case.test, nucleus=nucleus)
    found = dict(scores.mean)
    for end in ("", "_cells"):
        if f"iod_real{end}" in found:
            real = found[f"iod_real{end}"]
            found[f"iod_percent{end}"] = (
                100 * (found[f"iod_generated{end}"] - real) / real if real else float("nan")
            )
    found["seconds"] = seconds
    write_json(path, {"mean": found, "images": dict(zip(case.test, scores.rows, strict=True))})
    return found


def write_table(
    out: Path, stem: str, title: str, cases: Mapping[str, tuple[Case, Mapping[str, Result]]], note: str
) -> Path:
    """Write a table for every case as Markdown, JSON and HTML; returns the Markdown file."""
    blocks, tables, figures = [], [], []
    for name, (case, results) in cases.items():
        keys = [key for key in COLUMNS if any(key in scores for r in results.values() for scores in r.scores)]
        header = ["row", *(COLUMNS[key] for key in keys)]
        body = [
            [row, *(_cell([scores.get(key, float("nan")) for scores in result.scores]) for key in keys)]
            for row, result in results.items()
        ]
        about = f"{len(case.test)} test images. " + " ".join(_sentence(n) for n in case.notes)
        blocks.append(f"### {name}\n\n{markdown_table(header, body)}\n\n{about}\n")
        tables.append(Table(name, header, body, about))
        figures.append(_figure(name, case, results))
    paper = _paper_tables(cases)
    blocks += [f"### {t.title}\n\n{markdown_table(t.header, t.rows)}\n\n{t.note}\n" for t in paper]
    path = out / f"{stem}.md"
    write_bytes(path, f"## {title}\n\n{note}\n\n{chr(10).join(blocks)}".encode())
    write_json(
        out / f"{stem}.json",
        {
            "note": note,
            "cases": {
                n: {row: list(r.scores) for row, r in found.items()} for n, (_, found) in cases.items()
            },
        },
    )
    for figure in figures:
        assert not isinstance(figure.image, Path | str)
        write_image(out / f"{stem}-{_plain(figure.title)}.png", figure.image)
    write_report(out / f"{stem}.html", title, note, figures, [*tables, *paper], [])
    return path


def write_figure(
    out: Path, stem: str, cases: Mapping[str, tuple[Case, Mapping[str, Result]]], note: str, most: int = 3
) -> Path:
    """Figure 3: a line for each of the first `most` test images of every case, a column for each system."""
    grid: list[list[Pixels]] = []
    titles: list[str] = []
    columns: list[str] = []
    for name, (case, results) in cases.items():
        he, real = case.read("HE"), case.read("IHC")
        columns = ["H&E", *results, "real IHC"]
        for i in range(min(most, len(case.test))):
            grid.append([he[i], *(result.images[0][i] for result in results.values()), real[i]])
            titles.append(f"{name} {i + 1}")
    sheet = contact_sheet(grid, columns, titles)
    path = out / f"{stem}.png"
    write_image(path, sheet)
    write_report(
        out / f"{stem}.html", "Figure 3", note, [Figure("Visual comparison", "First seed.", sheet)], [], []
    )
    return path


def _figure(name: str, case: Case, results: Mapping[str, Result], most: int = 6) -> Figure:
    rows = [
        case.read("HE")[:most],
        case.read("IHC")[:most],
        *(list(r.images[0][:most]) for r in results.values()),
    ]
    sheet = contact_sheet(rows, [n[:20] for n in case.test[:most]], ["H&E", "real IHC", *results])
    return Figure(name, "First seed; every diffusion row of a tile begins from the same noise.", sheet)


def _paper_tables(cases: Mapping[str, tuple[Case, Mapping[str, Result]]]) -> list[Table]:
    """What the paper reports for the rows that are here, on its dataset of the case's name, else on all three."""
    rows = {row for _, results in cases.values() for row in results}
    meant = [reported_for(name) for name in cases]
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


def _cell(values: Sequence[float]) -> str:
    found = interval(values)
    if found.low is None or found.high is None:
        return f"{found.mean:.3g}"
    return f"{found.mean:.3g} [{found.low:.3g}, {found.high:.3g}]"


def _plain(text: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in text.lower())


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."
