"""The training loop: batches in order, one learner step each, a log, states, and the way back from any of them.

A run is a folder: `run.yaml` (the configuration), `metrics.jsonl`, `state-*.pt`, `weights/`. The same command goes on from the
last state. Under torchrun every process runs this loop on its share of each batch; the first one writes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import Dataset

from miudiff.checkpoints import append_json, find_states, load_state, save_state
from miudiff.device import enough_memory
from miudiff.errors import ConfigError, DeviceError, MiudiffError, NonFiniteError, PeerError
from miudiff.images import write_bytes
from miudiff.progress import duration, speed
from miudiff.training.learner import Learner, Tensors
from miudiff.training.loader import Collate, Share, batches, reading


@dataclass(frozen=True)
class LoopConfig:
    """How long to run and how often to write."""

    steps: int
    batch_size: int
    log_every: int = 20
    save_every: int = 500
    workers: int = 0


def train(
    learner: Learner,
    tiles: Dataset[Any],
    collate: Collate,
    folder: Path,
    config: LoopConfig,
    accelerator: Accelerator,
    say: Callable[[str], None] = print,
) -> int:
    """Run `learner` from its last state in `folder` to `config.steps`; returns the step reached.

    Ctrl-C (or SIGTERM) finishes the step, writes a state and raises KeyboardInterrupt. What stops one process stops all of them.

    Raises:
        DataError: A tile cannot be read; a state is written first.
        DeviceError: Out of memory.
        NonFiniteError: A loss or gradient is not finite; names the step and the images of the batch that it came from.
        PeerError: Another process was killed, or its machine was lost.
    """
    world, rank = accelerator.num_processes, accelerator.process_index
    if config.batch_size % world:
        raise ConfigError(
            f"batch_size: {config.batch_size} does not divide over {world} processes; make it a multiple"
        )
    states = find_states(folder)
    start = load_state(states[-1][1], learner.parts()) if states else 0
    if accelerator.is_main_process:
        for part in folder.glob(".*.part"):  # what a kill left half-written
            shutil.rmtree(part) if part.is_dir() else part.unlink()
        _trim_log(folder / "metrics.jsonl", start)
        if start:
            say(f"goes on after step {start} ({states[-1][1].name})")
    accelerator.wait_for_everyone()  # nobody writes a state before everybody has read the last
    _check_same_start(accelerator, start, folder)
    share = Share(start, config.steps, config.batch_size, rank, world)
    device = accelerator.device
    loader = batches(tiles, share, collate, learner.draw, config.workers, device.type == "cuda")
    step, saved, progress = start, start, _Progress(start, config.steps, config.batch_size)

    def keep() -> None:
        nonlocal saved
        if step != saved:
            learner.descent.look()
            _on_main(accelerator, lambda: save_state(folder, step, learner.parts()))
        saved = step

    def names(step: int) -> list[str]:
        return collate([tiles[item] for item in share.items(step)])[1]

    with _Interrupt() as interrupt, _others(world), _finite(accelerator, names), reading(loader) as found:
        while step < config.steps:
            batch, unread = _next(found)
            if failures := _failures(accelerator, unread):
                keep()
                raise failures[0]
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            logs = _step(learner, batch, step)
            step += 1
            if step % config.log_every == 0 or step == config.steps:
                learner.descent.look()
                line = _mean_over_processes(accelerator, logs)
                rate = progress.rate(step)
                record = {"step": step, **line, "images_per_second": rate}
                _on_main(accelerator, functools.partial(append_json, folder / "metrics.jsonl", record))
                if accelerator.is_main_process:
                    say(progress.line(step, line, rate))
            stop = _any_process(accelerator, interrupt.asked)
            if step % config.save_every == 0 or step == config.steps or stop:
                keep()
            if stop:
                raise KeyboardInterrupt
    return step


@contextlib.contextmanager
def _others(world: int) -> Iterator[None]:
    """Tells that another process ended from a mistake of our own; torch, gloo and NCCL have no error class for it."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise DeviceError(
                "a process that reads tiles ended, perhaps for want of memory or of shared memory (/dev/shm); take fewer 'workers', or 0, and the same command goes on from the last state"
            ) from error
        if world > 1 and re.search("gloo|nccl|connection (closed|reset)", str(error), re.IGNORECASE):
            raise PeerError(
                "another process of this run ended, so this one cannot go on; the other's lines say why, and the same command goes on from the last state"
            ) from error
        raise


@contextlib.contextmanager
def _finite(accelerator: Accelerator, names: Callable[[int], list[str]]) -> Iterator[None]:
    """Adds to a step that was not finite its images, by their `names`; all processes meet it together."""
    try:
        yield
    except NonFiniteError as error:
        images = f"{error}; the batch's images: {', '.join(names(error.step))}"
        own = NonFiniteError(images, error.here, error.step)
        raise _of_all(gather_object([own]) if accelerator.num_processes > 1 else [own]) from None


def _next(found: Iterator[dict[str, Tensor]]) -> tuple[dict[str, Tensor], MiudiffError | None]:
    """The next batch, or why there is none."""
    try:
        return next(found), None
    except MiudiffError as error:
        # From a process that reads tiles it comes with that process's traceback before it.
        told = str(error).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")[2]
        return {}, type(error)(told.strip())


def _step(learner: Learner, batch: Tensors, step: int) -> Tensors:
    """The step's logs."""
    sizes = " x ".join(str(n) for n in next(iter(batch.values())).shape)
    with enough_memory(
        f"step {step}, images {sizes} on a process",
        "spread the batch over more processes, or take a lower batch_size or data.size with another out=",
    ):
        return learner.step(batch, step)


def _failures(accelerator: Accelerator, own: MiudiffError | None) -> list[MiudiffError]:
    """What failed, on whichever process; the same on all, so that none waits for one that has stopped."""
    if not _any_process(accelerator, own is not None):
        return []
    everybodys = gather_object([own]) if accelerator.num_processes > 1 else [own]
    return [failure for failure in everybodys if failure is not None]


def _on_main(accelerator: Accelerator, write: Callable[[], object]) -> None:
    """Write on the first process; the others wait for it, and stop with it if it cannot."""
    unwritten = None
    try:
        if accelerator.is_main_process:
            write()
    except MiudiffError as error:
        unwritten = error
    if failures := _failures(accelerator, unwritten):
        raise failures[0]


def _of_all(failures: Sequence[NonFiniteError]) -> NonFiniteError:
    """One error of what the processes met: gradients are summed over them, so a NaN of one is everybody's, but its loss is its own."""
    told = "; ".join(str(failure) for failure in [f for f in failures if f.here] or failures)
    return NonFiniteError(
        f"step {failures[0].step}: {told}; look at them, or go on with a lower learning rate (the lr of the task's optimizer)"
    )


def _check_same_start(accelerator: Accelerator, start: int, folder: Path) -> None:
    """Refuse processes that begin at different steps: a node that does not see the run's folder would train on alone."""
    if accelerator.num_processes == 1:
        return
    starts = accelerator.gather(torch.tensor([start], device=accelerator.device)).tolist()
    if len(set(starts)) > 1:
        raise ConfigError(
            f"{folder}: the processes found states of steps {sorted(set(starts))}; every machine must see one folder"
        )


class _Interrupt:
    """Turns the first SIGINT or SIGTERM into a flag, so that a step is never torn; the second acts as usual."""

    def __enter__(self) -> _Interrupt:
        self.asked = False
        self._old: dict[signal.Signals, Any] = {}
        for kind in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[kind] = signal.signal(kind, self._ask)
            except ValueError:  # not the main thread: whoever called keeps the signals
                break
        return self

    def _ask(self, kind: int, frame: FrameType | None) -> None:
        self.asked = True
        for signal_kind, old in self._old.items():
            signal.signal(signal_kind, old)

    def __exit__(self, *_: object) -> None:
        for kind, old in self._old.items():
            signal.signal(kind, old)


def _any_process(accelerator: Accelerator, flag: bool) -> bool:
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum")
    return bool(total > 0)


def _mean_over_processes(accelerator: Accelerator, logs: Mapping[str, Tensor]) -> dict[str, float]:
    values = torch.stack(
        [torch.as_tensor(v, dtype=torch.float32, device=accelerator.device).detach() for v in logs.values()]
    )
    means = accelerator.reduce(values, "mean").tolist()
    return dict(zip(logs, means, strict=True))


class _Progress:
    """How fast the steps since the last line were, and how long the rest would take at that."""

    def __init__(self, start: int, stop: int, batch: int) -> None:
        self.stop, self.batch, self.last = stop, batch, (start, time.monotonic())

    def rate(self, step: int) -> float:
        """Images for each second since it was asked last."""
        (before, began), self.last = self.last, (step, time.monotonic())
        return round((step - before) * self.batch / max(1e-9, self.last[1] - began), 3)

    def line(self, step: int, logs: Mapping[str, float], rate: float) -> str:
        values = "  ".join(f"{name} {value:.4g}" for name, value in logs.items())
        left = duration((self.stop - step) * self.batch / max(1e-9, rate))
        return f"step {step}/{self.stop}  {values}  {speed(rate, 'images')}  {left} left"


def _trim_log(path: Path, step: int) -> None:
    """Drop what was logged after the state that the run goes on from, and a line cut off by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            print(f"{path}: dropped a line that was cut off", file=sys.stderr)
    write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
