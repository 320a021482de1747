"""One reverse step: the guided over the plain one, the network's share of the device's peak, and diffusers' own loop beside ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch.utils.flop_counter import FlopCounterMode

from miudiff.bench.timing import Clock, Pairs
from miudiff.device import Placement
from miudiff.diffusion.score import NetworkConfig, ScoreModel, build_unet, parameter_count
from miudiff.information.estimator import Estimator, EstimatorConfig
from miudiff.methods.miu_diff import MIUDiff, MIUDiffConfig
from miudiff.methods.model import Card, Model
from miudiff.methods.sdedit import SDEdit, SDEditConfig
from miudiff.noise import NoiseKey

SIDE = 256  # pixels of the tiles that are timed


def paper_model(placement: Placement) -> Model:
    """The paper's network of 97.5 M parameters and its estimator, with random weights: costs do not depend on them."""
    torch.manual_seed(0)
    score = ScoreModel(build_unet(NetworkConfig())).eval().requires_grad_(False).to(placement.device)
    estimator = Estimator(EstimatorConfig()).eval().requires_grad_(False).to(placement.device)
    return Model(score, estimator, Card(name=f"{parameter_count(score) / 1e6:.1f}M", tile=SIDE))


def score_of(model: Model) -> ScoreModel:
    """The model's network, of its first marker if it has several."""
    return model.for_marker(next(iter(model.card.markers), None))


def tiles(count: int, device: torch.device) -> torch.Tensor:
    """Noise in [-1, 1] in place of H&E, [count, 3, SIDE, SIDE]."""
    draw = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return (draw * 2 - 1).to(device)


def guided_over_plain(
    model: Model, config: MIUDiffConfig, batch: int, placement: Placement, clock: Clock
) -> Pairs:
    """A step that the MI energy guides over the same step without it, at `batch` tiles of SIDE x SIDE."""
    score = score_of(model)
    none = config.energy.model_copy(update={"guidance": "none"})
    plain = MIUDiff(score, model.estimator, config.model_copy(update={"energy": none}), placement)
    guided = MIUDiff(score, model.estimator, config, placement)
    keys = [NoiseKey(0, f"bench{i}") for i in range(batch)]
    source, y = guided.begin(tiles(batch, placement.device), keys)
    index = len(guided.reverse.sde) // 2

    def step(method: MIUDiff) -> Callable[[], object]:
        return lambda: method.step(y, source, index, keys)

    return clock.pairs(step(plain), step(guided))


def evaluation(score: ScoreModel, batch: int, placement: Placement) -> Callable[[], object]:
    """One evaluation of the network on `batch` tiles, as a reverse step makes it."""
    y = tiles(batch, placement.device)

    @torch.no_grad()
    def evaluate() -> object:
        with placement.autocast():
            return score.predict(y, 150)

    return evaluate


def flops(score: ScoreModel, batch: int, placement: Placement) -> float:
    """Floating-point operations of one evaluation, counted by torch; a product and its sum are two."""
    with FlopCounterMode(display=False) as counter:
        evaluation(score, batch, placement)()
    return float(counter.get_total_flops())


def beside_diffusers(
    model: Model, steps: int, placement: Placement, clock: Clock, same_precision: bool
) -> Pairs:
    """diffusers' own loop (`DDPMScheduler`) over the same U-Net, then ours without guidance: `steps` steps on one tile.

    Args:
        same_precision: Theirs runs under the same autocast as ours; else in fp32, as diffusers does unless it is told.
    """
    score = score_of(model)
    ours = SDEdit(score, SDEditConfig(start=300, steps=steps), placement)
    he, keys = tiles(1, placement.device), [NoiseKey(0, "bench")]
    scheduler: Any = DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02)
    times = list(reversed(ours.reverse.sde.timesteps or range(300)))
    scheduler.set_timesteps(timesteps=times, device=placement.device)
    marker = None if score.marker is None else torch.tensor([score.marker], device=placement.device)

    @torch.no_grad()
    def theirs() -> object:
        y = F.pixel_unshuffle(he, score.unshuffle)
        with torch.autocast(
            placement.device.type, torch.bfloat16, enabled=same_precision and placement.precision == "bf16"
        ):
            for t in scheduler.timesteps:
                output = score.unet(y, t, class_labels=marker).sample[:, : y.shape[1]]
                y = scheduler.step(output.float(), t, y).prev_sample
        return y

    return clock.pairs(theirs, lambda: ours.translate(he, keys))
