"""One-step translation by a student of MIU-Diff, and the model folder that keeps it.

    x = sqrt(alpha_bar) s + sqrt(1 - alpha_bar) z          s: the H&E in the marker's colours, noised to index S - 1
    y = (x - sqrt(1 - alpha_bar) f(x, he, marker)) / sqrt(alpha_bar)

The teacher's first step estimates the clean image in the same way, from x alone; a student with the teacher's own network begins
as that estimate. The student also sees the H&E in colour. `distillation` trains it.

model_index.json                      its card, and the teacher's name and digest
student/                              config.json and diffusion_pytorch_model.safetensors
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from miudiff.checkpoints import WEIGHTS, fill, load_weights, read_json, save_weights, write_json
from miudiff.config import Strict
from miudiff.device import Placement
from miudiff.diffusion.score import NetworkConfig, ScoreModel, build_unet
from miudiff.diffusion.sde import VPSDE
from miudiff.errors import CheckpointError
from miudiff.images import to_gray
from miudiff.methods.folder import INDEX, fingerprint, whole
from miudiff.methods.model import Card, check_markers, model_folder, parse_part, write_index
from miudiff.methods.palette import Palette
from miudiff.noise import NoiseSource, normal

PART = "student"


class StudentConfig(Strict):
    """A student's network and the noise of its input."""

    network: NetworkConfig = Field(
        description="Without a learned variance; its input has twice the channels, for the H&E."
    )
    start: int = Field(ge=2, le=1000, description="S: the input is noised to index S - 1 of the 1000.")
    palette: bool = Field(description="Whether the input has the marker's colours, as the teacher's.")


class Student(nn.Module):
    """The network f and the estimate y that is made of its output."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = build_unet(config.network.model_copy(update={"learned_variance": False}), inputs=6)
        self.sde, self.index = VPSDE(), config.start - 1

    def forward(self, noised: Tensor, he: Tensor, marker: Tensor) -> Tensor:
        """Virtual IHC, float32 [B, 3, H, W], not clipped.

        Args:
            noised: x, [B, 3, H, W].
            he: H&E [B, 3, H, W] in [-1, 1].
            marker: Classes [B].
        """
        fold = self.config.network.unshuffle
        folded = F.pixel_unshuffle(torch.cat([noised, he], 1), fold)
        output = self.unet(
            folded.contiguous(memory_format=torch.channels_last),
            self.index,
            class_labels=marker if self.config.network.markers else None,
        ).sample.float()
        signal, spread = (float(table[self.index]) for table in (self.sde.signal, self.sde.spread))
        return (noised - spread * F.pixel_shuffle(output, fold)) / signal

    def noised(self, source: Tensor, noise: Tensor) -> Tensor:
        """x of a source and standard normal noise, both [B, 3, H, W]."""
        return self.sde.perturb(source, self.index, noise)

    @torch.no_grad()
    def begin_with(self, teacher: ScoreModel) -> None:
        """Take over the weights of a teacher's network of the same shape, so that y is its clean estimate of x whatever the H&E."""
        folded = teacher.unet.config.in_channels
        weights = dict(teacher.unet.state_dict())
        of_noised = weights["conv_in.weight"]
        weights["conv_in.weight"] = torch.cat([of_noised, torch.zeros_like(of_noised)], 1)
        # A learned variance is the second half of the output.
        weights |= {name: weights[name][:folded] for name in ("conv_out.weight", "conv_out.bias")}
        fill(self.unet, weights, Path("the teacher"), "the student's network")


class OneStepConfig(Strict):
    """What can still be chosen once a student is trained."""

    variety: float = Field(
        0.5,
        ge=0,
        le=10,
        description="How much the palette tells positive nuclei from negative ones, by noise.",
    )


PRESETS = {"turbo": OneStepConfig()}


class OneStep:
    """The translator of a student."""

    reverse = None

    def __init__(
        self,
        student: Student,
        config: OneStepConfig,
        placement: Placement,
        marker: int = 0,
        palette: Palette | None = None,
    ) -> None:
        self.student, self.config, self.placement, self.marker = student.eval(), config, placement, marker
        self.palette = palette if student.config.palette else None

    @torch.no_grad()
    def translate(self, he: Tensor, keys: Sequence[NoiseSource]) -> Tensor:
        """Virtual IHC of `he`, both [B, 3, H, W] in [-1, 1]; an image depends on itself and its key alone."""
        variety = self.config.variety
        nuclei = normal(keys, "palette", 0, he[:, :1]) if self.palette and variety else None
        source = source_of(he, self.palette, nuclei, variety)
        noised = self.student.noised(source, normal(keys, "start", 0, source))
        marker = torch.full((len(he),), self.marker, device=he.device)
        with self.placement.autocast():
            return self.student(noised, he, marker).clamp(-1, 1)


def source_of(he: Tensor, palette: Palette | None, noise: Tensor | None, variety: float) -> Tensor:
    """s: H&E [B, 3, H, W] in the palette's colours, or without colour."""
    return palette(he, noise, variety) if palette else to_gray(he)


@dataclass(frozen=True)
class StudentModel:
    """A loaded student, its card, and who its teacher was."""

    student: Student
    card: Card
    teacher: str
    fingerprint: str = ""

    method = "one-step"

    @property
    def identity(self) -> str:
        """Name and digest: what a result was made with."""
        return f"{self.card.name} {self.fingerprint}"

    @property
    def multiple(self) -> int:
        """What the sides of a tile must be a multiple of."""
        return self.student.config.network.multiple

    def renamed(self, name: str, licence: str, description: str) -> StudentModel:
        """The same student under another name; a licence that is not stated is the teacher's."""
        about = {"name": name, "description": description}
        if licence != "not stated":
            about["licence"] = licence
        return replace(self, card=self.card.model_copy(update=about))

    def translator(self, config: OneStepConfig, marker: str | None, placement: Placement) -> OneStep:
        """The translator for one marker.

        Raises:
            ConfigError: A marker that the model does not have.
        """
        self.card.check_marker(marker)
        index = self.card.markers.index(marker) if marker else 0
        return OneStep(self.student, config, placement, index, self.card.palette.get(marker or ""))


def save_student(
    folder: Path, model: StudentModel, dtype: torch.dtype | None = None, readme: str | None = None
) -> None:
    """Write a model folder in place of one that is there; weights as `dtype` (float16 halves the size) or as they are.

    Raises:
        DataError: It cannot be written, or the folder holds more than a model.
    """
    with whole(folder) as new:
        write_json(new / PART / "config.json", model.student.config.model_dump(mode="json"))
        save_weights(new / PART / WEIGHTS, model.student.unet.state_dict(), dtype)
        index = {"_class_name": "VirtualStainer", PART: ["miudiff.methods.student", "Student"]}
        write_index(new, index | {"teacher": model.teacher}, model.card, readme)


def load_student(name: str | Path, placement: Placement | None = None) -> StudentModel:
    """Load a student's model folder, ready for use on `placement`'s device.

    Raises:
        CheckpointError: Missing or damaged files, another kind of model, or weights that do not fit their configuration.
    """
    folder = model_folder(name)
    path = folder / INDEX
    index = read_json(path)
    if PART not in index or not isinstance(index.get("teacher"), str):
        raise CheckpointError(f"{path}: '{PART}' or 'teacher' is missing, expected the folder of a student")
    about = {k: v for k, v in index.items() if not k.startswith("_") and k not in (PART, "teacher", "sha256")}
    card = parse_part(Card, about, path)
    part = folder / PART
    config = parse_part(StudentConfig, read_json(part / "config.json"), part / "config.json")
    check_markers(config.network.markers, card, path)
    with torch.device("meta"):  # no memory before the weights fit
        student = Student(config)
    fill(student.unet, load_weights(part / WEIGHTS), part / WEIGHTS, "its config.json", assign=True)
    student.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub leaves it out
    device = placement.device if placement else torch.device("cpu")
    student = student.eval().requires_grad_(False).to(device)
    return StudentModel(student, card, index["teacher"], fingerprint(folder, index, card.palette))
