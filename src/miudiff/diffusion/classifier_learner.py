"""Training EGSDE's classifier: which of the two stains is a noised image of?

    L = -log p(class | y_t, t),    class 0: source (H&E), 1: target (IHC);   t uniform over the full chain

A batch has as many of one as of the other; they need not be pairs. Recipe: Dhariwal and Nichol 2021, AdamW, its rate falling along
a line to 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
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
from miudiff.training.descent import Descent
from miudiff.training.learner import Tensors, adamw, descend, sample_noise, sample_times


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
        self.descent = Descent(accelerator)
        self.draw = partial(draw_noise, seed=seed, levels=len(self.sde))
        optimizer = adamw(self.model.parameters(), config.optimizer.lr, config.optimizer.weight_decay)
        self.network, self.optimizer = accelerator.prepare(self.model, optimizer)

    def parts(self) -> Mapping[str, Part]:
        return {"model": self.model, "optimizer": self.optimizer.optimizer}

    def step(self, batch: Tensors, step: int) -> Tensors:
        """One optimizer step; `batch` holds "he" and "ihc" [B, 3, size, size] in [-1, 1] and what `draw_noise` drew for them."""
        t, clean = batch["time"], torch.cat([batch["he"], batch["ihc"]])
        label = torch.arange(2, device=t.device).repeat_interleave(len(t) // 2)
        logits = self.network(self.sde.perturb(clean, t, batch["noise"]), t).float()
        loss = F.cross_entropy(logits, label)
        rate = self.config.optimizer.lr * (1 - step / self.steps)
        clip = self.config.optimizer.clip or math.inf
        norm = descend(self.descent, loss, self.optimizer, self.network.parameters(), rate, clip, step)
        accuracy = (logits.argmax(1) == label).float().mean()
        return {"loss": loss.detach(), "accuracy": accuracy, "gradient_norm": norm}

    def export(self, folder: Path) -> None:
        """Write the weights with their configuration; no average is kept, as the official code keeps none."""
        save_classifier(folder, self.model)


def draw_noise(batch: Tensors, seed: int, levels: int) -> dict[str, Tensor]:
    """`batch` with a "time" [2 B] in [0, levels) and the "noise" [2 B, 3, size, size] of each image, those of H&E first."""
    stains = list(enumerate((batch["he"], batch["ihc"])))
    times = [sample_times(batch["key"], seed, levels, which) for which, _ in stains]
    noise = [sample_noise(batch["key"], seed, "batch", y0, which) for which, y0 in stains]
    return {**batch, "time": torch.cat(times), "noise": torch.cat(noise)}


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
