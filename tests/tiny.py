"""Tiny networks that the tests share: seconds, not minutes."""

import torch

from miudiff.device import Placement
from miudiff.diffusion.classifier import ClassifierNetwork, NoisedClassifier
from miudiff.diffusion.score import NetworkConfig, ScoreModel, build_unet
from miudiff.information.estimator import Estimator, EstimatorConfig
from miudiff.methods.model import Card, Model
from miudiff.methods.palette import Palette
from miudiff.methods.student import Student, StudentConfig
from miudiff.stains import HE_EOSIN, HE_HEMATOXYLIN

NETWORK = NetworkConfig(size=32, channels=(16, 32), attention=(16,), head_channels=8, groups=8)
CPU = Placement(torch.device("cpu"), "fp32", "tests")


def tiny_score(markers: int | None = None, seed: int = 0) -> ScoreModel:
    """A score model with random weights, its last layer too, so that its output is not zero."""
    torch.manual_seed(seed)
    unet = build_unet(NETWORK.model_copy(update={"markers": markers}))
    torch.nn.init.normal_(unet.conv_out.weight, std=0.02)
    return ScoreModel(unet).eval().requires_grad_(False)


def tiny_estimator(critic: str = "separable", seed: int = 1) -> Estimator:
    torch.manual_seed(seed)
    config = EstimatorConfig(critic=critic, channels=(8, 8), patch=16)  # type: ignore[arg-type]
    return Estimator(config).eval().requires_grad_(False)


CLASSIFIER = ClassifierNetwork(
    size=32, channels=(8, 16), layers=1, attention=(16,), head_channels=8, groups=4
)


def tiny_classifier(seed: int = 2) -> NoisedClassifier:
    torch.manual_seed(seed)
    return NoisedClassifier(CLASSIFIER).eval().requires_grad_(False)


def tiny_palette(nuclei: tuple[float, float, float] = (0.3, 0.35, 0.3)) -> Palette:
    """A palette of H&E in reference colours."""
    dyes = {
        "light": (255, 255, 255),
        "hematoxylin": HE_HEMATOXYLIN,
        "eosin": HE_EOSIN,
        "strength": (0.8, 0.4),
    }
    values = {
        "dyes": dyes,
        "hematoxylin": (0.1, 0.6),
        "eosin": 0.6,
        "nuclei": (nuclei, (0.3, 0.5, 0.6)),
        "ground": ((0.05, 0.06, 0.06), (0.1, 0.2, 0.3)),
        "nuclear": True,
        "share": 0.3,
        "basophilia": (0.1, 0.03),
    }
    return Palette.model_validate(values)


def tiny_student(markers: int | None = None, seed: int = 3) -> Student:
    """A student with random weights, its last layer too."""
    torch.manual_seed(seed)
    network = NETWORK.model_copy(update={"markers": markers, "learned_variance": False})
    student = Student(StudentConfig(network=network, start=150, palette=False))
    torch.nn.init.normal_(student.unet.conv_out.weight, std=0.02)
    return student.eval().requires_grad_(False)


def tiny_model(markers: tuple[str, ...] = (), mpp: float | None = 1.0, tile: int = 64) -> Model:
    return Model(
        tiny_score(len(markers) or None),
        tiny_estimator(),
        Card(name="tiny", markers=markers, mpp=mpp, tile=tile),
    )
