"""Test-time refinement (Section 2.3): in the last steps the score model learns one image's structure.

At each step the clean image is guessed from the refined model (Tweedie), the frozen original's encoder compares it with the source,
patch by patch, and the refined model takes one optimizer step. The original is never changed, and every image starts from it:
order and batch do not matter. Where all weights learn, or the decoder's, the refined model is one image's copy (the paper);
where few do, a batch of images shares the weights and each has its own changes (`methods.deltas`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from miudiff.config import Strict
from miudiff.contrast import layered_patch_nce, layered_squares
from miudiff.device import Placement
from miudiff.diffusion.sampling import denoised
from miudiff.diffusion.score import ScoreModel
from miudiff.diffusion.sde import VPSDE
from miudiff.images import to_gray
from miudiff.methods.deltas import DECODER, with_low_rank, with_norms
from miudiff.noise import NoiseSource


class RefinementConfig(Strict):
    """How the score model adapts to the image."""

    loss: Literal["contrastive", "l2", "pixels", "none"] = Field(
        "contrastive",
        description="Patch-contrastive, mean squares of the same features or of the pixels, or no refinement.",
    )
    start: int = Field(40, ge=0, description="t0': refinement acts below this index of the full chain.")
    lr: float = Field(1e-5, gt=0, description="AdamW's rate; the paper names none.")
    weights: Literal["all", "decoder", "norms", "low_rank"] = Field(
        "all",
        description="Which weights learn: a copy's for each image, or few for each image, in one pass for a batch.",
    )
    rank: int = Field(
        4, ge=1, le=64, description="Of the changes of the decoder's convolutions, with low_rank."
    )
    taps: tuple[int, ...] | None = Field(
        None, description="Encoder blocks; None spreads five, [0, 2, 5, 8, 11] on the paper's network."
    )
    positions: int = Field(256, ge=2, description="Patches for each layer; all where there are fewer.")
    temperature: float = Field(0.07, gt=0)
    gray: bool = Field(
        True, description="Compare luma with luma, so that the stain's colour is no difference."
    )

    @property
    def batched(self) -> bool:
        """Whether one refined model serves a batch of images."""
        return self.weights in ("norms", "low_rank")


class Refinement:
    """The refined model of `count` images, more than one only where `config.batched`, and its optimizer."""

    def __init__(
        self,
        frozen: ScoreModel,
        config: RefinementConfig,
        placement: Placement,
        sde: VPSDE,
        count: int = 1,
    ) -> None:
        self.frozen, self.config, self.placement, self.sde = frozen, config, placement, sde
        self.score, learned = _refinable(frozen, config, count)
        self.optimizer = torch.optim.AdamW(learned, lr=config.lr, weight_decay=0.0)
        self._keys: list[Tensor] | None = None
        self.taps = list(config.taps) if config.taps is not None else frozen.default_taps()

    def step(self, y: Tensor, index: int, source: Tensor, keys: Sequence[NoiseSource]) -> Tensor:
        """One optimizer step at `index`; returns each image's loss before it, [B].

        Args:
            y: The current images [B, 3, H, W], not differentiated.
            source: Their sources without colour, [B, 3, H, W], the same in every step.
        """
        # torch's channels-last GroupNorm crashes in its backward pass where it learns and its input needs no gradient.
        y = y.detach().requires_grad_(self.config.weights != "low_rank")
        with torch.enable_grad(), self.placement.autocast():
            eps, _ = self.score.predict(y, index, self.sde)
            guess = denoised(self.sde, y.detach(), index, eps.float())
            if self.config.gray:
                guess, source = to_gray(guess), to_gray(source)
            losses = self._losses(guess, source, index, keys)
        self.optimizer.zero_grad(set_to_none=True)
        losses.sum().backward()  # type: ignore[no-untyped-call]  # a sum: an image's gradient is its own
        self.optimizer.step()
        return losses.detach()

    def _losses(self, guess: Tensor, source: Tensor, index: int, keys: Sequence[NoiseSource]) -> Tensor:
        if self.config.loss == "pixels":
            return (guess - source).square().flatten(1).mean(1)
        queries = self.frozen.features(guess, 0, self.taps)
        if self._keys is None:  # neither the source nor the frozen encoder changes from step to step
            with torch.no_grad():
                self._keys = self.frozen.features(source, 0, self.taps)
        positions = self._positions(queries, index, keys)
        if self.config.loss == "l2":
            return layered_squares(queries, self._keys, positions)
        return layered_patch_nce(queries, self._keys, positions, self.config.temperature)

    def _positions(self, features: Sequence[Tensor], index: int, keys: Sequence[NoiseSource]) -> list[Tensor]:
        """Each image's own places in each layer, [B, P]."""
        counts = [f.shape[2] * f.shape[3] for f in features]
        draws = [
            torch.stack([key.permutation("patches", index * 64 + layer, n) for key in keys])
            for layer, n in enumerate(counts)
        ]
        return [draw[:, : self.config.positions].to(features[0].device) for draw in draws]


def _refinable(
    frozen: ScoreModel, config: RefinementConfig, count: int
) -> tuple[ScoreModel, list[nn.Parameter]]:
    """The model to refine and its parameters that learn."""
    if config.weights == "norms":
        return with_norms(frozen, count)
    if config.weights == "low_rank":
        return with_low_rank(frozen, count, config.rank)
    score = copy.deepcopy(frozen).requires_grad_(False)
    learned = [
        parameter
        for name, parameter in score.unet.named_parameters()
        if config.weights == "all" or name.startswith(DECODER)
    ]
    for parameter in learned:
        parameter.requires_grad_(True)
    return score, learned
