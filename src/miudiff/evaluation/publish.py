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
from miudiff.evaluation.panel import HEADLINE, HEADLINES, MEASURES, STAND_IN, too_few
from miudiff.evaluation.plot import AXES, BESIDE, dots
from miudiff.evaluation.scores import Scores
from miudiff.evaluation.stain import dab_image
from miudiff.images import Pixels, read_image, resize, write_text
from miudiff.pages.page import BANNER, write_page
from miudiff.pages.parts import Figure, Folded, Notes, Plot, Rows, Table, markdown_table
from miudiff.pages.pictures import contact_sheet

HEADER = ("key", "mean", "95 % interval", "n", "better", "what it is")
SHOWN = 4  # worst and best cases on the page
LONGEST = 512  # pixels of a picture there
UNCALIBRATED = "DAB intensity is not calibrated: amounts compare images of one scanner and one stain."
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
        "notice": f"{BANNER} {UNCALIBRATED}",
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
    lead = f"{_compared(about)}{_lead(evaluation, scores)}"
    key = _ranked_by(scores)
    notes = [*evaluation.warnings, *evaluation.notes, *_left_over(evaluation), *_unranked(scores, key)]
    write_text(folder / CSV, _csv(scores))
    write_json(folder / JSON, to_json(evaluation, about))
    parts = [
        "# Scores",
        f"{BANNER} {UNCALIBRATED}",
        lead,
        markdown_table(HEADER, first),
        "## Every key",
        markdown_table(HEADER, rows),
        "\n".join(f"* {' '.join(note.split())}" for note in notes),
    ]
    write_text(folder / MARKDOWN, "\n\n".join(part.strip() for part in parts) + "\n")
    cases = _cases(evaluation, scores, key)
    plot = Plot(
        "How near to the real stain",
        f"Mean and 95 % interval over images. {UNCALIBRATED}",
        dots(scores.summary),
        BESIDE,
    )
    tables = [
        Table("Scores", HEADER, first),
        Table("Every key", HEADER, rows, "A row for each image is in scores.csv."),
    ]
    folded = [
        *(_more(title, pairs, key) for title, pairs in cases.items()),
        *(Folded(table.title, [table]) for table in tables),
        Folded("Notes", [Notes("Notes", notes)]),
    ]
    shown = [_rows(f"{title} case", pairs[:1], key) for title, pairs in cases.items()]
    write_page(folder / PAGE, "Virtual stains, measured", lead, [*shown, plot, *folded])
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


def _compared(about: Mapping[str, Any]) -> str:
    """What is beside what, where the folders are known."""
    generated, reference = about.get("generated"), about.get("reference")
    return f"{generated} against {reference}: " if generated and reference else ""


def _left_over(evaluation: Evaluation) -> list[str]:
    return [f"Not scored: {problem.message}" for problem in evaluation.problems]


Scored = tuple[Case, float]


def _ranked_by(scores: Scores) -> str:
    """The key that ranks the cases: `HEADLINE`, unless it is undefined in every image."""
    return STAND_IN if all(math.isnan(row[HEADLINE]) for row in scores.rows) else HEADLINE


def _unranked(scores: Scores, key: str) -> list[str]:
    lost = sum(math.isnan(row[key]) for row in scores.rows)
    return [f"{lost} images are in no ranking: {key} is undefined in them."] if lost else []


def _cases(evaluation: Evaluation, scores: Scores, key: str) -> dict[str, list[Scored]]:
    """The worst and the best cases by `key`, each image in one of the two at most; in neither where it is undefined."""
    values = [row[key] for row in scores.rows]
    known = [pair for pair in zip(evaluation.cases, values, strict=True) if not math.isnan(pair[1])]
    ranked = sorted(known, key=lambda scored: (scored[1], scored[0].name))
    worst = ranked[: min(SHOWN, (len(ranked) + 1) // 2)]
    best = ranked[len(worst) :][-SHOWN:][::-1]
    return {title: found for title, found in (("Worst", worst), ("Best", best)) if found}


def _rows(title: str, pairs: Sequence[Scored], key: str) -> Rows:
    measure = AXES[key].title
    rows = []
    for case, value in pairs:
        found = {"H&E": case.source, "Generated": case.generated, "Real": case.real}
        pictures = {name: _small(read_image(path)) for name, path in found.items() if path is not None}
        rows.append(
            (f"{case.name}: {measure} {value:.3g}", [Figure(name, "", p) for name, p in pictures.items()])
        )
    return Rows(title, rows, f"By {measure}. Drag a curtain: each picture uncovers the next.", photo=True)


def _more(title: str, pairs: Sequence[Scored], key: str) -> Folded:
    """The cases that follow the first one, and the DAB of all of them."""
    images = [
        [dab_image(_small(read_image(path))) for path in (case.generated, case.real)] for case, _ in pairs
    ]
    names = [case.name.encode("ascii", "replace").decode() for case, _ in pairs]
    sheet = contact_sheet(images, ["generated", "real"], names, 224)
    more = [_rows(f"More {title.lower()} cases", pairs[1:], key)] if pairs[1:] else []
    return Folded(
        f"{title} cases: more of them, and their DAB",
        [*more, Figure("DAB", "Density by colour deconvolution; darker is more.", sheet)],
    )


def _small(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    scale = min(1.0, LONGEST / max(height, width))
    return (
        pixels if scale == 1 else resize(pixels, max(round(height * scale), 1), max(round(width * scale), 1))
    )
