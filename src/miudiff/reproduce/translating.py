"""One row's test images for one seed: made, or found as they were made with the same weights and settings.

OUT/NAME/results/ROW/seedN/{name.png, settings.json}
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from miudiff.checkpoints import read_json, write_json
from miudiff.device import Placement, enough_memory
from miudiff.errors import NonFiniteError
from miudiff.evenly import evenly
from miudiff.images import Pixels, read_image, to_tensor, to_uint8, write_image
from miudiff.methods.generator import GeneratorModel
from miudiff.methods.model import Model
from miudiff.methods.systems import build
from miudiff.noise import NoiseKey
from miudiff.normalisation import Normaliser, dyes_of
from miudiff.reproduce.cases import Case
from miudiff.reproduce.rows import Row

BATCH = 8  # test images that are translated at once
SAMPLED = 16  # test images that their dyes are fitted on, evenly over them


@dataclass(frozen=True)
class Translated:
    """One row's test images for one seed.

    Attributes:
        files: In the order of the case's `test`.
        seconds: For one of them.
    """

    folder: Path
    files: tuple[Path, ...]
    seconds: float


def translated(
    case: Case,
    row: Row,
    model: Model | GeneratorModel,
    marker: str | None,
    seed: int,
    placement: Placement,
    say: Callable[[str], None],
) -> Translated:
    """The row's images, from its folder or made now.

    Raises:
        DeviceError: Out of memory.
        NonFiniteError: The network gave a NaN or an infinity.
    """
    folder = results_folder(case, row, seed)
    files = [folder / f"{name}.png" for name in case.test]
    section = _section(case, row, model, marker)
    settings = _settings(row, model, marker, seed, placement)
    if section:
        settings["dyes"] = section.own.model_dump(mode="json")
    record = folder / "settings.json"
    before = read_json(record) if record.exists() else {}
    if before.get("settings") != settings:
        record.unlink(missing_ok=True)
        for file in (folder / "scores.json", *folder.glob("*.png")):
            file.unlink(missing_ok=True)  # of other settings
        before = {"settings": settings, "seconds": 0.0, "made": 0}
        write_json(record, before)
    spent, made = float(before.get("seconds", 0)), int(before.get("made", 0))
    missing = [i for i, file in enumerate(files) if not file.exists()]
    if missing:
        method = build(row.config, model, marker, placement)
        sources = {i: read_image(case.files("HE")[i]) for i in missing}
        for batch in _batches(missing, sources):
            began = time.monotonic()
            # One noise for an image and a seed in every row: rows differ by the method alone.
            keys = [NoiseKey(seed, f"{case.name}/{case.test[i]}") for i in batch]
            with enough_memory(
                f"{case.name}: {row.name}: {len(batch)} images at once on {placement}",
                "free the device, take another (--device cpu) or --precision bf16, or a budget with a smaller side",
            ):
                pixels = [section.he(sources[i]) if section else sources[i] for i in batch]
                he = to_tensor(pixels).to(placement.device)
                ihc = method.translate(he, keys)
            if not torch.isfinite(ihc).all():
                raise NonFiniteError(
                    f"{case.name}: {row.name}, seed {seed}: the network gave a NaN or an infinity for {case.test[batch[0]]} or its neighbours in {placement.precision}; look at its training, or take --precision fp32"
                )
            for i, tile in zip(batch, to_uint8(ihc), strict=True):
                write_image(files[i], section.ihc(tile) if section else tile)
            spent, made = spent + time.monotonic() - began, made + len(batch)
            write_json(record, {"settings": settings, "seconds": spent, "made": made})
        say(f"{case.name}: {row.name}, seed {seed}: {spent / made:.1f} s an image")
    return Translated(folder, tuple(files), spent / made if made else float("nan"))


def results_folder(case: Case, row: Row, seed: int) -> Path:
    """Where a row's images of a seed lie."""
    return case.folder / "results" / row.slug / f"seed{seed}"


def _section(case: Case, row: Row, model: Model | GeneratorModel, marker: str | None) -> Normaliser | None:
    """What brings the test H&E to the dyes of MIU-Diff's palette, as `translate` does with a folder; None for systems without one."""
    palette = model.palette(marker) if isinstance(model, Model) and row.method == "miu-diff" else None
    if palette is None:
        return None
    sampled = [read_image(file) for file in evenly(case.files("HE"), SAMPLED)]
    return Normaliser(dyes_of(sampled, palette.dyes), palette.dyes)


def _settings(
    row: Row, model: Model | GeneratorModel, marker: str | None, seed: int, placement: Placement
) -> dict[str, Any]:
    """All that an image depends on besides its H&E: other settings make other images."""
    config = row.config.model_dump(mode="json") if row.config else {}
    toned = config.get("reverse", config).get("palette", False)
    palette = model.palette(marker) if isinstance(model, Model) and toned else None
    return {
        "weights": f"{model.card.name} {_digest(_parts(row, model))}",
        "marker": marker,
        "palette": palette.model_dump(mode="json") if palette else None,
        "method": row.method,
        "seed": seed,
        "precision": placement.precision,
        "config": config,
    }


def _parts(row: Row, model: Model | GeneratorModel) -> list[nn.Module]:
    """The networks that a row looks at: a classifier that is trained later changes nothing but EGSDE."""
    if isinstance(model, GeneratorModel):
        return [model.generator]
    parts = {"score": model.score.unet, "mi": model.estimator, "classifier": model.classifier}
    return [part for task in row.needs if (part := parts.get(task)) is not None]


def _digest(parts: Iterable[nn.Module]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        for name, value in part.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _batches(indices: Sequence[int], sources: dict[int, Pixels]) -> list[list[int]]:
    """Neighbours of one size, at most `BATCH` of them."""
    batches: list[list[int]] = []
    for i in indices:
        last = batches[-1] if batches else []
        if last and len(last) < BATCH and sources[last[0]].shape == sources[i].shape:
            last.append(i)
        else:
            batches.append([i])
    return batches
