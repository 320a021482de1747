"""The networks of CUT and its descendants: a ResNet generator whose encoder is tapped, and a discriminator of patches.

    L_D = ½ E[D(G(x))²] + ½ E[(D(y) − 1)²],   L_G = E[(D(G(x)) − 1)²]          (least squares; Mao et al. 2017)

Down- and upsampling are blurred against aliasing (Zhang 2019). Layers stand at the places, and under the names, that the official
CUT code (Park et al. 2020) gives them, so that its checkpoints load here and `taps` mean the same features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from miudiff.checkpoints import fill, load_tensors
from miudiff.config import Strict, Width
from miudiff.errors import CheckpointError

GAIN = 0.02  # of the initial weights, as CUT has it
FIRST_BLOCK = 12  # the place of the first residual block in `Generator.model`


class GeneratorConfig(Strict):
    """A generator; the defaults are CUT's network of 11,378,179 parameters."""

    width: Width = Field(64, description="Channels after the first convolution (CUT's ngf).")
    blocks: int = Field(9, ge=1, le=256, description="Residual blocks at a quarter of the resolution.")
    spectral_norm: bool = Field(False, description="Divide each convolution by its spectral norm.")

    @property
    def encoder_layers(self) -> int:
        """How many layers of `Generator.model` the encoder has."""
        return FIRST_BLOCK + self.blocks


class DiscriminatorConfig(Strict):
    """A PatchGAN; the defaults are CUT's 70 x 70 one of 2,764,737 parameters."""

    width: Width = Field(64, description="Channels after the first convolution (CUT's ndf).")
    layers: int = Field(3, ge=1, le=10, description="Halvings of the resolution.")
    spectral_norm: bool = Field(False, description="Divide each convolution by its spectral norm.")

    @property
    def least(self) -> int:
        """The smallest side of an image, of which two positions are left for the last norm."""
        return 2 ** (self.layers + 2)


def blur_kernel(taps: Sequence[float], channels: int, gain: float = 1.0) -> Tensor:
    """The outer product of `taps` with themselves, summing to `gain`, for each channel: [C, 1, k, k]."""
    row = torch.tensor(taps)
    kernel = torch.outer(row, row)
    return (gain * kernel / kernel.sum()).repeat(channels, 1, 1, 1)


class Downsample(nn.Module):
    """Half the height and width, rounded up, after a binomial blur; mirrored at the border."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", blur_kernel((1.0, 2.0, 1.0), channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


class Upsample(nn.Module):
    """Twice the height and width, interpolated with [1, 3, 3, 1]; the border is repeated."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", blur_kernel((1.0, 3.0, 3.0, 1.0), channels, gain=4.0))

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        doubled = F.conv_transpose2d(padded, self.filt, stride=2, padding=2, groups=x.shape[1])
        return doubled[:, :, 1:-1, 1:-1]


class _Convolution(nn.Conv2d):
    """A convolution that takes its weight in float32: the power iteration of a spectral norm does not run under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class ResidualBlock(nn.Module):
    """x + norm(conv(ReLU(norm(conv(x))))), mirrored at the border."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            _Convolution(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1),
            _Convolution(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)


def _normed(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.InstanceNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]


class Generator(nn.Module):
    """An image to an image, [B, 3, H, W] in [-1, 1] both; H and W are multiples of 4."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), *_normed(_Convolution(3, width, 7))]
        for _ in range(2):
            layers += [*_normed(_Convolution(width, 2 * width, 3, padding=1)), Downsample(2 * width)]
            width *= 2
        layers += [ResidualBlock(width) for _ in range(config.blocks)]
        for _ in range(2):
            layers += [Upsample(width), *_normed(_Convolution(width, width // 2, 3, padding=1))]
            width //= 2
        layers += [nn.ReflectionPad2d(3), _Convolution(width, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)
        initialise(self, config.spectral_norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def features(self, x: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """What the layers at the places `taps` of `model` give, in that order; no layer beyond the last of them runs."""
        found = {}
        for place, layer in enumerate(list(self.model)[: max(taps) + 1]):
            x = layer(x)
            if place in taps:
                found[place] = x
        return [found[place] for place in taps]

    def channels(self, taps: Sequence[int]) -> list[int]:
        """The channels of `features`."""
        counts = [3]
        for layer in self.model:
            counts.append(layer.out_channels if isinstance(layer, nn.Conv2d) else counts[-1])
        return [counts[place + 1] for place in taps]


class Discriminator(nn.Module):
    """How real each patch of an image looks: [B, 3, H, W] in [-1, 1] to [B, 1, h, w], 1 is real."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        widths = [config.width * min(2**level, 8) for level in range(config.layers + 1)]
        layers: list[nn.Module] = [
            _Convolution(3, widths[0], 4, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
            Downsample(widths[0]),
        ]
        for level in range(1, config.layers + 1):
            layers += [
                _Convolution(widths[level - 1], widths[level], 4, padding=1),
                nn.InstanceNorm2d(widths[level]),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            if level < config.layers:
                layers.append(Downsample(widths[level]))
        self.model = nn.Sequential(*layers, _Convolution(widths[-1], 1, 4, padding=1))
        initialise(self, config.spectral_norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def initialise(network: nn.Module, spectral: bool = False) -> None:
    """Xavier's normal weights, small, and no biases, channels-last; then the spectral norms, if wanted.

    A norm's power iteration keeps its two vectors as buffers: they are in the module's state dict, so a resumed run goes on with
    them, and in eval mode they stand still.
    """
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(module.weight, gain=GAIN)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if spectral:
                spectral_norm(module)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub leaves it out


def least_squares(prediction: Tensor, real: bool) -> Tensor:
    """Mean squared distance of a discriminator's output to 1 (`real`) or 0; a scalar."""
    return (prediction.float() - float(real)).square().mean()


def load_cut(path: Path) -> Generator:
    """The generator in a checkpoint of the official CUT or ASP code (`latest_net_G.pth`).

    Spectral norms are folded into the weights, as they act in eval mode.

    Raises:
        CheckpointError: Not there, not plain tensors, or not a ResNet generator with blurred resampling.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CheckpointError(f"{path}: expected the state dict of a generator")
    tensors = _folded({str(name).removeprefix("module."): value for name, value in content.items()})
    first = tensors.get("model.1.weight")
    if first is None or first.shape[1:] != (3, 7, 7):
        raise CheckpointError(
            f"{path}: is no ResNet generator of CUT (its 'model.1.weight' is {'missing' if first is None else tuple(first.shape)})"
        )
    if "model.7.filt" not in tensors:
        raise CheckpointError(
            f"{path}: was trained with --no_antialias, expected CUT's default with blurred resampling"
        )
    blocks = {
        name.split(".")[1] for name in tensors if re.fullmatch(r"model\.\d+\.conv_block\.1\.weight", name)
    }
    generator = Generator(GeneratorConfig(width=len(first), blocks=max(1, len(blocks))))
    fill(generator, tensors, path, "CUT's generator")
    return generator.eval()


def _folded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """W / (uᵀ W v) in place of the W, u and v that torch's older spectral norm keeps."""
    found = {}
    for name, value in tensors.items():
        stem, _, kind = name.rpartition("_")
        if stem and kind == "orig":
            u, v = tensors.get(f"{stem}_u"), tensors.get(f"{stem}_v")
            if u is not None and v is not None:
                found[stem] = value / torch.dot(u, value.flatten(1) @ v)
        elif not name.endswith(("weight_u", "weight_v")):
            found[name] = value
    return found
