"""The MI estimator: how much an image's patches and the structure at the same places know of each other.

The statistics network looks at pairs of patches: structure g (the gradient map of luma) and image y. Joint pairs are of one
place; marginal pairs join the structure of one place with the image of another place of the same image, so stain statistics
are equal on both sides and only structure can tell them apart. It is told the noise level of each input: in the reverse
process y is noisy, and a network trained on clean images alone would be asked about images that it never saw.

Critics: `separable` embeds both patches and takes their inner product, which gives all L x L pairs for L + L embeddings
(Poole et al. 2019); `joint` looks at both patches at once, by convolutions; `mlp` is the literal MINE on flattened patches.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from miudiff.config import Strict, Width
from miudiff.diffusion.sde import VPSDE, Times, at
from miudiff.images import gradient_map, luma
from miudiff.information.mine import donsker_varadhan
from miudiff.noise import NoiseSource


class EstimatorConfig(Strict):
    """The statistics network and the patches it sees."""

    critic: Literal["separable", "joint", "mlp"] = "separable"
    channels: tuple[Width, ...] = Field(
        (32, 64, 96), min_length=1, max_length=12, description="Channels after each halving."
    )
    patch: int = Field(32, ge=8, le=512, description="Side of a patch in pixels.")
    bound: float | None = Field(
        10.0, gt=0, description="The statistic is bound * tanh(T / bound); None leaves it unbounded."
    )
    shuffles: int = Field(
        4, ge=1, le=1000, description="Marginal pairs for each joint pair, where the critic is not separable."
    )
    gradient: Literal["luma", "rgb"] = Field(
        "luma", description="Gradient map of luma (1 channel) or of each colour (SPSR's 3)."
    )
    padding: Literal["reflect", "constant"] = Field(
        "reflect", description="Border of the gradient map; SPSR's code pads zeros."
    )
    normalise: bool = Field(
        True,
        description="Divide a gradient map by its 99th percentile: source and target differ in contrast.",
    )

    @model_validator(mode="after")
    def _halves(self) -> Self:
        if self.patch < 2 ** len(self.channels):
            raise ValueError(
                f"patch: found {self.patch}, expected at least {2 ** len(self.channels)} for {len(self.channels)} halvings"
            )
        return self


class Estimator(nn.Module):
    """I(g; y) by the Donsker-Varadhan bound over the patches of an image."""

    def __init__(self, config: EstimatorConfig, sde: VPSDE | None = None) -> None:
        super().__init__()
        self.config, self.sde = config, sde or VPSDE()
        maps = 1 if config.gradient == "luma" else 3
        if config.critic == "separable":
            self.structure = _embedding(maps + 1, config)
            self.image = _embedding(3 + 1, config)
            self.sharpness = nn.Parameter(torch.tensor(1.5))  # log of the factor on the cosine
        elif config.critic == "joint":
            self.pair = nn.Sequential(_embedding(maps + 3 + 2, config), nn.Flatten(), nn.LazyLinear(1))
        else:
            self.pair = nn.Sequential(
                nn.Flatten(), nn.LazyLinear(256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 1)
            )
        if config.critic != "separable":
            side = config.patch
            self.pair(torch.zeros(2, maps + 5, side, side))  # gives the lazy layers their sizes

    def structure_map(self, images: Tensor) -> Tensor:
        """The gradient map g [B, 1 or 3, H, W] of images [B, 3, H, W]; no gradient flows through its normalisation."""
        source = luma(images) if self.config.gradient == "luma" else images
        gradient = gradient_map(source, self.config.padding)
        if self.config.normalise:
            flat = gradient.detach().flatten(1)
            # the largest value below which 99 % lie; `quantile` is limited to 16 M elements, kthvalue is not
            top = flat.kthvalue(max(1, int(0.99 * flat.shape[1])), dim=1).values
            gradient = gradient / top.clamp(min=1e-3).view(-1, 1, 1, 1)
        return gradient

    def statistics(
        self, structure: Tensor, y: Tensor, t: Times, structure_t: Times, offset: tuple[int, int] = (0, 0)
    ) -> tuple[Tensor, Tensor]:
        """T on joint pairs [B, L] and on marginal pairs [B, M].

        Args:
            structure: From `structure_map`, of the structure's source.
            y: Images [B, 3, H, W].
            t, structure_t: Noise level of `y` and of what `structure` was taken from, an index or indices [B]; -1 is clean.
            offset: Where the grid of patches begins, (rows, columns), less than a patch.

        Raises:
            ValueError: Fewer than two patches fit.
        """
        size = self.config.patch
        g = patches(torch.cat([structure, self._level(structure_t, structure)], 1), size, offset)
        h = patches(torch.cat([y, self._level(t, y)], 1), size, offset)
        batch, count = g.shape[:2]
        if count < 2:
            raise ValueError(f"an image of {tuple(y.shape[2:])} has {count} patches of {size}, needs 2")
        if self.config.critic == "separable":
            eg, eh = self.structure(_rows(g)).flatten(1), self.image(_rows(h)).flatten(1)
            # The cosines are taken in full precision: bf16 would round them to two digits.
            with torch.autocast(y.device.type, enabled=False):
                scores = self._cosines(eg.view(batch, count, -1), eh.view(batch, count, -1))
            return scores.diagonal(dim1=1, dim2=2), _off_diagonal(scores)
        # Cyclic shifts: no patch meets itself, and the same shifts always, so the bound is deterministic.
        shuffles = min(self.config.shuffles, count - 1)
        shifts = [0, *(1 + (count - 1) * k // shuffles for k in range(shuffles))]
        pairs = torch.stack([torch.cat([g, h.roll(-k, 1)], 2) for k in shifts], 1)
        scores = self._bounded(self.pair(_rows(pairs.flatten(0, 1))).view(batch, len(shifts), count))
        return scores[:, 0], scores[:, 1:].flatten(1)

    forward = statistics

    def information(
        self, structure: Tensor, y: Tensor, t: Times, structure_t: Times, offset: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """The bound for each image in nats, [B]."""
        return donsker_varadhan(*self.statistics(structure, y, t, structure_t, offset))

    def joint_only(
        self, structure: Tensor, y: Tensor, t: Times, structure_t: Times, offset: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """The bound's first term alone, [B]: nothing pushes unlike pairs apart."""
        return self.statistics(structure, y, t, structure_t, offset)[0].mean(-1)

    def _cosines(self, structure: Tensor, image: Tensor) -> Tensor:
        """T of every pair of patches, [B, L, L], from embeddings [B, L, C]."""
        cosine = F.normalize(structure.float(), dim=-1) @ F.normalize(image.float(), dim=-1).transpose(1, 2)
        return self._bounded(self.sharpness.exp() * cosine)

    def _level(self, t: Times, like: Tensor) -> Tensor:
        """The noise's standard deviation at t as a map [B, 1, H, W]."""
        spread = at(self.sde.spread, t, like)
        if isinstance(t, int):
            spread = like.new_full((), float(spread))
        return spread.expand(len(like), 1, *like.shape[2:])

    def _bounded(self, scores: Tensor) -> Tensor:
        bound = self.config.bound
        return scores.float() if bound is None else bound * torch.tanh(scores.float() / bound)


def _embedding(channels: int, config: EstimatorConfig) -> nn.Sequential:
    """Strided convolutions without normalisation: a norm over the batch would leak joint into marginal pairs."""
    layers: list[nn.Module] = []
    for width in config.channels:
        layers += [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.SiLU(),
        ]
        channels = width
    layers.append(nn.Conv2d(channels, channels, 1))
    # Keeps the scale through SiLU; with torch's default initial weights the critic begins flat and stays so for long.
    for layer in layers:
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def patches(images: Tensor, size: int, offset: tuple[int, int] = (0, 0)) -> Tensor:
    """Non-overlapping squares [B, L, C, size, size] in reading order; what does not fill a square at the border is left out."""
    images = images[:, :, offset[0] :, offset[1] :]
    rows, columns = images.shape[2] // size, images.shape[3] // size
    whole = images[:, :, : rows * size, : columns * size]
    grid = whole.reshape(*whole.shape[:2], rows, size, columns, size)
    return grid.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)


def _off_diagonal(scores: Tensor) -> Tensor:
    """What of [B, L, L] is not on the diagonal, in reading order, [B, L (L - 1)]: by strides, since a mask's size must be counted."""
    side = scores.shape[1]
    return scores.flatten(1)[:, 1:].view(-1, side - 1, side + 1)[..., :-1].flatten(1)


def _rows(patches: Tensor) -> Tensor:
    """[B, L, C, h, w] as one batch, channels-last: 1.4 times as fast (measured) where convolutions run in bf16 on a processor."""
    return patches.flatten(0, 1).contiguous(memory_format=torch.channels_last)


def grid_offset(key: NoiseSource, step: int, size: int, images: Tensor) -> tuple[int, int]:
    """A random beginning (rows, columns) of the patch grid, so that no border of patches shows or is learned.

    A side keeps two whole patches; one without room for that keeps its grid.
    """
    draws = key.integers("grid", step, 2, size).tolist()
    rows, columns = (d % max(1, side - 2 * size + 1) for d, side in zip(draws, images.shape[2:], strict=True))
    return rows, columns
