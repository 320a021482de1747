"""Test-time refinement (Section 2.3): in the last steps a copy of the score model learns this one image's structure.

At each step the clean image is guessed from the copy (Tweedie), the frozen original's encoder compares it with the source, patch by
patch, and the copy takes one optimizer step. The original is never changed, and every image starts from it: order and batch
do not matter.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from miudiff.config import Strict
from miudiff.contrast import layered_patch_nce, layered_squares
from miudiff.device import Placement
from miudiff.diffusion.sampling import denoised
from miudiff.diffusion.score import ScoreModel
from miudiff.diffusion.sde import VPSDE
from miudiff.images import to_gray
from miudiff.noise import NoiseSource


class RefinementConfig(Strict):
    """How the score model adapts to the image."""

    loss: Literal["contrastive", "l2", "pixels", "none"] = Field(
        "contrastive",
        description="Patch-contrastive, mean squares of the same features or of the pixels, or no refinement.",
    )
    start: int = Field(40, ge=0, description="t0': refinement acts below this index of the full chain.")
    lr: float = Field(1e-5, gt=0, description="AdamW's rate; the paper names none.")
    weights: Literal["all", "decoder", "norms"] = Field("all", description="Which weights of the copy learn.")
    taps: tuple[int, ...] | None = Field(
        None, description="Encoder blocks; None spreads five, [0, 2, 5, 8, 11] on the paper's network."
    )
    positions: int = Field(256, ge=2, description="Patches for each layer; all where there are fewer.")
    temperature: float = Field(0.07, gt=0)
    gray: bool = Field(
        True, description="Compare luma with luma, so that the stain's colour is no difference."
    )


class Refinement:
    """One image's copy of the score model and its optimizer."""

    def __init__(
        self, frozen: ScoreModel, config: RefinementConfig, placement: Placement, sde: VPSDE
    ) -> None:
        self.frozen, self.config, self.placement, self.sde = frozen, config, placement, sde
        self.score = copy.deepcopy(frozen).requires_grad_(False)
        parameters = list(_chosen(self.score, config.weights))
        for parameter in parameters:
            parameter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=0.0)
        self._keys: list[Tensor] | None = None
        self.taps = list(config.taps) if config.taps is not None else frozen.default_taps()

    def step(self, y: Tensor, index: int, source: Tensor, key: NoiseSource) -> float:
        """One optimizer step at `index`; returns the loss before it.

        Args:
            y: The current image [1, 3, H, W], not differentiated.
            source: The source without colour, [1, 3, H, W]; one image, the same in every step.
        """
        # torch's channels-last GroupNorm crashes in its backward pass where its input needs no gradient (seen with `norms`).
        y = y.detach().requires_grad_(True)
        with torch.enable_grad(), self.placement.autocast():
            eps, _ = self.score.predict(y, index, self.sde)
            guess = denoised(self.sde, y.detach(), index, eps.float())
            if self.config.gray:
                guess, source = to_gray(guess), to_gray(source)
            loss = self._loss(guess, source, index, key)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return float(loss.detach())

    def _loss(self, guess: Tensor, source: Tensor, index: int, key: NoiseSource) -> Tensor:
        if self.config.loss == "pixels":
            return F.mse_loss(guess, source)
        queries = self.frozen.features(guess, 0, self.taps)
        if self._keys is None:  # neither the source nor the frozen encoder changes from step to step
            with torch.no_grad():
                self._keys = self.frozen.features(source, 0, self.taps)
        keys = self._keys
        positions = self._positions(queries, index, key)
        if self.config.loss == "l2":
            return layered_squares(queries, keys, positions)
        return layered_patch_nce(queries, keys, positions, self.config.temperature)

    def _positions(self, features: Sequence[Tensor], index: int, key: NoiseSource) -> list[Tensor]:
        counts = [f.shape[2] * f.shape[3] for f in features]
        draws = [key.permutation("patches", index * 64 + layer, n) for layer, n in enumerate(counts)]
        return [draw[: self.config.positions].to(features[0].device) for draw in draws]


def _chosen(score: ScoreModel, which: str) -> list[nn.Parameter]:
    unet = score.unet
    if which == "decoder":
        return [
            p
            for part in (unet.mid_block, unet.up_blocks, unet.conv_norm_out, unet.conv_out)
            for p in part.parameters()
        ]
    if which == "norms":
        return [p for m in unet.modules() if isinstance(m, nn.GroupNorm) for p in m.parameters()]
    return list(unet.parameters())
