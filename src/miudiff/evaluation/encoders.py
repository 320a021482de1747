"""Features of image files, for FID and KID, by an encoder whose weights the user supplies as a file.

Weights are read as plain tensors: safetensors, or a PyTorch file with nothing but tensors in it. TorchScript
is not accepted, because loading it runs the file's own code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from miudiff.checkpoints import load_tensors, load_weights
from miudiff.errors import CheckpointError
from miudiff.evaluation import inception, vision_transformer
from miudiff.images import read_image
from miudiff.progress import Progress
from miudiff.stains import Floats

EXPECTED = (
    "expected FID-Inception (pt_inception-2015-12-05-6726825d.pth of pytorch-fid) or a vision transformer "
    "with timm's names"
)


@dataclass(frozen=True)
class Encoder:
    """A network that gives features [B, D] of RGB [B, 3, H, W] in [0, 1]."""

    kind: Literal["inception", "vit"]
    network: Callable[[Tensor], Tensor]
    device: torch.device

    def features(self, files: Sequence[Path], say: Callable[[str], None]) -> Floats:
        """Features [N, D] of image files, in their order."""
        found: list[Tensor] = []
        progress = Progress("images", say, "features")
        with torch.inference_mode():
            # One by one: files may differ in size, and each is brought to the network's.
            for file in progress.over(files, len(files)):
                image = torch.tensor(read_image(file)).permute(2, 0, 1)[None]
                found.append(self.network(image.to(self.device).float() / 255).cpu())
        return np.asarray(torch.cat(found).double().numpy())


def load_encoder(path: Path, device: torch.device) -> Encoder:
    """An encoder from a .safetensors, .pth, .pt or .bin file.

    The number of heads of a vision transformer is read from a `config.json` beside the file (`num_heads`),
    else it is the width over 64.

    Raises:
        CheckpointError: Not there, damaged, more than tensors, or of another network.
    """
    content = load_weights(path) if path.suffix == ".safetensors" else load_tensors(path)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(each, Tensor) for each in content.values()):
        raise CheckpointError(f"{path}: holds more than named tensors, {EXPECTED}")
    weights = {str(name): each.to(device, torch.float32) for name, each in content.items()}
    try:
        if inception.SIGN in weights:
            encoder = Encoder("inception", inception.Inception(weights), device)
        elif vision_transformer.SIGN in weights:
            transformer = vision_transformer.VisionTransformer(weights, _heads(path.with_name("config.json")))
            encoder = Encoder("vit", transformer, device)
        else:
            raise CheckpointError(f"{path}: weights of another network, {EXPECTED}")
        with torch.inference_mode():
            encoder.network(torch.zeros(1, 3, 64, 64, device=device))
    except (KeyError, RuntimeError, ValueError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise CheckpointError(f"{path}: is not whole ({reason}), {EXPECTED}") from error
    return encoder


def _heads(path: Path) -> int | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as the encoder's configuration ({error})") from error
    for part in (content, content.get("model_args", {})) if isinstance(content, dict) else ():
        if isinstance(part, dict) and isinstance(part.get("num_heads"), int):
            return int(part["num_heads"])
    return None
