"""Training EGSDE's classifier: which of the two stains is a noised image of?

    L = -log p(class | y_t, t),    class 0: source (H&E), 1: target (IHC);   t uniform over the full chain

A batch has as many of one as of the other; they need not be pairs. Recipe: Dhariwal and Nichol 2021, AdamW, its rate falling along
a line to 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from pydantic import Field
from torch import Tensor

from miudiff.checkpoints import Part, fill
from miudiff.config import Strict
from miudiff.diffusion.adm_classifier import load_adm_classifier
from miudiff.diffusion.classifier import (
    ClassifierNetwork,
    NoisedClassifier,
    load_classifier,
    save_classifier,
)
from miudiff.diffusion.sde import VPSDE
from miudiff.errors import ConfigError
from miudiff.training.learner import descend, sample_noise, sample_times


class AnnealedConfig(Strict):
    """AdamW, as the official classifiers were trained."""

    lr: float = Field(3e-4, gt=0, description="Learning rate of the first step; it falls along a line to 0.")
    weight_decay: float = Field(0.05, ge=0)
    clip: float | None = Field(None, gt=0, description="Largest gradient norm; None: any.")


class ClassifierConfig(Strict):
    """The classifier of noised images and its training."""

    network: ClassifierNetwork = ClassifierNetwork()
    optimizer: AnnealedConfig = AnnealedConfig()
    init: Path | None = Field(
        None,
        description="Weights to begin with: a folder, or an official ADM file (.pt); of other classes without its last layer.",
    )


class ClassifierLearner:
    """One step of cross-entropy."""

    def __init__(self, config: ClassifierConfig, accelerator: Accelerator, seed: int, steps: int) -> None:
        if config.network.classes != 2:
            raise ConfigError(
                f"classifier.network.classes: found {config.network.classes}, expected 2: source and target"
            )
        self.config, self.accelerator, self.seed, self.steps = config, accelerator, seed, steps
        self.sde = VPSDE()
        torch.manual_seed(seed)  # the initial weights
        self.model = NoisedClassifier(config.network)
        if config.init is not None:
            begin_with(self.model, config.init)
        self.model.to(accelerator.device)
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.optimizer.lr, weight_decay=config.optimizer.weight_decay
        )
        self.network, self.optimizer = accelerator.prepare(self.model, optimizer)

    def parts(self) -> Mapping[str, Part]:
        return {"model": self.model, "optimizer": self.optimizer.optimizer}

    def step(self, batch: Mapping[str, Tensor], step: int) -> Mapping[str, Tensor]:
        """One optimizer step; `batch` holds "he" and "ihc" [B, 3, size, size] in [-1, 1] and "key" [B]."""
        keys, clean = batch["key"], (batch["he"], batch["ihc"])
        times = [
            sample_times(keys, self.seed, len(self.sde), y0.device, which) for which, y0 in enumerate(clean)
        ]
        noised = [
            self.sde.perturb(y0, t, sample_noise(keys, self.seed, "batch", y0, which))
            for which, (y0, t) in enumerate(zip(clean, times, strict=True))
        ]
        label = torch.arange(2, device=keys.device).repeat_interleave(len(keys))
        logits = self.network(torch.cat(noised), torch.cat(times)).float()
        loss = F.cross_entropy(logits, label)
        rate = self.config.optimizer.lr * (1 - step / self.steps)
        clip = self.config.optimizer.clip or math.inf
        norm = descend(self.accelerator, loss, self.optimizer, self.network.parameters(), rate, clip)
        accuracy = (logits.argmax(1) == label).float().mean()
        return {"loss": loss.detach(), "accuracy": accuracy, "gradient_norm": norm}

    def export(self, folder: Path) -> None:
        """Write the weights with their configuration; no average is kept, as the official code keeps none."""
        save_classifier(folder, self.model)


def begin_with(classifier: NoisedClassifier, path: Path) -> None:
    """Put the weights of another classifier into `classifier`; its last layer too if they tell as many classes.

    Raises:
        CheckpointError: Not there, or of another shape.
    """
    config = classifier.config
    source = (
        load_adm_classifier(path, config.layers, config.head_channels)
        if path.suffix == ".pt"
        else load_classifier(path)
    )
    weights = source.state_dict()
    if source.config.classes != config.classes:
        weights |= {f"pool.out.{name}": value for name, value in classifier.pool.out.state_dict().items()}
    fill(classifier, weights, path, "classifier.network")
