"""SDEdit (Meng et al. 2022): noise the source to index S - 1, denoise it with the target's score model. The floor of all others.

y_{S-1} ~ q(. | x),   y_{i-1} = mean(y_i) + 1[i > 0] sqrt(beta~_i) z,   i = S - 1 ... 0
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from miudiff.config import Strict
from miudiff.device import Placement
from miudiff.diffusion.graphs import Graphs
from miudiff.diffusion.sampling import (
    Transition,
    Variance,
    ancestral,
    denoised,
    euler_maruyama,
    multistep,
    posterior,
)
from miudiff.diffusion.score import ScoreModel
from miudiff.diffusion.sde import VPSDE, space_in_log_snr
from miudiff.images import to_gray
from miudiff.methods.palette import Palette
from miudiff.noise import NoiseSource, normal

Solver = Literal["ancestral", "euler_maruyama", "dpmpp_2m_sde", "dpmpp_2m"]  # the last is the ODE


class ReverseConfig(Strict):
    """The reverse process that the SDEdit family shares."""

    start: int = Field(
        300, ge=2, description="S: the source is noised to index S - 1 of the full chain's 1000."
    )
    steps: int | None = Field(
        None, ge=2, description="Steps from S to 0; None takes every index, as the paper."
    )
    variance: Variance = Field("fixed_small", description="Sigma: the posterior's, beta, or learned.")
    solver: Solver = Field(
        "ancestral",
        description="How a step is taken: DDPM's kernel, Euler-Maruyama, or DPM-Solver++(2M) of the SDE or the ODE (second order).",
    )
    noise: float = Field(
        1.0,
        ge=0,
        le=1,
        description="tau: how much of the SDE's noise a step of dpmpp_2m_sde draws; Eq. 3's shift goes with it.",
    )
    spacing: Literal["index", "log_snr"] = Field(
        "index",
        description="What the steps are spread evenly in: the index, or half the log signal-to-noise ratio.",
    )
    clip: bool = Field(False, description="Clip the estimate of the clean image to [-1, 1] in each step.")
    gray: bool = Field(True, description="Remove the source's colour first.")
    palette: bool = Field(
        False,
        description="Give the source the marker's colours by the model's palette (an extension; `methods.palette`).",
    )
    variety: float = Field(
        0.0,
        ge=0,
        le=10,
        description="How much the palette tells positive nuclei from negative ones, by noise.",
    )

    def chain(self, full: VPSDE) -> VPSDE:
        """The chain that is walked backwards: indices 0 to S - 1 of `full`, or `steps` of them."""
        if self.start > len(full):
            raise ValueError(f"start {self.start} is beyond the chain's {len(full)} steps")
        if self.steps is None or self.steps >= self.start:
            return VPSDE(full.steps, full.beta_min, full.beta_max, tuple(range(self.start)))
        spread = space_in_log_snr(full, self.start, self.steps) if self.spacing == "log_snr" else None
        kept = spread or {round(i * (self.start - 1) / (self.steps - 1)) for i in range(self.steps)}
        return VPSDE(full.steps, full.beta_min, full.beta_max, tuple(sorted(kept)))


class StepReport(NamedTuple):
    """What a reverse walk is at before it takes a step, for each image of the batch."""

    time: int  # index of the full chain
    y: Tensor
    ratio: Tensor | None = None  # [B], the root mean square of the guidance's shift over the step's noise
    loss: float | None = None  # the refinement's, the mean of the batch


class Reverse:
    """One reverse step of a score model under a `ReverseConfig`, without gradients.

    Attributes:
        watch: Called once in every step; a trajectory, a progress line or a log of ratios is made from it.
        fusion: Makes the tiles of a batch agree after every step (`methods.fusion`); None leaves each to itself.
        at_once: How many images the network is given at once; None gives it the whole batch.
        graphs: The model's own forward pass, quicker on CUDA devices; only for weights that stay as they are.
    """

    def __init__(
        self, score: ScoreModel, config: ReverseConfig, placement: Placement, palette: Palette | None = None
    ) -> None:
        self.score, self.config, self.placement = score, config, placement
        self.watch: Callable[[StepReport], None] | None = None
        self.fusion: Callable[[Tensor], Tensor] | None = None
        self.at_once: int | None = None
        self.graphs: Graphs | None = None
        # A model without a palette, trained by somebody else perhaps, is used with its luma as it is.
        self.palette = palette if config.palette else None
        self.sde = config.chain(score.sde)

    def begin(self, he: Tensor, keys: Sequence[NoiseSource]) -> tuple[Tensor, Tensor]:
        """The source as it conditions the process (without colour, by default), and y at the first index."""
        source = self.source(he, keys)
        return source, self.sde.perturb(source, len(self.sde) - 1, normal(keys, "start", 0, source))

    def report(self, y: Tensor, index: int, ratio: Tensor | None = None, loss: float | None = None) -> None:
        """Tell who watches that `y` is about to take the step at `index`."""
        if self.watch:
            self.watch(StepReport(int(self.sde.network_time(index)), y, ratio, loss))

    def source(self, he: Tensor, keys: Sequence[NoiseSource]) -> Tensor:
        """The source as it conditions the process."""
        if self.palette:
            noise = normal(keys, "palette", 0, he[:, :1]) if self.config.variety else None
            return self.palette(he, noise, self.config.variety)
        return to_gray(he) if self.config.gray else he

    @torch.no_grad()
    def transition(
        self, y: Tensor, index: int, score: ScoreModel | None = None, before: Tensor | None = None
    ) -> Transition:
        """p(y_{i-1} | y_i).

        Args:
            score: Stands in for the model, if given.
            before: The clean estimate of the step before, which a solver of second order goes by.
        """
        with self.placement.autocast():
            eps, fraction = self._predict(score or self.score, y, index)
        if self.config.solver == "euler_maruyama":
            return euler_maruyama(self.sde, y, index, eps)
        if self.config.solver in ("dpmpp_2m_sde", "dpmpp_2m"):
            clean = denoised(self.sde, y, index, eps)
            clean = clean.clamp(-1, 1) if self.config.clip else clean
            noise = self.config.noise if self.config.solver == "dpmpp_2m_sde" else 0.0
            return multistep(self.sde, y, index, clean, before, noise)
        if self.config.clip:
            guess = denoised(self.sde, y, index, eps).clamp(-1, 1)
            return posterior(self.sde, y, index, guess, self.config.variance, fraction)
        return ancestral(self.sde, y, index, eps, self.config.variance, fraction)

    def _predict(self, network: ScoreModel, y: Tensor, index: int) -> tuple[Tensor, Tensor | None]:
        """The network's noise and variance fraction, `at_once` images at a time."""
        predict = network.predict
        if self.graphs is not None and network is self.score:
            predict = partial(predict, forward=self.graphs)
        if self.at_once is None or len(y) <= self.at_once:
            return predict(y, index, self.sde)
        parts = [predict(part, index, self.sde) for part in torch.split(y, self.at_once)]
        fractions = [fraction for _, fraction in parts if fraction is not None]
        return torch.cat([eps for eps, _ in parts]), torch.cat(fractions) if fractions else None

    def step(
        self, transition: Transition, index: int, keys: Sequence[NoiseSource], repeat: int = 0
    ) -> Tensor:
        """A draw of the transition; its mean at the last index. Each `repeat` of the walk has draws of its own."""
        if index == 0:
            y = transition.mean
        else:
            draw = repeat * len(self.sde) + index
            y = transition.sample(normal(keys, "step", draw, transition.mean))
        return self.fusion(y) if self.fusion else y


class SDEditConfig(ReverseConfig):
    """SDEdit's own settings beside the reverse process."""

    repeats: int = Field(1, ge=1, description="Walks, each from the result of the one before.")


# The official script's own values, and Table 1's 300 steps. Its mask, which keeps parts of the source, is for strokes: not here.
PRESETS: Mapping[str, SDEditConfig] = {
    "official": SDEditConfig(start=400, gray=False, repeats=3),
    "paper": SDEditConfig(start=300, gray=False),
}


class SDEdit:
    """The SDEdit translator."""

    def __init__(
        self, score: ScoreModel, config: SDEditConfig, placement: Placement, palette: Palette | None = None
    ) -> None:
        self.config = config
        self.reverse = Reverse(score, config, placement, palette)

    def translate(self, he: Tensor, keys: Sequence[NoiseSource]) -> Tensor:
        """Virtual IHC of `he`, both [B, 3, H, W] in [-1, 1]."""
        reverse, sde = self.reverse, self.reverse.sde
        y = reverse.source(he, keys)
        for repeat in range(self.config.repeats):
            y = sde.perturb(y, len(sde) - 1, normal(keys, "start", repeat, y))
            clean: Tensor | None = None
            for index in reversed(range(len(sde))):
                reverse.report(y, index)
                transition = reverse.transition(y, index, before=clean)
                y, clean = reverse.step(transition, index, keys, repeat), transition.clean
        return y.clamp(-1, 1)
