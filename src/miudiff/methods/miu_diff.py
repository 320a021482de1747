"""MIU-Diff: the SDEdit loop with its mean moved by the MI energy (Eq. 2, 3) and its score refined in the last steps (2.3).

    y_{i-1} = mu - c Sigma_i grad M(mu) + 1[i > 0] sqrt(Sigma_i) z,      lambda = (t + 1) / S

`he_t` is drawn anew in each step (the expectation of Eq. 2 by one sample). Levels: the current sample is at index i, its
successor and mu at i - 1, which is where M is taken (`energy_at: mean`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from miudiff.config import Strict
from miudiff.device import Placement
from miudiff.diffusion.sampling import Transition
from miudiff.diffusion.score import ScoreModel
from miudiff.diffusion.sde import at
from miudiff.information.energy import EnergyConfig, MIEnergy
from miudiff.information.estimator import Estimator, grid_offset
from miudiff.methods.palette import Palette
from miudiff.methods.refinement import Refinement, RefinementConfig
from miudiff.methods.sdedit import Reverse, ReverseConfig
from miudiff.noise import NoiseSource, normal


class GuidanceConfig(Strict):
    """How the energy moves the mean."""

    scale: float = Field(
        1.0,
        ge=0,
        description="c. The paper's 1 moves the mean by 1e-5 to 1e-4 of a step's noise; see `calibrate`.",
    )
    normalise: Literal["none", "unit_rms"] = Field(
        "none",
        description="'unit_rms' makes the shift `scale` times the step's noise, whatever the estimator's slope (an extension).",
    )
    weight: Literal["variance", "beta"] = Field(
        "variance", description="The gradient's factor: Sigma (Eq. 3) or beta / sqrt(alpha) (EGSDE)."
    )
    energy_at: Literal["mean", "current"] = Field(
        "mean", description="Where M is taken: mu at i - 1 (the paper), or y at i (EGSDE)."
    )
    source_noise: Literal["matched", "clean"] = Field(
        "matched", description="The source is noised to the energy's level (the paper), or not at all."
    )
    frozen_noise: bool = Field(
        False, description="Noise the source with the start's noise in every step, as EGSDE does."
    )
    shift_grid: bool = Field(
        True, description="Begin the patch grid at a random place in each step, so that no border shows."
    )
    until: int = Field(0, ge=0, description="Guide down to this index of the full chain.")


class MIUDiffConfig(Strict):
    """Everything that the paper leaves open, by name; docs/method.md has a row for each."""

    reverse: ReverseConfig = ReverseConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    energy: EnergyConfig = EnergyConfig()
    refinement: RefinementConfig = RefinementConfig()

    @property
    def unrefined(self) -> MIUDiffConfig:
        """The same settings, without refinement."""
        return self.model_copy(update={"refinement": self.refinement.model_copy(update={"loss": "none"})})


class Source(NamedTuple):
    """What an image is made from: the same in every step, so it is worked out once."""

    image: Tensor  # [B, 3, H, W] without colour
    structure: Tensor | None  # its gradient map, where guidance looks at the clean source
    noise: Tensor | None  # [B, 3, H, W], where guidance looks at the source under one noise

    def of(self, images: slice) -> Source:
        """That of some of the batch's images."""
        structure, noise = (None if part is None else part[images] for part in self[1:])
        return Source(self.image[images], structure, noise)


class MIUDiff:
    """The MIU-Diff translator."""

    def __init__(
        self,
        score: ScoreModel,
        estimator: Estimator | None,
        config: MIUDiffConfig,
        placement: Placement,
        palette: Palette | None = None,
    ) -> None:
        if estimator is None and config.guidance.scale and config.energy.guidance != "none":
            raise ValueError("guidance needs an MI estimator")
        self.config, self.placement = config, placement
        self.reverse = Reverse(score, config.reverse, placement, palette)
        self.estimator = estimator
        self.energy = MIEnergy(estimator, config.energy, placement) if estimator is not None else None

    def translate(self, he: Tensor, keys: Sequence[NoiseSource]) -> Tensor:
        """Virtual IHC of `he`, both [B, 3, H, W] in [-1, 1]; an image depends on itself and its key alone."""
        source, y = self.begin(he, keys)
        refined = self.refined_steps
        y, clean = self._walk(range(refined, len(self.reverse.sde)), y, source, keys, None, None)
        if refined:
            # A copy of all weights is one image's, so images follow each other; few weights of each image's own learn together.
            together = len(y) if self.config.refinement.batched else 1
            parts = [slice(i, i + together) for i in range(0, len(y), together)]
            y = torch.cat([self._refine(part, y, source, keys, clean) for part in parts])
        return y.clamp(-1, 1)

    def begin(self, he: Tensor, keys: Sequence[NoiseSource]) -> tuple[Source, Tensor]:
        """The source of each step, and y at the first index."""
        guidance = self.config.guidance
        image, y = self.reverse.begin(he, keys)
        clean = guidance.source_noise == "clean" and self._guides
        frozen = guidance.source_noise == "matched" and guidance.frozen_noise and self._guides
        structure = self.estimator.structure_map(image) if clean and self.estimator is not None else None
        return Source(image, structure, normal(keys, "start", 0, image) if frozen else None), y

    def _refine(
        self, images: slice, y: Tensor, source: Source, keys: Sequence[NoiseSource], clean: Tensor | None
    ) -> Tensor:
        """The refined steps of some of the batch's images, together."""
        y, before = y[images], None if clean is None else clean[images]
        refinement = Refinement(
            self.reverse.score, self.config.refinement, self.placement, self.reverse.sde, len(y)
        )
        steps = range(self.refined_steps)
        return self._walk(steps, y, source.of(images), keys[images], refinement, before)[0]

    def _walk(
        self,
        indices: range,
        y: Tensor,
        source: Source,
        keys: Sequence[NoiseSource],
        refinement: Refinement | None,
        clean: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """The steps at `indices`, from the last to the first."""
        for index in reversed(indices):
            y, clean = self.step(y, source, index, keys, refinement, clean)
        return y, clean

    def step(
        self,
        y: Tensor,
        source: Source,
        index: int,
        keys: Sequence[NoiseSource],
        refinement: Refinement | None = None,
        before: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """y at i - 1, and the clean estimate that the next step goes by, which is its `before`."""
        losses = refinement.step(y, index, source.image, keys) if refinement else None
        score = refinement.score if refinement else None
        transition = self.reverse.transition(y, index, score, before)
        shift = self._shift(transition, y, source, index, keys)
        if self.reverse.watch:
            # From the shift itself: as a difference of means a small one would drown in their rounding.
            size = y.new_zeros(len(y)) if shift is None else shift.flatten(1).square().mean(1).sqrt()
            noise = transition.std.flatten().mean()
            ratio = size / noise.where(noise > 0, torch.inf)
            self.reverse.report(y, index, ratio, None if losses is None else float(losses.mean()))
        moved = transition if shift is None else transition.moved(-shift)
        return self.reverse.step(moved, index, keys), transition.clean

    def _shift(
        self, transition: Transition, y: Tensor, source: Source, index: int, keys: Sequence[NoiseSource]
    ) -> Tensor | None:
        """What is taken from the mean, c Sigma grad M in Eq. 3; None where nothing guides."""
        guidance, sde = self.config.guidance, self.reverse.sde
        level = int(sde.network_time(index))
        if not self._guides or level < guidance.until:
            return None
        # i - 1 of this chain, as an index of the full chain: a respaced step lands on the next index that is kept.
        at_mean = guidance.energy_at == "mean"
        target = index - 1 if at_mean else index
        target_level = int(sde.network_time(target)) if target >= 0 else -1
        point = transition.mean if at_mean else y
        stain_weight = (level + 1) / self.config.reverse.start
        gradient = self._gradient(point, source, target, target_level, stain_weight, index, keys)
        if guidance.normalise == "unit_rms":
            rms = gradient.flatten(1).square().mean(1).sqrt().clamp(min=1e-12).view(-1, 1, 1, 1)
            return guidance.scale * transition.std * gradient / rms
        if guidance.weight == "beta":
            return guidance.scale * at(sde.betas / (1 - sde.betas).sqrt(), index, y) * gradient
        return transition.std**2 * (guidance.scale * gradient)

    @property
    def _guides(self) -> bool:
        on = self.energy is not None and self.config.energy.guidance != "none"
        return on and bool(self.config.guidance.scale)

    def _gradient(
        self,
        point: Tensor,
        source: Source,
        target: int,
        level: int,
        stain_weight: float,
        index: int,
        keys: Sequence[NoiseSource],
    ) -> Tensor:
        assert self.energy is not None
        assert self.estimator is not None
        structure, he_level = source.structure, -1
        if structure is None:
            noise = normal(keys, "condition", index, source.image) if source.noise is None else source.noise
            he_t = self.reverse.sde.perturb(source.image, target, noise)
            structure, he_level = self.estimator.structure_map(he_t), level
        offsets = [self._offset(key, index, point) for key in keys]  # each image has a grid of its own
        return self.energy.gradient(point, structure, level, he_level, stain_weight, offsets)

    def _offset(self, key: NoiseSource, index: int, like: Tensor) -> tuple[int, int]:
        if not self.config.guidance.shift_grid:
            return 0, 0
        assert self.estimator is not None
        return grid_offset(key, index, self.estimator.config.patch, like)

    @property
    def refined_steps(self) -> int:
        """How many steps, the last ones, are refined."""
        refinement = self.config.refinement
        if refinement.loss == "none":
            return 0
        return sum(
            int(self.reverse.sde.network_time(i)) < refinement.start for i in range(len(self.reverse.sde))
        )
