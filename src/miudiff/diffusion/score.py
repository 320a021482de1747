"""The score model: a U-Net that tells the noise in an image, and so the score of the IHC distribution at each noise level.

    s(y, t) = -eps(y, t) / sqrt(1 - alpha_bar_t)

The network is diffusers' `UNet2DModel`. `NetworkConfig` describes it in the words of the paper's lineage (guided-diffusion);
its defaults are that lineage's network of 97.5 M parameters. A model that knows several markers takes the marker as a class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import Timesteps
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from miudiff.checkpoints import WEIGHTS, fill, load_weights, read_json
from miudiff.config import LARGEST_TILE, Strict, Width, parse
from miudiff.diffusion.graphs import Forward
from miudiff.diffusion.sampling import denoised
from miudiff.diffusion.sde import VPSDE, Times, at
from miudiff.errors import CheckpointError, ConfigError

Channels = Annotated[tuple[Width, ...], Field(min_length=1, max_length=12)]
Layers = Annotated[int, Field(ge=1, le=32)]


class NetworkConfig(Strict):
    """A U-Net for images of `size` pixels."""

    size: int = Field(
        256, ge=8, le=LARGEST_TILE, description="Tile side that `attention` refers to; other sides work too."
    )
    channels: Channels = Field((128, 128, 256, 256, 512, 512), description="Channels at each resolution.")
    layers: Layers = Field(1, description="Residual blocks at each resolution.")
    unshuffle: Annotated[int, Field(ge=1, le=4)] = Field(
        1,
        description="Squares of so many pixels a side are folded into channels (`pixel_unshuffle`): 2 takes a third of the time.",
    )
    attention: tuple[int, ...] = Field(
        (32, 16, 8), max_length=64, description="Sides of the feature maps that get self-attention."
    )
    head_channels: Width | None = Field(64, description="Channels of an attention head.")
    heads: Width | None = Field(None, description="Heads at every resolution, in place of `head_channels`.")
    time_channels: Annotated[Width, Field(ge=2)] | None = Field(
        None, description="Width of the time's sinusoids; None: `channels[0]`."
    )
    groups: Width = Field(32, description="Groups of each GroupNorm.")
    scale_shift: bool = Field(True, description="Time enters as scale and shift of the norm.")
    residual_sampling: bool = Field(True, description="Up- and down-sampling inside residual blocks.")
    learned_variance: bool = Field(True, description="A second half of the output interpolates the variance.")
    markers: Width | None = Field(None, description="Number of markers of a conditional model.")
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _divides(self) -> Self:
        """What diffusers would meet as a shape that does not fit, or round off without a word."""
        if uneven := [width for width in self.channels if width % self.groups]:
            raise ValueError(f"channels: found {uneven[0]}, expected multiples of groups, {self.groups}")
        # The middle block attends, too.
        attending = {width for width, attends in zip(self.channels, self.attends, strict=True) if attends} | {
            self.channels[-1]
        }
        key, parts = ("heads", self.heads) if self.heads else ("head_channels", self.head_channels)
        if parts and (uneven := sorted(width for width in attending if width % parts)):
            raise ValueError(
                f"{key}: found {parts}, expected a divisor of the {uneven[0]} channels that attend"
            )
        return self

    @property
    def attends(self) -> list[bool]:
        """Whether each resolution has self-attention."""
        return [self.size // self.unshuffle >> level in self.attention for level in range(len(self.channels))]

    @property
    def multiple(self) -> int:
        """What the sides of a tile must be a multiple of."""
        return self.unshuffle * 2 ** (len(self.channels) - 1)


def build_unet(config: NetworkConfig, inputs: int = 3) -> UNet2DModel:
    """A fresh network for `config`, channels-last, of images of so many channels."""
    attended, folded = config.attends, 3 * config.unshuffle**2
    # diffusers' plain blocks ignore `downsample_type`; the ones with attention obey it.
    sampling, down, up = (
        ("resnet", "ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
        if config.residual_sampling
        else ("conv", "DownBlock2D", "UpBlock2D")
    )
    unet = UNet2DModel(
        sample_size=config.size // config.unshuffle,
        in_channels=inputs * config.unshuffle**2,
        out_channels=2 * folded if config.learned_variance else folded,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        down_block_types=tuple("AttnDownBlock2D" if a else down for a in attended),
        up_block_types=tuple("AttnUpBlock2D" if a else up for a in reversed(attended)),
        downsample_type=sampling,
        upsample_type=sampling,
        resnet_time_scale_shift="scale_shift" if config.scale_shift else "default",
        attention_head_dim=None if config.heads else config.head_channels,
        norm_num_groups=config.groups,
        norm_eps=1e-5,
        attn_norm_num_groups=config.groups,
        dropout=config.dropout,
        num_class_embeds=config.markers,
        time_embedding_dim=4 * config.time_channels if config.time_channels else None,
    )
    _extend(unet, config.heads, config.time_channels)
    nn.init.zeros_(
        unet.conv_out.weight
    )  # the first guess is "no noise": the loss starts at 1, not at a random value
    nn.init.zeros_(unet.conv_out.bias)
    return unet.to(memory_format=torch.channels_last)


Down = Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
Up = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
Sampling = Literal["conv", "resnet"]


class _Stated(BaseModel):
    """The networks among diffusers' `UNet2DModel` that a `ScoreModel` can be, in the words of its `config.json`."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)  # of other versions

    sample_size: int | tuple[int, int] | None = None
    in_channels: Literal[3, 12, 27, 48] = 3
    out_channels: Annotated[int, Field(ge=3, le=96)] = 3
    center_input_sample: Literal[False] = False
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: Annotated[int, Field(ge=1, le=2**18)] | None = None
    freq_shift: int = Field(0, ge=0, le=1)
    flip_sin_to_cos: bool = True
    down_block_types: tuple[Down, ...] = Field(max_length=12)
    mid_block_type: Literal["UNetMidBlock2D"] = "UNetMidBlock2D"
    up_block_types: tuple[Up, ...] = Field(max_length=12)
    block_out_channels: Channels
    layers_per_block: Layers = 2
    mid_block_scale_factor: float = Field(1, gt=0, le=100)
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Sampling = "conv"
    upsample_type: Sampling = "conv"
    dropout: float = Field(0.0, ge=0, lt=1)
    act_fn: Literal["silu", "swish", "mish", "gelu", "relu"] = "silu"
    attention_head_dim: Width | None = 8
    norm_num_groups: Width = 32
    attn_norm_num_groups: Width | None = None
    norm_eps: float = Field(1e-5, gt=0, lt=1)
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    add_attention: bool = True
    class_embed_type: None = None
    num_class_embeds: Width | None = None
    num_train_timesteps: int | None = None  # of learned embeddings alone
    num_attention_heads: Width | None = None  # `_extend`'s
    time_channels: Width | None = None

    @model_validator(mode="after")
    def _noise_and_variance(self) -> Self:
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise ValueError(
                f"out_channels: found {self.out_channels}, expected in_channels, {self.in_channels}, or twice that"
            )
        return self


def load_unet(folder: Path) -> UNet2DModel:
    """The network in a diffusers-style folder: config.json and diffusion_pytorch_model.safetensors.

    Raises:
        CheckpointError: Something is missing or damaged, or weights and configuration do not belong together.
    """
    config, weights = folder / "config.json", folder / WEIGHTS
    try:
        stated = parse(_Stated, read_json(config), "describes no UNet2DModel that this package knows")
        values = stated.model_dump(exclude={"num_attention_heads", "time_channels"}, exclude_unset=True)
        with torch.device(
            "meta"
        ):  # no time lost on initial weights, and no memory taken by sizes that are none
            unet = UNet2DModel(**values)
            _extend(unet, stated.num_attention_heads, stated.time_channels)
    except (ConfigError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{config}: {' '.join(str(error).split())[:200]}") from error
    fill(unet, load_weights(weights), weights, "its config.json", assign=True)
    return unet.to(memory_format=torch.channels_last).eval()


def _extend(unet: UNet2DModel, heads: int | None, time_channels: int | None) -> None:
    """Set what diffusers' configuration has no word for, and record it there for `load_unet`."""
    if heads:
        for module in unet.modules():
            if isinstance(module, Attention):
                if module.inner_dim % heads:
                    raise ValueError(
                        f"num_attention_heads: found {heads}, expected a divisor of {module.inner_dim} channels"
                    )
                module.heads = module.sliceable_head_dim = heads
                module.scale = (module.inner_dim // heads) ** -0.5
        unet.register_to_config(num_attention_heads=heads)
    if time_channels:
        unet.time_proj = Timesteps(time_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        unet.time_embedding.linear_1 = nn.Linear(time_channels, unet.time_embedding.linear_1.out_features)
        unet.register_to_config(time_channels=time_channels)


class ScoreModel(nn.Module):
    """A U-Net with its noise schedule.

    Args:
        unet: 3 u^2 channels in, as many (noise) or twice as many (noise, variance) out, where squares of u pixels a side are channels.
        sde: The full chain that the network was trained on.
        marker: For a model of several markers, the one to speak of; None for a model of one.
    """

    def __init__(self, unet: UNet2DModel, sde: VPSDE | None = None, marker: int | None = None) -> None:
        super().__init__()
        self.unet = unet
        self.sde = sde or VPSDE()
        self.marker = marker

    @property
    def learned_variance(self) -> bool:
        return self.unet.config.out_channels == 2 * self.unet.config.in_channels

    @property
    def unshuffle(self) -> int:
        """u: squares of so many pixels a side are channels of the network."""
        return math.isqrt(self.unet.config.in_channels // 3)

    @property
    def multiple(self) -> int:
        """What the sides of a tile must be a multiple of."""
        return self.unshuffle * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def _folded(self, y: Tensor) -> Tensor:
        return F.pixel_unshuffle(y, self.unshuffle).contiguous(memory_format=torch.channels_last)

    def forward(self, y: Tensor, t: Tensor, marker: Tensor | None = None) -> Tensor:
        """The network's raw output [B, 3 or 6, H, W], float32, for indices `t` [B] of the full chain."""
        if marker is None and self.marker is not None:
            marker = torch.full((len(y),), self.marker, device=y.device)
        output = self.unet(self._folded(y), t, class_labels=marker).sample.float()
        return F.pixel_shuffle(output, self.unshuffle)

    def predict(
        self, y: Tensor, t: Times, sde: VPSDE | None = None, forward: Forward | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Noise and variance fraction (None where the variance is not learned), each [B, 3, H, W].

        Args:
            t: Counts in `sde`, a respaced chain perhaps; by default in the model's own.
            forward: Computes what this network does in a quicker way (`diffusion.graphs`).
        """
        times = (sde or self.sde).network_time(t)
        if isinstance(times, int):
            times = torch.full((len(y),), times, device=y.device)
        output = (forward or self)(y, times)
        return output[:, :3], output[:, 3:] if self.learned_variance else None

    def predict_noise(self, y: Tensor, t: Times) -> Tensor:
        """eps(y, t), [B, 3, H, W]."""
        return self.predict(y, t)[0]

    def denoise(self, y: Tensor, t: Times) -> Tensor:
        """Tweedie's estimate of the clean image, [B, 3, H, W], not clipped."""
        return denoised(self.sde, y, t, self.predict_noise(y, t))

    def score(self, y: Tensor, t: Times) -> Tensor:
        """grad log q_t(y), [B, 3, H, W]."""
        return -self.predict_noise(y, t) / at(self.sde.spread, t, y)

    def features(self, y: Tensor, t: Times, taps: Sequence[int]) -> list[Tensor]:
        """Encoder features [B, C, h, w] after the blocks `taps`.

        Blocks count as guided-diffusion's `input_blocks`: 0 is the first convolution, then each residual block and each
        down-sampling in order. Attention is part of its residual block.

        Raises:
            ValueError: A tap beyond the encoder's last block.
        """
        unet = self.unet
        time = torch.full((len(y),), t, device=y.device) if isinstance(t, int) else t
        emb = unet.time_embedding(unet.time_proj(time).to(unet.dtype))
        if unet.class_embedding is not None:
            emb = emb + unet.class_embedding(torch.full((len(y),), self.marker or 0, device=y.device))
        hidden = unet.conv_in(self._folded(y))
        blocks = [hidden]
        for down in unet.down_blocks:
            hidden, outputs = down(hidden_states=hidden, temb=emb)
            blocks.extend(outputs)
            if len(blocks) > max(taps):
                break
        if max(taps) >= len(blocks):
            raise ValueError(f"tap {max(taps)} is beyond the encoder's {len(blocks)} blocks")
        return [blocks[tap].float() for tap in taps]

    @property
    def encoder_blocks(self) -> int:
        """How many blocks `features` can tap."""
        config = self.unet.config
        return len(config.block_out_channels) * (config.layers_per_block + 1)

    def default_taps(self) -> list[int]:
        """Five taps from the first block to the last: [0, 2, 5, 8, 11] on the paper's network, as ZeCon has them."""
        return [(self.encoder_blocks - 1) * i // 4 for i in range(5)]


def parameter_count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
