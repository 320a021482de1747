"""Official guided-diffusion checkpoints (ADM, Dhariwal and Nichol 2021) as a `ScoreModel`.

ADM's U-Net and the one of `score.build_unet` are one function with other names for its weights:

    input_blocks.N, middle_block.N, output_blocks.N   ->   down_blocks.level, mid_block, up_blocks.level
    qkv [3 C, C, 1]                                   ->   to_q, to_k, to_v, each [C, C]

A state dict tells nearly all of its network by its shapes. How attention is cut into heads and how qkv is
ordered it does not tell: that, and what the caller wants checked, comes in a configuration in ADM's words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from diffusers import UNet2DModel
from pydantic import BeforeValidator, Field
from torch import Tensor

from miudiff.checkpoints import fill, load_tensors
from miudiff.config import LARGEST_TILE, Strict, parse
from miudiff.diffusion.score import NetworkConfig, ScoreModel, build_unet
from miudiff.diffusion.sde import MOST_STEPS, VPSDE
from miudiff.errors import CheckpointError, ConfigError

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = {"norm": "group_norm", "qkv": "to_q to_k to_v", "proj_out": "to_out.0"}


def _listed(value: object) -> object:
    """Lists as guided-diffusion's scripts write them: "32,16,8"."""
    return [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Integers = Annotated[tuple[int, ...] | None, BeforeValidator(_listed)]
Numbers = Annotated[tuple[float, ...] | None, BeforeValidator(_listed)]


class AdmConfig(Strict):
    """A network in the words of guided-diffusion's scripts and `UNetModel`; None: as the weights say."""

    image_size: int | None = Field(None, ge=8, le=LARGEST_TILE)
    in_channels: int | None = None
    model_channels: int | None = Field(None, description="`num_channels` of the scripts.")
    num_channels: int | None = None
    out_channels: int | None = None
    num_res_blocks: int | None = None
    attention_resolutions: Integers = Field(None, description="Sides (the scripts) or factors (`UNetModel`).")
    attention_downsampling: Integers = Field(None, description="The same as factors.")
    channel_mult: Numbers = None
    num_heads: int | None = Field(None, ge=1)
    num_head_channels: int | None = Field(None, ge=-1, description="-1 leaves it to `num_heads`.")
    num_heads_upsample: int | None = None
    use_new_attention_order: bool = Field(False, description="qkv is all q, k, v; else q, k, v by head.")
    use_scale_shift_norm: bool | None = None
    resblock_updown: bool | None = None
    learn_sigma: bool | None = None
    class_cond: bool | None = None
    num_classes: int | None = None
    dropout: float = Field(0.0, ge=0, lt=1)
    conv_resample: bool = True
    dims: int = 2
    diffusion_steps: int = Field(1000, ge=2, le=MOST_STEPS)
    noise_schedule: str = "linear"
    predict_xstart: bool = False
    rescale_timesteps: bool = False
    # The rest says how ADM trains, stores and samples; the weights make the same function.
    use_checkpoint: bool = False
    use_fp16: bool = False
    use_kl: bool = False
    rescale_learned_sigmas: bool = False
    timestep_respacing: str | tuple[int, ...] = ""


def load_adm(path: str | Path, config: Mapping[str, Any] | None = None) -> ScoreModel:
    """The score model in an official guided-diffusion checkpoint, a `.pt` state dict.

    Args:
        path: Such as `256x256_diffusion_uncond.pt`, or the `ema_0.9999_*.pt` of a training run.
        config: Its configuration in guided-diffusion's words (`AdmConfig`). Heads that it does not state are
            guided-diffusion's default if it states the network's width; if not, 64 channels each, as the
            published models have.

    Raises:
        CheckpointError: No ADM network, or one that is damaged, incomplete or not for RGB images.
        ConfigError: An unknown key, or a value that the weights contradict.
    """
    path = Path(path)
    given = parse(AdmConfig, config or {}, f"configuration of {path}")
    return ScoreModel(to_unet(load_tensors(path), given, str(path)), VPSDE(given.diffusion_steps)).eval()


def to_unet(state: Any, config: AdmConfig, where: str) -> UNet2DModel:
    """The network of an ADM state dict; `where` names its origin in messages.

    Raises:
        CheckpointError, ConfigError: As `load_adm`.
    """
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{where}: holds no plain state dict, expected one that guided-diffusion saved")
    network = _describe(state, config, where)
    with torch.device("meta"):  # no time lost on initial weights
        unet = build_unet(network)
    shapes = {name: value.shape for name, value in unet.state_dict().items()}
    weights = renamed(
        state, adm_names(network, shapes), shapes, network, config.use_new_attention_order, where
    )
    fill(unet, weights, where, "the network", assign=True)
    return unet.to(memory_format=torch.channels_last)


def renamed(
    state: Mapping[str, Tensor],
    names: Mapping[str, list[str]],
    shapes: Mapping[str, torch.Size],
    network: NetworkConfig,
    new_order: bool,
    where: str,
) -> dict[str, Tensor]:
    """The weights of an ADM state dict under our `names`, of our `shapes`.

    Raises:
        CheckpointError: A weight is missing, too much or of another shape; `where` names their origin.
    """
    _same_names(names, state, where)
    weights: dict[str, Tensor] = {}
    for source, targets in names.items():
        rows = state[source]
        rows = rows.squeeze(-1) if rows.ndim == 3 else rows  # a convolution over positions is a linear map
        first, *rest = shapes[targets[0]]
        if rows.shape != (len(targets) * first, *rest):
            found = f"'{source}' of shape {tuple(state[source].shape)}"
            raise CheckpointError(f"{where}: {found} does not fit the other weights; is the file damaged?")
        parts = [rows] if len(targets) == 1 else _split_qkv(rows, network, new_order)
        weights.update((target, part.float()) for target, part in zip(targets, parts, strict=True))
    return weights


def _split_qkv(rows: Tensor, network: NetworkConfig, new_order: bool) -> list[Tensor]:
    """Query, key and value rows, each [C, ...], of `rows` [3 C, ...]."""
    if new_order:
        return [part.clone() for part in rows.chunk(3)]
    channels = len(rows) // 3
    heads = network.heads or channels // (network.head_channels or channels)
    by_head = rows.reshape(heads, 3, -1, *rows.shape[1:])
    return [by_head[:, part].flatten(0, 1) for part in range(3)]


def adm_names(network: NetworkConfig, ours: Mapping[str, object]) -> dict[str, list[str]]:
    """Each ADM weight and its place in `ours`; three places for qkv."""
    return {
        f"{source}.{leaf}": [f"{target}.{leaf}" for target in targets.split()]
        for source, targets in _modules(network)
        for leaf in ("weight", "bias")
        if f"{targets.split()[0]}.{leaf}" in ours  # some blocks have no skip convolution, the classes no bias
    }


def _modules(network: NetworkConfig) -> Iterator[tuple[str, str]]:
    """Each module: its ADM name and ours, three with spaces between for qkv."""
    yield from [("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2")]
    yield from [("label_emb", "class_embedding"), ("input_blocks.0.0", "conv_in")]
    yield from [("out.0", "conv_norm_out"), ("out.2", "conv_out")]
    yield from _inside("middle_block.0", "mid_block.resnets.0", _RESNET)
    yield from _inside("middle_block.1", "mid_block.attentions.0", _ATTENTION)
    yield from _inside("middle_block.2", "mid_block.resnets.1", _RESNET)
    last, stride = len(network.channels) - 1, network.layers + 1
    down, up = (_RESNET, _RESNET) if network.residual_sampling else ({"op": "conv"}, {"conv": "conv"})
    for level in range(last + 1):
        attended = network.size >> level in network.attention
        for layer in range(network.layers):
            source = f"input_blocks.{1 + level * stride + layer}"
            yield from _block(source, f"down_blocks.{level}", layer, attended)
        if level < last:
            source = f"input_blocks.{(level + 1) * stride}.0"
            yield from _inside(source, f"down_blocks.{level}.downsamplers.0", down)
        coarse = last - level  # decoders count from the coarsest resolution
        for layer in range(stride):
            source = f"output_blocks.{coarse * stride + layer}"
            yield from _block(source, f"up_blocks.{coarse}", layer, attended)
        if level > 0:
            source = f"output_blocks.{coarse * stride + network.layers}.{2 if attended else 1}"
            yield from _inside(source, f"up_blocks.{coarse}.upsamplers.0", up)


def _block(source: str, target: str, layer: int, attended: bool) -> Iterator[tuple[str, str]]:
    yield from _inside(f"{source}.0", f"{target}.resnets.{layer}", _RESNET)
    if attended:
        yield from _inside(f"{source}.1", f"{target}.attentions.{layer}", _ATTENTION)


def _inside(source: str, target: str, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, ours in names.items():
        yield f"{source}.{name}", " ".join(f"{target}.{one}" for one in ours.split())


def _same_names(expected: Mapping[str, object], state: Mapping[str, Tensor], where: str) -> None:
    missing = [name for name in expected if name not in state]
    extra = [name for name in state if name not in expected]
    for verb, names in (("lacks", missing), ("also holds", extra)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(f"{where}: {verb} '{names[0]}'{more}, expected one whole ADM network")


def _describe(state: Mapping[str, Tensor], config: AdmConfig, where: str) -> NetworkConfig:
    """The network that the shapes tell, with `config` checked against them."""

    def length(name: str, axis: int = 0) -> int:
        if name not in state or state[name].ndim <= axis:
            found = f"its first key is '{next(iter(state))}'" if state else "it is empty"
            raise CheckpointError(f"{where}: no guided-diffusion U-Net, lacks '{name}' ({found})")
        return state[name].shape[axis]

    time_channels = length("time_embed.0.weight", 1)
    outputs, inputs = length("out.2.weight"), length("input_blocks.0.0.weight", 1)
    if inputs != 3 or outputs not in (3, 6):
        raise CheckpointError(f"{where}: {inputs} channels in, {outputs} out; expected 3 in, 3 or 6 out")
    levels, layers = _levels_and_layers(state, where)
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    channels = tuple(length(f"input_blocks.{block}.0.out_layers.3.weight") for block in firsts)
    if any(count % 32 for count in channels):
        raise CheckpointError(f"{where}: found {list(channels)} channels, expected multiples of 32")
    attended = [f"input_blocks.{block}.1.qkv.weight" in state for block in firsts]
    size = config.image_size or 2 ** (levels + 2)  # 6 resolutions at 256, 5 at 128: as the published models
    if size % 2 ** (levels - 1):
        raise ConfigError(f"{where}: 'image_size': {size} cannot be halved {levels - 1} times")
    attending = [c for c, a in zip(channels, attended, strict=True) if a] + [channels[-1]]
    heads, head_channels = _heads(config, attending, where)
    told: dict[str, object] = {
        "size": size,
        "channels": channels,
        "layers": layers,
        "attention": tuple(size >> level for level in range(levels) if attended[level]),
        "heads": heads,
        "head_channels": head_channels,
        "groups": 32,
        "time_channels": time_channels if time_channels != channels[0] else None,
        "scale_shift": length("input_blocks.1.0.emb_layers.1.weight") == 2 * channels[0],
        "residual_sampling": f"input_blocks.{layers + 1}.0.in_layers.0.weight" in state,
        "learned_variance": outputs == 6,
        "markers": length("label_emb.weight") if "label_emb.weight" in state else None,
        "dropout": config.dropout,
    }
    network = parse(NetworkConfig, told, where)
    _agree(network, time_channels, config, where)
    return network


def _levels_and_layers(state: Mapping[str, Tensor], where: str) -> tuple[int, int]:
    """How many resolutions and residual blocks at each: both halves have levels * (layers + 1) blocks."""
    names = [parts for name in state if len(parts := name.split(".")) > 3]
    encoder = {block for half, block, *_ in names if half == "input_blocks"}
    decoder = {(block, place, part) for half, block, place, part, *_ in names if half == "output_blocks"}
    # Up-sampling is a convolution, or a residual block that is not its block's first module.
    ends = {
        block for block, place, part in decoder if part == "conv" or (part == "in_layers" and place != "0")
    }
    levels = len(ends) + 1
    layers = len(encoder) // levels - 1
    blocks = len({block for block, *_ in decoder})
    if layers < 1 or len(encoder) != levels * (layers + 1) or blocks != len(encoder):
        counts = f"{len(encoder)} input and {blocks} output blocks at {levels} resolutions"
        raise CheckpointError(f"{where}: {counts} make no guided-diffusion U-Net; some may be missing")
    return levels, layers


def _heads(config: AdmConfig, channels: Sequence[int], where: str) -> tuple[int | None, int | None]:
    """The number of heads or their channels, whichever rules; `channels` are the attention layers'."""
    heads, width = config.num_heads, config.num_head_channels
    if width is None and heads is None and config.model_channels is None and config.num_channels is None:
        width = 64
    if width is None or width < 1:  # guided-diffusion's defaults are 4 heads in the scripts, 1 in `UNetModel`
        heads, width = heads or (4 if config.num_channels else 1), None
    else:
        heads = None
    if heads and config.num_heads_upsample not in (None, -1, heads):
        found = f"{config.num_heads_upsample}, but num_heads is {heads}"
        raise ConfigError(f"{where}: 'num_heads_upsample': found {found}; expected one number for both")
    for count in channels:
        if count % (heads or width or 1):
            pieces = f"{heads} heads" if heads else f"heads of {width} channels"
            fix = "give its num_heads or num_head_channels"
            raise ConfigError(f"{where}: attention over {count} channels cannot be cut into {pieces}; {fix}")
    return heads, width


def _agree(network: NetworkConfig, time_channels: int, config: AdmConfig, where: str) -> None:
    """Refuse what the weights contradict, and what no network of ours can be."""
    found: dict[str, object] = {
        "model_channels": time_channels,
        "num_channels": time_channels,
        "in_channels": 3,
        "out_channels": 6 if network.learned_variance else 3,
        "learn_sigma": network.learned_variance,
        "num_res_blocks": network.layers,
        "use_scale_shift_norm": network.scale_shift,
        "class_cond": network.markers is not None,
        "num_classes": network.markers,
        "conv_resample": True,
        "dims": 2,
        "noise_schedule": "linear",
        "predict_xstart": False,
        "rescale_timesteps": config.rescale_timesteps and config.diffusion_steps == 1000,
    }
    if len(network.channels) > 1:
        found["resblock_updown"] = network.residual_sampling
    stated = config.model_dump(include=set(found))
    for key, value in found.items():
        if stated[key] not in (None, value):
            raise ConfigError(f"{where}: '{key}': found {stated[key]}, expected {value}, as the weights say")
    if config.channel_mult and tuple(int(m * time_channels) for m in config.channel_mult) != network.channels:
        multiples = [c / time_channels for c in network.channels]
        raise ConfigError(f"{where}: 'channel_mult': found {list(config.channel_mult)}, expected {multiples}")
    # Both sides and factors go by the name of resolutions: what the weights say decides which is meant.
    levels = range(len(network.channels))
    possible = {1 << level for level in levels}
    attended = {1 << level for level in levels if network.size >> level in network.attention}
    resolutions, factors = config.attention_resolutions, config.attention_downsampling
    for key, values in (("attention_resolutions", resolutions), ("attention_downsampling", factors)):
        if values is None:
            continue
        sides = {network.size // value for value in values if value > 0}
        if attended not in (possible & sides, possible & set(values)):
            expected = f"sides {list(network.attention)} or factors {sorted(attended)}"
            raise ConfigError(f"{where}: '{key}': found {list(values)}, expected {expected}")
