"""A classifier of noised images, source or target: the network whose features EGSDE compares.

    logits = pool(silu(norm(h))),   h = middle(encoder(y, t))          features(y, t) = h

It is guided-diffusion's classifier: the first half of its U-Net, and attention from the mean of all places as the pool (Radford et al.
2021). The half is taken from `score.build_unet`; `adm_classifier.py` reads official checkpoints, `classifier_learner.py` trains.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from miudiff.checkpoints import WEIGHTS, fill, load_weights, read_json, save_weights, write_json
from miudiff.config import LARGEST_TILE, Strict, Width, parse
from miudiff.diffusion.score import Channels, Layers, NetworkConfig, build_unet
from miudiff.diffusion.sde import Times
from miudiff.errors import CheckpointError, ConfigError


class ClassifierNetwork(Strict):
    """The classifier's network; the defaults are those of guided-diffusion's at 256 x 256, with two classes."""

    size: int = Field(
        256,
        ge=8,
        le=LARGEST_TILE,
        description="Side of the images that it classifies; features are of any side.",
    )
    channels: Channels = Field((128, 128, 256, 256, 512, 512), description="Channels at each resolution.")
    layers: Layers = Field(2, description="Residual blocks at each resolution.")
    attention: tuple[int, ...] = Field(
        (32, 16, 8), max_length=64, description="Sides of the feature maps that get self-attention."
    )
    head_channels: Width = Field(64, description="Channels of an attention head.")
    time_channels: Annotated[Width, Field(ge=2)] | None = Field(
        None, description="Width of the time's sinusoids; None: `channels[0]`."
    )
    groups: Width = Field(32, description="Groups of each GroupNorm.")
    classes: Annotated[Width, Field(ge=2)] = 2

    @model_validator(mode="after")
    def _is_half_a_unet(self) -> Self:
        """What `NetworkConfig` refuses is refused here, too."""
        if not self.pooled:
            raise ValueError(
                f"size: found {self.size}, expected at least {2 ** (len(self.channels) - 1)} for {len(self.channels)} resolutions"
            )
        try:
            self.unet()
        except ValidationError as error:
            raise ValueError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error
        return self

    @property
    def pooled(self) -> int:
        """Side of the map that is pooled."""
        return self.size >> (len(self.channels) - 1)

    def unet(self) -> NetworkConfig:
        """The U-Net whose first half this is."""
        return NetworkConfig(**self.model_dump(exclude={"classes"}), learned_variance=False)


class AttentionPool(nn.Module):
    """Attention in which the mean of all places asks all places.

    Args:
        side: Of the square map [B, C, side, side] that it pools.
    """

    def __init__(self, channels: int, side: int, head_channels: int, outputs: int) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.positions = nn.Parameter(torch.randn(channels, side**2 + 1) / channels**0.5)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs]."""
        rows = x.flatten(2)
        rows = torch.cat([rows.mean(2, keepdim=True), rows], 2) + self.positions  # the mean is place 0
        query, key, value = (
            part.unflatten(2, (-1, self.head_channels)).transpose(1, 2)
            for part in self.qkv(rows.transpose(1, 2)).chunk(3, 2)
        )
        answer = F.scaled_dot_product_attention(query[:, :, :1], key, value)  # of place 0 alone
        return self.out(answer.flatten(1))


class NoisedClassifier(nn.Module):
    """Tells the classes of images that are noised to an index of the full chain."""

    def __init__(self, config: ClassifierNetwork) -> None:
        super().__init__()
        self.config = config
        unet = build_unet(config.unet())  # of which the decoder is left behind
        self.time_proj, self.time_embedding = unet.time_proj, unet.time_embedding
        self.conv_in, self.down_blocks, self.mid_block = unet.conv_in, unet.down_blocks, unet.mid_block
        channels = config.channels[-1]
        self.norm = nn.GroupNorm(config.groups, channels, eps=1e-5)
        self.pool = AttentionPool(channels, config.pooled, config.head_channels, config.classes)

    def features(self, y: Tensor, t: Times) -> Tensor:
        """The middle block's output [B, C, h, w] for images `y` [B, 3, H, W] of any side, at index `t` or indices [B]."""
        times = torch.full((len(y),), t, device=y.device) if isinstance(t, int) else t
        time = self.time_embedding(self.time_proj(times).to(self.conv_in.weight.dtype))
        hidden = self.conv_in(y.contiguous(memory_format=torch.channels_last))
        for block in self.down_blocks:
            hidden, _ = block(hidden, time)
        return self.mid_block(hidden, time)

    def forward(self, y: Tensor, t: Times) -> Tensor:
        """Logits [B, classes] of images `y` [B, 3, size, size].

        Raises:
            ConfigError: Images of another side.
        """
        size = self.config.size
        if y.shape[-2:] != (size, size):
            raise ConfigError(
                f"images of {y.shape[-1]} x {y.shape[-2]} pixels, expected {size} x {size}, the classifier's network.size"
            )
        return self.pool(F.silu(self.norm(self.features(y, t))))


def save_classifier(folder: Path, classifier: NoisedClassifier) -> None:
    """Write `config.json` and the weights."""
    write_json(folder / "config.json", classifier.config.model_dump(mode="json"))
    save_weights(folder / WEIGHTS, classifier.state_dict())


def load_classifier(folder: Path) -> NoisedClassifier:
    """The classifier in a folder that `save_classifier` wrote, ready for use, without gradients of its weights.

    Raises:
        CheckpointError: Something is missing or damaged, or weights and configuration do not belong together.
    """
    settings, weights = folder / "config.json", folder / WEIGHTS
    try:
        config = parse(ClassifierNetwork, read_json(settings), str(settings))
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return filled(config, load_weights(weights), str(weights))


def filled(config: ClassifierNetwork, weights: dict[str, Tensor], where: str) -> NoisedClassifier:
    """A classifier of these weights, ready for use, without gradients of them.

    Raises:
        CheckpointError: They do not fit; `where` names their origin.
    """
    with torch.device("meta"):  # no time lost on initial weights, and no memory before the weights fit
        classifier = NoisedClassifier(config)
    fill(classifier, weights, where, "the network", assign=True)
    classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub leaves it out
    return classifier.eval().requires_grad_(False)
