"""Batches in order, read and drawn by processes of their own where there are any, ahead of the learner; the same however many."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from miudiff.device import cores
from miudiff.training.learner import Tensors

Batch = tuple[Tensors, list[str]]  # and the names of what is in it
Collate = Callable[[Sequence[Any]], Batch]
SHARED = Path("/dev/shm")  # where batches pass from one process to another
AHEAD = 2  # batches that a process has ready


@dataclass(frozen=True)
class Share(Sampler[int]):
    """This process's share of each batch, in order: batch s holds items s B .. s B + B - 1."""

    start: int
    stop: int
    batch: int
    rank: int = 0
    world: int = 1

    def items(self, step: int) -> range:
        """The items of one batch that are this process's."""
        share = self.batch // self.world
        first = step * self.batch + self.rank * share
        return range(first, first + share)

    def __iter__(self) -> Iterator[int]:
        for step in range(self.start, self.stop):
            yield from self.items(step)

    def __len__(self) -> int:
        return (self.stop - self.start) * (self.batch // self.world)


@dataclass(frozen=True)
class _Drawn:
    """A batch with what is random in it; runs where the tiles are read."""

    collate: Collate
    draw: Callable[[Tensors], Tensors]

    def __call__(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        return dict(self.draw(self.collate(items)[0]))


def batches(
    tiles: Dataset[Any],
    share: Share,
    collate: Collate,
    draw: Callable[[Tensors], Tensors],
    workers: int,
    pinned: bool,
) -> DataLoader[dict[str, torch.Tensor]]:
    """The batches of `share`, collated and with `draw`'s numbers.

    Args:
        workers: Processes that read; 0 reads in this one.
        pinned: In memory that a card copies from while it works.
    """
    return DataLoader(
        tiles,
        batch_size=share.batch // share.world,
        sampler=share,
        collate_fn=_Drawn(collate, draw),
        num_workers=workers,
        worker_init_fn=_stay_until_told,
        prefetch_factor=AHEAD if workers else None,
        # They share the images that this process has read.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        pin_memory=pinned,
    )


def _stay_until_told(_: int) -> None:
    """Ctrl-C reaches every process of a terminal; the one that trains finishes its step first, and then ends these."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)


@contextlib.contextmanager
def reading(loader: DataLoader[Any]) -> Iterator[Iterator[Any]]:
    """The loader's batches; afterwards no process of it is left.

    Processes that ignore SIGTERM cannot be left to the interpreter's end, which sends it and waits for them; and what an error's
    traceback holds is not given up by itself.
    """
    found = iter(loader)
    try:
        yield found
    finally:
        if stop := getattr(found, "_shutdown_workers", None):  # torch has no public word for it
            stop()


def fitting_workers(device: torch.device, batch_bytes: int) -> int:
    """How many processes should read for this one: none unless on CUDA, where one step would wait for the tiles of the next.

    Args:
        batch_bytes: What a batch of this process takes, with all that is drawn for it.
    """
    if device.type != "cuda":
        return 0
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's: processes of this machine
    count = min(8, cores() // here - 1)
    if SHARED.is_dir():  # in containers often 64 MB
        room = shutil.disk_usage(SHARED).free // here
        count = min(count, room // (2 * AHEAD * batch_bytes))
    return max(0, count)
