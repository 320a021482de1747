"""All figures in one run: `miudiff bench`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from miudiff.bench import machine, methods, network, slide_io, training
from miudiff.bench.timing import Clock
from miudiff.checkpoints import write_json
from miudiff.device import Placement, Precision, place
from miudiff.diffusion.score import parameter_count
from miudiff.errors import ConfigError
from miudiff.methods.model import Model
from miudiff.methods.presets import PAPER
from miudiff.methods.systems import configure, load_any
from miudiff.naming import SHIPPED

Say = Callable[[str], None]


class Extent(NamedTuple):
    """How much is measured."""

    pairs: int  # of each comparison
    budget: float  # seconds of each comparison, after which no further pair begins
    batches: tuple[int, ...]  # of the guided step
    steps: int  # of a training
    side: int  # of the slide, in pixels


DIFFUSERS_STEPS = 5  # of both loops
QUICK = Extent(pairs=15, budget=2, batches=(1,), steps=8, side=3072)
FULL = Extent(pairs=15, budget=900, batches=(1, 8), steps=40, side=8192)


def bench(
    model: str | Path = SHIPPED,
    quick: bool = False,
    json: Path | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    say: Say = print,
) -> dict[str, Any]:
    """Measure, say each figure as it is found, and end with the table.

    Args:
        quick: Fewer repetitions, smaller sizes: under two minutes on two cores.
        json: Also write everything there, after each measurement.

    Raises:
        ConfigError: A model of a method that takes one pass.
        DataError: The file cannot be written.
    """
    placement = place(device, precision)
    loaded = load_any(model, placement)
    if not isinstance(loaded, Model):
        raise ConfigError(
            f"{model}: a trained {loaded.method}; expected a diffusion model, such as {SHIPPED}"
        )
    extent = QUICK if quick else FULL
    found: dict[str, Any] = {
        "machine": machine.describe(placement),
        "model": loaded.identity,
        "quick": quick,
    }
    for key, value in found["machine"].items():
        say(f"{key:12} {value}")
    _keep(found, json)  # what cannot be written is told before minutes are spent
    began = time.monotonic()
    for name, part in _parts(loaded, placement, extent, device):
        found |= part
        _keep(found, json)
        say(f"{name} ({time.monotonic() - began:.0f} s)")
        for key, value in part.items():
            _tell(key, value, say)
    found["peak_memory_mib"] = machine.most_held(placement)
    found["seconds"] = round(time.monotonic() - began, 1)
    for line in table(found):
        say(line)
    _keep(found, json)
    return found


def _keep(found: dict[str, Any], json: Path | None) -> None:
    if json is not None:
        write_json(json, found)


def _parts(
    model: Model, placement: Placement, extent: Extent, device: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The measurements in turn, each with its name and what it adds."""
    clock = Clock(placement.device, extent.pairs, extent.budget)
    peaks = machine.matrix_peak(placement, clock)
    yield "matrix products", {"matrix_peak_tflops": peaks}
    models = {
        model.card.name: (model, configure(*methods.DEFAULT)),
        "97.5M": (network.paper_model(placement), PAPER),
    }
    yield "guided step over plain step", {"guided_step_ratio": _guided(models, placement, extent, clock)}
    reached = _network(models, placement, max(extent.batches), peaks[placement.precision], clock)
    yield "network", {"network": reached}
    share, pairs = methods.share_outside_network(model, placement, clock)
    outside = {"share_outside_network": round(share, 4), "tile": pairs.as_dict("network", "whole")}
    yield "a tile of the default preset", outside
    beside = {
        name: network.beside_diffusers(model, DIFFUSERS_STEPS, placement, clock, same).as_dict(
            "diffusers", "miudiff"
        )
        for name, same in (("diffusers in fp32", False), ("diffusers in the same precision", True))
    }
    yield f"diffusers' loop, {DIFFUSERS_STEPS} steps", {"diffusers_loop": beside}
    yield "methods and presets", _costs(model, placement)
    yield "bf16 in finished images", {"precision": methods.precision(model, device)}
    with tempfile.TemporaryDirectory() as folder:
        yield "slide input and output", {"slide_io": slide_io.beside_libvips(Path(folder), extent.side)}
    yield "training", _training(placement, extent.steps, clock)


Models = dict[str, tuple[Model, Any]]  # with the settings that each is timed with


def _guided(models: Models, placement: Placement, extent: Extent, clock: Clock) -> dict[str, Any]:
    return {
        f"{name} batch {batch}": network.guided_over_plain(model, config, batch, placement, clock).as_dict(
            "plain", "guided"
        )
        for name, (model, config) in models.items()
        for batch in extent.batches
    }


def _network(models: Models, placement: Placement, batch: int, peak: float, clock: Clock) -> dict[str, Any]:
    """How much of the device's peak each network reaches."""
    found = {}
    for name, (model, _) in models.items():
        score = network.score_of(model)
        seconds = clock.seconds(network.evaluation(score, batch, placement))
        reached = network.flops(score, batch, placement) / seconds / 1e12
        found[f"{name} batch {batch}"] = {
            "parameters": parameter_count(score),
            "seconds": round(seconds, 5),
            "tflops": round(reached, 3),
            "share_of_matrix_peak": round(reached / peak, 3),
        }
    return found


def _costs(model: Model, placement: Placement) -> dict[str, Any]:
    costs = list(methods.costs(model, placement))
    usual = next(cost for cost in costs if (cost.method, cost.preset) == methods.DEFAULT)
    return {
        "network_evaluations_per_tile": usual.evaluations,
        "seconds_per_mm2": usual.as_dict()["seconds_per_mm2"],
        "methods": [cost.as_dict() for cost in costs],
    }


def _training(placement: Placement, steps: int, clock: Clock) -> dict[str, Any]:
    """The network that ships; on an accelerator the paper's, too."""
    trained = {"shipped": training.throughput(training.SHIPPED, steps, placement, clock)}
    if placement.device.type == "cuda":
        trained["97.5M"] = training.throughput(training.PAPER, steps, placement, clock)
    ratio = trained["shipped"]["training_ratio_to_eager_fp32"]
    return {"training_ratio_to_eager_fp32": ratio, "training": trained}


def _tell(key: str, value: Any, say: Say, depth: int = 1) -> None:
    indent = "  " * depth
    if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
        say(f"{indent}{key}")
        for name, inner in value.items():
            _tell(name, inner, say, depth + 1)
    elif isinstance(value, list):
        for row in value:
            say(f"{indent}{', '.join(f'{name} {inner}' for name, inner in row.items())}")
    elif isinstance(value, dict):
        say(f"{indent}{key}: {', '.join(f'{name} {inner}' for name, inner in value.items())}")
    else:
        say(f"{indent}{key}: {value}")


def table(found: dict[str, Any]) -> Iterator[str]:
    """The figures that a reader compares, one row each, in Markdown."""
    yield "| measure | figure | against |"
    yield "| --- | --- | --- |"
    for name, pairs in found["guided_step_ratio"].items():
        yield f"| guided step, {name} | {pairs['ratio']:.3f} | the plain step, {pairs['pairs']} pairs |"
    for name, share in found["network"].items():
        yield f"| network, {name} | {share['share_of_matrix_peak']:.2f} | the device's peak in matrix products |"
    yield f"| time outside the network | {found['share_outside_network']:.3f} | a tile of the default preset |"
    for name, pairs in found["diffusers_loop"].items():
        yield f"| unguided loop | {pairs['ratio']:.2f} | {name}, same network and steps |"
    usual = next(row for row in found["methods"] if (row["method"], row["preset"]) == methods.DEFAULT)
    for row in found["methods"]:
        ratio = row["seconds_per_tile"] / usual["seconds_per_tile"]
        cost = f"{row['network_evaluations_per_tile']} evaluations, {row['seconds_per_tile']:.2f} s a tile"
        yield f"| {row['method']} {row['preset']}: {cost} | {ratio:.2f} | the default preset |"
    yield f"| bf16, finished image | {found['precision']['bf16_to_fp32_psnr']:.1f} dB | fp32 (another seed: {found['precision']['seed_to_seed_psnr']:.1f} dB) |"
    for kind in ("wall", "processor"):
        if (ratio := found["slide_io"].get(f"ratio_of_{kind}_seconds")) is not None:
            yield f"| slide input and output, {kind} time | {ratio:.2f} | libvips |"
    for name, trained in found["training"].items():
        yield f"| training, {name} | {trained['training_ratio_to_eager_fp32']:.2f} | eager fp32 |"
