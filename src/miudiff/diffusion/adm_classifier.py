"""Official guided-diffusion classifiers (`256x256_classifier.pt`) as a `NoisedClassifier`.

The first half has the names that `adm.py` knows. The pool's queries, keys and values are in whole blocks, whatever the order inside
the network. A state dict does not tell its number of blocks at a resolution, nor how attention is cut into heads: guided-diffusion's
published classifiers have 2 and heads of 64 channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from miudiff.checkpoints import load_tensors
from miudiff.config import parse
from miudiff.diffusion.adm import adm_names, renamed
from miudiff.diffusion.classifier import ClassifierNetwork, NoisedClassifier, filled
from miudiff.errors import CheckpointError


def load_adm_classifier(
    path: str | Path, layers: int = 2, head_channels: int = 64, new_order: bool = False
) -> NoisedClassifier:
    """The classifier in an official checkpoint, a `.pt` state dict, ready for use.

    Args:
        layers: Residual blocks at each resolution, guided-diffusion's `classifier_depth`.
        head_channels: Channels of an attention head.
        new_order: Its `use_new_attention_order`.

    Raises:
        CheckpointError: No ADM classifier with attention as its pool and sampling by residual blocks, or one that is damaged,
            incomplete or of other `layers` or heads.
    """
    path = Path(path)
    state = load_tensors(path)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: holds no plain state dict, expected one that guided-diffusion saved")
    config = _describe(state, layers, head_channels, str(path))
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in NoisedClassifier(config).state_dict().items()}
    names = adm_names(config.unet(), shapes)
    names |= {f"out.0.{leaf}": [f"norm.{leaf}"] for leaf in ("weight", "bias")}
    names |= {f"out.2.qkv_proj.{leaf}": [f"pool.qkv.{leaf}"] for leaf in ("weight", "bias")}
    names |= {f"out.2.c_proj.{leaf}": [f"pool.out.{leaf}"] for leaf in ("weight", "bias")}
    names["out.2.positional_embedding"] = ["pool.positions"]
    weights = renamed(state, names, shapes, config.unet(), new_order, str(path))
    return filled(config, weights, str(path))


def _describe(state: Mapping[str, Tensor], layers: int, head_channels: int, where: str) -> ClassifierNetwork:
    """The network that the shapes tell."""

    def length(name: str, axis: int = 0) -> int:
        if name not in state or state[name].ndim <= axis:
            raise CheckpointError(f"{where}: no guided-diffusion classifier, lacks '{name}'")
        return state[name].shape[axis]

    side = math.isqrt(length("out.2.positional_embedding", 1))  # of one place more than the map has
    blocks = len({name.split(".")[1] for name in state if name.startswith("input_blocks.")})
    levels = blocks // (layers + 1)
    if levels * (layers + 1) != blocks:
        raise CheckpointError(f"{where}: {blocks} input blocks cannot be levels of {layers} layers each")
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    channels = tuple(length(f"input_blocks.{block}.0.out_layers.3.weight") for block in firsts)
    attended = [f"input_blocks.{block}.1.qkv.weight" in state for block in firsts]
    attending = [c for c, a in zip(channels, attended, strict=True) if a] + [channels[-1]]
    for count, multiple in [(c, 32) for c in channels] + [(c, head_channels) for c in attending]:
        if count % multiple:
            raise CheckpointError(f"{where}: {count} channels, expected a multiple of {multiple}")
    size, time_channels = side << (levels - 1), length("time_embed.0.weight", 1)
    told: dict[str, object] = {
        "size": size,
        "channels": channels,
        "layers": layers,
        "attention": tuple(size >> level for level in range(levels) if attended[level]),
        "head_channels": head_channels,
        "time_channels": time_channels if time_channels != channels[0] else None,
        "classes": length("out.2.c_proj.weight"),
    }
    return parse(ClassifierNetwork, told, where)
