"""An evaluation as files: a row for each image as CSV, everything as JSON, tables as Markdown and HTML.

JSON knows no infinity and no NaN: both are null there. `left_out` beside a mean says how many images had
neither a finite value nor a part in it; a mean that is null with n = 0 is infinite or undefined in every image.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from miudiff import __version__
from miudiff.checkpoints import write_json
from miudiff.evaluation.evaluate import Evaluation
from miudiff.evaluation.folders import Case, count_kinds
from miudiff.evaluation.panel import HEADLINE, HEADLINES, MEASURES, too_few
from miudiff.evaluation.report import BANNER, Figure, Table, contact_sheet, markdown_table, write_report
from miudiff.evaluation.scores import Scores
from miudiff.evaluation.stain import dab_image
from miudiff.images import read_image, write_text

HEADER = ("key", "mean", "95 % interval", "n", "better", "what it is")
SHOWN = 4  # worst and best cases on the page
CSV, JSON, MARKDOWN, PAGE = "scores.csv", "scores.json", "scores.md", "report.html"


def publish(
    evaluation: Evaluation,
    places: Mapping[str, Path | None],
    folder: Path | None,
    json: Path | None,
    say: Callable[[str], None],
) -> None:
    """Write and say what came out.

    Where nothing was scored `folder` is left alone, and `json` holds the problems with `mean` null, so that no
    file of an earlier run passes for this one's.

    Args:
        places: The folders that were scored, for the JSON.
    """
    about = {role: str(place) if place is not None else None for role, place in places.items()}
    if json is not None:
        write_json(json, to_json(evaluation, about))
    if evaluation.scores is None:
        return
    table = markdown_table(HEADER[:5], [row[:5] for row in table_rows(evaluation.scores, short=True)])
    for line in (*table.splitlines(), _lead(evaluation, evaluation.scores), *evaluation.notes):
        say(line)
    written = write_results(folder, evaluation, about) if folder is not None else []
    for path in (*written, *([json] if json is not None else [])):
        say(str(path))


def to_json(evaluation: Evaluation, about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, as values that JSON holds."""
    scores = evaluation.scores
    content: dict[str, Any] = {
        "miudiff": __version__,
        "notice": BANNER,
        **about,
        "counts": {
            **evaluation.folders.images,
            "scored": len(scores.names) if scores else 0,
            "problems": len(evaluation.problems),
        },
        "problems": [
            {"name": each.name, "kind": each.kind, "message": each.message} for each in evaluation.problems
        ],
        "ignored": list(evaluation.folders.ignored),
        "notes": [*evaluation.warnings, *evaluation.notes],
        "mean": None,
    }
    if scores is None:
        return content
    return content | {
        "mean": plain(scores.mean),
        "interval": {
            key: {"low": found.low, "high": found.high, "n": found.n, "left_out": found.left_out}
            for key, found in scores.summary.items()
        },
        "images": [{"name": name, **plain(row)} for name, row in zip(scores.names, scores.rows, strict=True)],
        "measures": {
            key: {"about": MEASURES[key].about, "better": MEASURES[key].better} for key in scores.summary
        },
    }


def write_results(folder: Path, evaluation: Evaluation, about: Mapping[str, Any]) -> list[Path]:
    """Write CSV, JSON, Markdown and the HTML page to `folder`; returns their paths.

    Raises:
        ValueError: The evaluation scored nothing.
        DataError: A file cannot be written.
    """
    scores = evaluation.scores
    if scores is None:
        raise ValueError("nothing was scored")
    first, rows = table_rows(scores, short=True), table_rows(scores)
    lead = _lead(evaluation, scores)
    notes = [*evaluation.warnings, *evaluation.notes, *_left_over(evaluation)]
    write_text(folder / CSV, _csv(scores))
    write_json(folder / JSON, to_json(evaluation, about))
    parts = [
        "# Scores",
        f"{BANNER}.",
        lead,
        markdown_table(HEADER, first),
        "## Every key",
        markdown_table(HEADER, rows),
        "\n".join(f"* {' '.join(note.split())}" for note in notes),
    ]
    write_text(folder / MARKDOWN, "\n\n".join(part.strip() for part in parts) + "\n")
    write_report(
        folder / PAGE,
        "Virtual stains, measured",
        lead,
        _figures(evaluation, scores),
        [
            Table("Scores", HEADER, first),
            Table("Every key", HEADER, rows, "A row for each image is in scores.csv."),
        ],
        notes,
    )
    return [folder / name for name in (CSV, JSON, MARKDOWN, PAGE)]


def complaints(evaluation: Evaluation) -> list[str]:
    """What is wrong, a line for each file, and what was therefore done; what speaks against the comparison first."""
    problems, ready = evaluation.problems, len(evaluation.cases)
    warnings = [f"warning: {line}" for line in evaluation.warnings]
    if not problems:
        return warnings
    counted = f"{len(problems)} problems ({count_kinds(problems)})"
    rest = f"; --skip-bad scores the other {ready}" if ready else ""
    done = f"only the other {ready} images were scored" if evaluation.scores else f"nothing was scored{rest}"
    return [*warnings, *(problem.message for problem in problems), f"{counted}: {done}"]


def table_rows(scores: Scores, short: bool = False) -> list[list[object]]:
    """A row of `HEADER` for each key; `short`, for those of `HEADLINES`, in their order, and distances alone."""
    shown = scores.summary
    if short:
        distances = [key for key in shown if key.startswith(("fid_", "kid_"))]
        heads = [key for key in HEADLINES if key in shown and not too_few(key, shown[key].n)]
        shown = {key: shown[key] for key in (*heads, *distances)}
    return [
        [
            key,
            found.mean,
            "" if found.low is None or found.high is None else f"{found.low:.4g} to {found.high:.4g}",
            f"{found.n}" + (f" ({found.left_out} left out)" if found.left_out else ""),
            MEASURES[key].better,
            MEASURES[key].about,
        ]
        for key, found in shown.items()
    ]


def _csv(scores: Scores) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["name", *scores.rows[0]])
    for name, row in zip(scores.names, scores.rows, strict=True):
        writer.writerow([name, *row.values()])
    return buffer.getvalue()


def plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """As JSON holds them, which knows no infinity and no NaN."""
    return {key: value if math.isfinite(value) else None for key, value in values.items()}


def _lead(evaluation: Evaluation, scores: Scores) -> str:
    scored = f"{len(scores.names)} images scored"
    if not evaluation.problems:
        return f"{scored}, all that the folders hold."
    lost = len({problem.name for problem in evaluation.problems})
    return f"{scored}; {lost} names NOT scored ({count_kinds(evaluation.problems)}): the means are of a part of the set."


def _left_over(evaluation: Evaluation) -> list[str]:
    return [f"Not scored: {problem.message}" for problem in evaluation.problems]


def _figures(evaluation: Evaluation, scores: Scores) -> list[Figure]:
    """The worst and the best cases by the headline measure, each image in one of the two at most."""
    ranked = sorted(
        zip(evaluation.cases, scores.rows, strict=True), key=lambda pair: (pair[1][HEADLINE], pair[0].name)
    )
    worst = ranked[: min(SHOWN, (len(ranked) + 1) // 2)]
    best = ranked[len(worst) :][-SHOWN:][::-1]
    return [
        _sheet(title, [case for case, _ in pairs], [row[HEADLINE] for _, row in pairs])
        for title, pairs in (("Worst cases", worst), ("Best cases", best))
        if pairs
    ]


def _sheet(title: str, cases: Sequence[Case], values: Sequence[float]) -> Figure:
    with_he = cases[0].source is not None
    columns = [*(["H&E"] if with_he else []), "generated", "real", "DAB, generated", "DAB, real"]
    rows = []
    for case in cases:
        he = [read_image(case.source)] if case.source is not None else []
        generated, real = read_image(case.generated), read_image(case.real)
        rows.append([*he, generated, real, dab_image(generated), dab_image(real)])
    listed = ", ".join(f"{case.name} {value:.3g}" for case, value in zip(cases, values, strict=True))
    caption = f"By {HEADLINE}, from above: {listed}."
    names = [case.name.encode("ascii", "replace").decode() for case in cases]
    return Figure(title, caption, contact_sheet(rows, columns, names, 224))
