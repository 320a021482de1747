"""The whole comparison: prepare, train, translate, score, write."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miudiff.checkpoints import read_json, write_json
from miudiff.device import Placement, Precision, place
from miudiff.errors import ConfigError
from miudiff.images import Pixels, read_image, to_tensor, to_uint8, write_image
from miudiff.methods.generator import GeneratorModel, load_generator_model
from miudiff.methods.model import SHIPPED, Model
from miudiff.methods.systems import build
from miudiff.noise import NoiseKey
from miudiff.reproduce.budget import Budget, Task, load_budget
from miudiff.reproduce.cases import TWIN, Case, Source, SplitName, parse_source, prepare
from miudiff.reproduce.plan import estimate
from miudiff.reproduce.rows import Row, chosen, rows_of
from miudiff.reproduce.tables import Result, score_once, write_figure, write_table
from miudiff.reproduce.training import GENERATORS, diffusion_model, run_config, run_folder, trained
from miudiff.runs import RunConfig, run

BATCH = 8  # test images that are translated at once


@dataclass(frozen=True)
class Options:
    """What the command was asked for.

    Attributes:
        data: `twin` and NAME=ROOT words; `mpp`, NAME=UM_PER_PIXEL words; `models`, NAME=MODEL words.
        base: The preset that the ablations change.
        seeds: In place of the budget's.
        only: The rows to make, by name; none means all.
        init: A model folder whose U-Net the score models begin with.
    """

    table: str
    data: tuple[str, ...]
    out: Path
    budget: str = "smoke"
    base: str = "tuned"
    seeds: int | None = None
    mpp: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    init: Path | None = None
    split: SplitName = "auto"
    split_seed: int = 0
    only: tuple[str, ...] = ()
    device: str = "auto"
    precision: Precision = "auto"


def reproduce(options: Options, plan: bool, say: Callable[[str], None]) -> Path | None:
    """Make a table or the figure; with `plan` only say what that takes. Returns the file made.

    Raises:
        ConfigError, DataError, CheckpointError, DeviceError: As their messages say.
    """
    sources = [parse_source(word, options.mpp) for word in options.data]
    budget = load_budget(options.budget)
    if options.seeds is not None:
        if options.seeds < 1:
            raise ConfigError(f"seeds: found {options.seeds}, expected at least 1")
        budget = budget.model_copy(update={"seeds": options.seeds})
    placement = place(options.device, options.precision)
    rows = chosen(rows_of(options.table, options.base, budget.reverse_steps), options.only)
    cases = [_prepared(source, options, budget, say) for source in sources]
    todo = {case.name: _training(case, rows, budget, options) for case in cases}
    if plan:
        for line in estimate(
            cases, rows, todo, {c.name: _given(c, options) for c in cases}, budget, placement
        ):
            say(line)
        return None
    found: dict[str, tuple[Case, Mapping[str, Result]]] = {}
    for case in cases:
        for config in todo[case.name]:
            if not trained(config):
                say(f"{case.name}: training {config.task}, {config.steps} steps, in {config.out}")
                run(config, say)
        found[case.name] = (case, _results(case, rows, budget, options, placement, say))
    note = f"Budget {budget.description}; {budget.seeds} seed{'s' if budget.seeds > 1 else ''}: mean [95 % bootstrap interval over seeds]. Ablations change the preset '{options.base}'."
    path = (
        write_figure(options.out, "figure3", found, note)
        if options.table == "figure3"
        else write_table(options.out, f"{options.table}-{options.base}", options.table.title(), found, note)
    )
    if path.suffix == ".md":
        say(path.read_text(encoding="utf-8"))
    say(str(path))
    return path


def _prepared(source: Source, options: Options, budget: Budget, say: Callable[[str], None]) -> Case:
    return prepare(source, options.out, budget.side, budget.images, options.split, options.split_seed, say)


def _training(case: Case, rows: Sequence[Row], budget: Budget, options: Options) -> list[RunConfig]:
    """The runs that a case's rows need, in the order of training; what a given model has is not trained again."""
    given = _given(case, options)
    tasks: list[Task] = []
    for row in rows:
        tasks += [t for t in row.needs if t not in tasks]
    if given is not None:
        tasks = [t for t in tasks if t not in ("score", "mi")]
    if not case.paired:
        tasks = [t for t in tasks if t != "asp"]
    return [
        run_config(case, task, budget, seed, options.device, options.precision, options.init)
        for task in tasks
        for seed in (range(budget.seeds) if task in GENERATORS else (0,))
    ]


def _given(case: Case, options: Options) -> str | None:
    """The model that a case's diffusion systems are to use, if it need not be trained: the twin set's ships."""
    named = dict(word.split("=", 1) for word in options.models if "=" in word)
    return named.get(case.name, SHIPPED if case.name == TWIN else None)


def _results(
    case: Case,
    rows: Sequence[Row],
    budget: Budget,
    options: Options,
    placement: Placement,
    say: Callable[[str], None],
) -> dict[str, Result]:
    model: Model | None = None
    results: dict[str, Result] = {}
    for row in rows:
        if row.method == "asp" and not case.paired:
            say(
                f"{case.name}: no row {row.name}, which trains on pairs: not every training image has its partner"
            )
            continue
        images: list[tuple[Pixels, ...]] = []
        scores: list[Mapping[str, float]] = []
        for seed in range(budget.seeds):
            weights: Model | GeneratorModel
            if row.method in GENERATORS:
                weights = load_generator_model(run_folder(case, row.needs[0], seed) / "weights", placement)
            else:
                model = model or _diffusion_model(case, rows, options, placement)
                weights = model
            folder = case.folder / "results" / row.slug / f"seed{seed}"
            tiles, seconds = _translated(case, row, weights, seed, folder, placement, say)
            images.append(tuple(tiles))
            scores.append(score_once(folder, tiles, case, seconds))
        results[row.name] = Result(tuple(images), tuple(scores))
    return results


def _diffusion_model(case: Case, rows: Sequence[Row], options: Options, placement: Placement) -> Model:
    needs = {task for row in rows for task in row.needs}
    return diffusion_model(case, "mi" in needs, "classifier" in needs, _given(case, options), placement)


def _translated(
    case: Case,
    row: Row,
    model: Model | GeneratorModel,
    seed: int,
    folder: Path,
    placement: Placement,
    say: Callable[[str], None],
) -> tuple[list[Pixels], float]:
    """One row's test images for one seed, from the folder or made now, and the seconds that one took."""
    files = [folder / f"{name}.png" for name in case.test]
    settings: dict[str, Any] = {
        "model": model.identity,
        "method": row.method,
        "seed": seed,
        "precision": placement.precision,
        "config": row.config.model_dump(mode="json") if row.config else {},
    }
    record = folder / "settings.json"
    before = read_json(record) if record.exists() else {}
    if before.get("settings") != settings:
        record.unlink(missing_ok=True)
        (folder / "scores.json").unlink(missing_ok=True)
        for file in files:
            file.unlink(missing_ok=True)  # of other settings
        write_json(record, {"settings": settings, "seconds": 0.0})
    spent = float(before.get("seconds", 0.0)) if before.get("settings") == settings else 0.0
    missing = [i for i, file in enumerate(files) if not file.exists()]
    if missing:
        (folder / "scores.json").unlink(missing_ok=True)
        marker = case.marker if isinstance(model, Model) and case.marker in model.card.markers else None
        method = build(row.config, model, marker, placement)
        sources = case.read("HE")
        for batch in _batches(missing, sources):
            began = time.monotonic()
            # One noise for an image and a seed in every row: rows differ by the method alone.
            keys = [NoiseKey(seed, f"{case.name}/{case.test[i]}") for i in batch]
            he = to_tensor([sources[i] for i in batch]).to(placement.device)
            for i, tile in zip(batch, to_uint8(method.translate(he, keys)), strict=True):
                write_image(files[i], tile)
            spent += time.monotonic() - began
            write_json(record, {"settings": settings, "seconds": spent})
        say(f"{case.name}: {row.name}, seed {seed}: {spent / len(files):.1f} s an image")
    return [read_image(file) for file in files], spent / len(files)


def _batches(indices: Sequence[int], sources: Sequence[Pixels]) -> list[list[int]]:
    """Neighbours of one size, at most `BATCH` of them."""
    batches: list[list[int]] = []
    for i in indices:
        last = batches[-1] if batches else []
        if last and len(last) < BATCH and sources[last[0]].shape == sources[i].shape:
            last.append(i)
        else:
            batches.append([i])
    return batches
