"""Table 1's ablations and Table 2's settings, measured on the twin set's held-out region, in one table by one command.

Every row is the preset with the changes of `presets.ABLATIONS`; every row sees the same tiles, seeds and starting noise. A result
is a file, so the same command goes on where it was stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from miudiff.checkpoints import read_json, write_json
from miudiff.data.twin import MARKER, SKIMAGE_MPP, at_scale, twin_region
from miudiff.device import Placement, place
from miudiff.errors import ConfigError
from miudiff.evaluation.fidelity import histogram_correlation, psnr, vif
from miudiff.evaluation.report import Figure, Table, contact_sheet, markdown_table, write_report
from miudiff.evaluation.stain import iod_table
from miudiff.evaluation.statistics import interval
from miudiff.images import Pixels, read_image, to_tensor, to_uint8, write_bytes, write_image
from miudiff.methods.miu_diff import MIUDiff
from miudiff.methods.model import Model, load_model
from miudiff.methods.presets import ABLATIONS, PRESETS, preset
from miudiff.noise import NoiseKey

TILE = 128
NUCLEUS = 8.0  # um
TABLES: Mapping[str, tuple[str, ...]] = {
    "table1": ("Eq. 2", "I-guided", "U-guided", "w/o MI", "l2", "w/o PCL", "w/o tone", "SDEdit"),
    "table2": ("t0'=80", "t0'=10", "S=500", "S=100"),
}
COLUMNS = ("PSNR", "VIF (source)", "VIF (real)", "Hist (RGB-256)", "IOD deviation, % of real")


def reproduce_twin(
    table: str, base: str, seeds: int, out: Path, device: str, say: Callable[[str], None]
) -> Path:
    """Measure `table`'s rows of the preset `base` over `seeds` seeds; returns the Markdown table's file.

    Raises:
        ConfigError: No such table or preset, or no seed.
    """
    if table not in TABLES or base not in PRESETS:
        raise ConfigError(
            f"'{table}', preset '{base}': expected one of {', '.join(TABLES)} and one of {', '.join(PRESETS)}"
        )
    if seeds < 1:
        raise ConfigError(f"seeds: found {seeds}, expected at least 1")
    placement = place(device)
    model = load_model(placement=placement)
    sources, reals = held_out_tiles(model.card.mpp)
    results: dict[str, list[list[Pixels]]] = {}
    for name, preset_name, changes in table_rows(table, base):
        results[name] = [
            _tiles(model, preset_name, name, changes, seed, sources, out, placement, say)
            for seed in range(seeds)
        ]
    nucleus = NUCLEUS / (model.card.mpp or SKIMAGE_MPP)
    scores = {name: _scores(fakes, sources, reals, nucleus) for name, fakes in results.items()}
    return _write(table, base, scores, results, sources, reals, seeds, out, say)


def table_rows(table: str, base: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """(row, preset, changes): each preset as it is, then `base` with each change of the table that changes it."""
    whole = [(name, name, ()) for name in PRESETS]
    changed = [
        (name, base, ABLATIONS[name])
        for name in TABLES[table]
        if preset(base, ABLATIONS[name]) != PRESETS[base]
    ]
    return [*whole, *changed]


def held_out_tiles(mpp: float | None) -> tuple[list[Pixels], list[Pixels]]:
    """(H&E, real IHC) tiles of the held-out region at the model's scale."""
    pair = []
    for image in twin_region("test"):
        scaled = at_scale(image, mpp)
        places = [
            (y, x)
            for y in range(0, scaled.shape[0] - TILE + 1, TILE)
            for x in range(0, scaled.shape[1] - TILE + 1, TILE)
        ]
        pair.append([scaled[y : y + TILE, x : x + TILE] for y, x in places])
    return pair[0], pair[1]


def _tiles(
    model: Model,
    base: str,
    name: str,
    changes: Sequence[str],
    seed: int,
    sources: Sequence[Pixels],
    out: Path,
    placement: Placement,
    say: Callable[[str], None],
) -> list[Pixels]:
    """One row's tiles for one seed, from the folder or made now."""
    config = preset(base, tuple(changes))
    folder = out / "tiles" / "".join(c if c.isalnum() else "_" for c in f"{base} {name}") / f"seed{seed}"
    record, settings = (
        folder / "settings.json",
        {"model": model.identity, "config": config.model_dump(mode="json")},
    )
    files = [folder / f"{i}.png" for i in range(len(sources))]
    if record.exists() and read_json(record) == settings and all(f.exists() for f in files):
        return [read_image(f) for f in files]
    record.unlink(missing_ok=True)  # tiles of two settings may lie here until all are written
    began = time.monotonic()
    method = MIUDiff(model.for_marker(MARKER), model.estimator, config, placement, tone=model.tone(MARKER))
    # One noise for a tile and a seed in every row: rows differ by the method alone.
    keys = [NoiseKey(seed, f"twin{i}") for i in range(len(sources))]
    tiles = to_uint8(method.translate(to_tensor(list(sources)).to(placement.device), keys))
    for file, tile in zip(files, tiles, strict=True):
        write_image(file, tile)
    write_json(record, settings)
    say(f"{name}, seed {seed}: {time.monotonic() - began:.0f} s")
    return tiles


def _scores(
    fakes: Sequence[Sequence[Pixels]], sources: Sequence[Pixels], reals: Sequence[Pixels], nucleus: float
) -> list[list[float]]:
    """For each seed the mean over tiles of each column."""
    rows = []
    for tiles in fakes:
        n = len(tiles)
        table = iod_table(tiles, reals, side=None, diameter=nucleus)
        rows.append(
            [
                sum(psnr(f, r) for f, r in zip(tiles, reals, strict=True)) / n,
                sum(vif(f, s) for f, s in zip(tiles, sources, strict=True)) / n,
                sum(vif(f, r) for f, r in zip(tiles, reals, strict=True)) / n,
                sum(histogram_correlation(f, r) for f, r in zip(tiles, reals, strict=True)) / n,
                100 * float(table[:, 0].sum() - table[:, 1].sum()) / float(table[:, 1].sum()),
            ]
        )
    return rows


def _write(
    table: str,
    base: str,
    scores: Mapping[str, list[list[float]]],
    results: Mapping[str, list[list[Pixels]]],
    sources: Sequence[Pixels],
    reals: Sequence[Pixels],
    seeds: int,
    out: Path,
    say: Callable[[str], None],
) -> Path:
    header = ["row", *COLUMNS]
    body = [
        [name, *(_cell([row[i] for row in values]) for i in range(len(COLUMNS)))]
        for name, values in scores.items()
    ]
    note = f"Twin set, held-out region, {len(sources)} tiles of {TILE} x {TILE} at the model's scale, {seeds} seeds; mean [95 % bootstrap interval over seeds]. Rows below the presets change the preset {base}."
    stem = f"{table}-{base}"
    path = out / f"{stem}.md"
    write_bytes(path, f"{markdown_table(header, body)}\n\n{note}\n".encode())
    write_json(out / f"{stem}.json", {"columns": list(COLUMNS), "seeds": dict(scores.items())})
    sheet = contact_sheet(
        [list(sources), list(reals), *[fakes[0] for fakes in results.values()]],
        [f"tile {i}" for i in range(len(sources))],
        ["H&E", "real IHC", *results],
    )
    write_image(out / f"{stem}.png", sheet)
    write_report(
        out / f"{stem}.html",
        f"{table}, preset {base}",
        note,
        [Figure("First seed", "Every row from the same noise.", sheet)],
        [Table(table, header, body, note)],
        [],
    )
    say(f"{markdown_table(header, body)}\n\n{path}")
    return path


def _cell(values: Sequence[float]) -> str:
    found = interval([v for v in values if math.isfinite(v)])
    if found.low is None or found.high is None:
        return f"{found.mean:.3g}"
    return f"{found.mean:.3g} [{found.low:.3g}, {found.high:.3g}]"
