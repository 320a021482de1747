"""What a tile costs by each method and preset, where its time goes, and what bf16 changes in a finished image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from miudiff.bench.network import SIDE, evaluation
from miudiff.bench.timing import Clock, Pairs
from miudiff.data.twin import at_scale, twin_region
from miudiff.device import Placement, place
from miudiff.diffusion.classifier import ClassifierNetwork, NoisedClassifier
from miudiff.distillation.learner import SMALL
from miudiff.estimate import seconds_per_window
from miudiff.evaluation.fidelity import psnr
from miudiff.gan import Generator, GeneratorConfig
from miudiff.methods.generator import GeneratorModel
from miudiff.methods.miu_diff import MIUDiff
from miudiff.methods.model import Card, Model
from miudiff.methods.student import Student, StudentConfig, StudentModel
from miudiff.methods.systems import ONE_STEP, SYSTEMS, configure
from miudiff.noise import NoiseKey
from miudiff.stainer import VirtualStainer

DEFAULT = ("miu-diff", SYSTEMS["miu-diff"].usual)
# EGSDE's official classifier at 256 x 256; the model that ships has none, and what it costs does not depend on its weights.
CLASSIFIER = ClassifierNetwork()


@dataclass(frozen=True)
class Cost:
    """What a tile of SIDE x SIDE costs by one method and preset."""

    method: str
    preset: str
    evaluations: int  # whole passes of the score network, refinement's included
    seconds: float  # a tile, from a few measured steps
    mm2: float | None  # of tissue that a tile adds, its overlap left out; None for a model without a scale

    def as_dict(self) -> dict[str, object]:
        """For the JSON file."""
        return {
            "method": self.method,
            "preset": self.preset,
            "network_evaluations_per_tile": self.evaluations,
            "seconds_per_tile": round(self.seconds, 4),
            "megapixels_per_second": round(SIDE**2 / 1e6 / self.seconds, 5),
            "seconds_per_mm2": None if self.mm2 is None else round(self.seconds / self.mm2, 3),
        }


def costs(model: Model, placement: Placement) -> Iterator[Cost]:
    """Each method with each of its presets, on the given weights; EGSDE's classifier, CUT's generator and a student have random ones."""
    torch.manual_seed(0)
    classifier = NoisedClassifier(CLASSIFIER).eval().requires_grad_(False).to(placement.device)
    for method, system in SYSTEMS.items():
        for name in system.presets:
            whole = replace(model, classifier=classifier) if method == "egsde" else model
            stainer = VirtualStainer(whole, configure(method, name), placement)
            yield _cost(stainer, name, evaluations(stainer))
    generator = Generator(GeneratorConfig()).eval().requires_grad_(False).to(placement.device)
    cut = GeneratorModel(generator, Card(name="cut", mpp=model.card.mpp, tile=SIDE), "cut")
    yield _cost(VirtualStainer(cut, None, placement), "-", 1)
    card = model.card.model_copy(update={"tile": SIDE})
    network = SMALL.model_copy(update={"markers": len(card.markers) or None})
    student = Student(StudentConfig(network=network, start=150, palette=True)).requires_grad_(False)
    one_step = StudentModel(student.to(placement.device), card, model.identity)
    for name, config in ONE_STEP.presets.items():
        yield _cost(VirtualStainer(one_step, config, placement), name, 1)


def _cost(stainer: VirtualStainer, preset: str, evaluations: int) -> Cost:
    # On a processor as many as are stained at a time, one a core; on an accelerator a tile has it for itself.
    together = stainer.at_once if stainer.placement.device.type == "cpu" else 1
    seconds = seconds_per_window(stainer, (SIDE, SIDE), together)
    scale = stainer.model.card.mpp
    mm2 = None if scale is None else ((SIDE - stainer.overlap) * scale / 1000) ** 2
    return Cost(stainer.name, preset, evaluations, seconds, mm2)


def evaluations(stainer: VirtualStainer) -> int:
    """Whole passes of the score network for one tile; a refined step makes two, one of them forward and backward."""
    refined = stainer.method.refined_steps if isinstance(stainer.method, MIUDiff) else 0
    return stainer.steps_of_a_tile + refined


def share_outside_network(model: Model, placement: Placement, clock: Clock) -> tuple[float, Pairs]:
    """The share of a tile's time that the default preset spends outside the network's evaluations, and the times."""
    stainer = VirtualStainer(model, configure(*DEFAULT), placement)
    tile, batch = [_noise(SIDE)] * stainer.batch, stainer.batch
    score = model.for_marker(stainer.marker)
    evaluate, passes = evaluation(score, batch, placement), stainer.steps_of_a_tile
    keys = [NoiseKey(0, f"bench{i}") for i in range(batch)]
    found = clock.pairs(
        lambda: [evaluate() for _ in range(passes)],
        lambda: stainer.stain(tile, keys),
    )
    return 1 - 1 / found.ratio, found


def precision(model: Model, device: str) -> dict[str, float]:
    """PSNR (dB) between finished images of bf16 and fp32 from the same noise, and between two seeds in fp32, for comparison."""
    he = at_scale(twin_region("test")[0], model.card.mpp)[:128, :128]

    def made(kind: str, seed: int) -> np.ndarray:
        stainer = VirtualStainer(model, configure(*DEFAULT), place(device, kind))  # type: ignore[arg-type]
        return stainer.translate(he, model.card.mpp, seed, "bench")

    full = made("fp32", 0)
    return {
        "bf16_to_fp32_psnr": round(psnr(made("bf16", 0), full), 2),
        "seed_to_seed_psnr": round(psnr(made("fp32", 1), full), 2),
    }


def _noise(side: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
