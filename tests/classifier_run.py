"""A short training of the classifier on squares of two stains, as a function and as a program for torchrun."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from miudiff.diffusion.classifier_learner import AnnealedConfig, ClassifierConfig, ClassifierLearner
from miudiff.runs import leaving
from miudiff.training.loop import LoopConfig, train
from tiny import CLASSIFIER

CONFIG = ClassifierConfig(network=CLASSIFIER, optimizer=AnnealedConfig(lr=2e-3))


COLOURS = {"he": (0.7, -0.2, 0.5), "ihc": (-0.1, -0.5, -0.7)}


class Squares:
    """Item i is {"he", "ihc"} [3, 32, 32]: pink or brown squares at random places of a bright field."""

    def __getitem__(self, index):
        draw = torch.Generator().manual_seed(index)
        return {name: self._field(colour, draw) for name, colour in COLOURS.items()} | {
            "key": torch.tensor(index)
        }

    @staticmethod
    def _field(colour, draw):
        field = torch.full((3, 32, 32), 0.9)
        for _ in range(6):
            top, left = torch.randint(0, 24, (2,), generator=draw).tolist()
            field[:, top : top + 8, left : left + 8] = torch.tensor(colour).view(3, 1, 1)
        return field


def collate(items):
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}, [""] * len(items)


def run(folder, stop=6, steps=6):
    """Train to step `stop` of a run of `steps`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(cpu=True)
    with leaving(accelerator):
        _learn(folder, accelerator, stop, steps)
        accelerator.wait_for_everyone()


def _learn(folder, accelerator, stop, steps):
    learner = ClassifierLearner(CONFIG, accelerator, 3, steps)
    loop = LoopConfig(stop, batch_size=4, log_every=1, save_every=2)
    train(learner, Squares(), collate, Path(folder), loop, accelerator, lambda line: None)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(sys.argv[1], 3)
