"""Where the work runs and how precisely: chosen once, said in the log, never changed silently.

bf16 is taken where it is faster: on CUDA cards that have it, and on processors with AMX or AVX-512 BF16, in channels-last layout
(measured: 3.3 and 2.0 times the fp32 forward pass; 1.4 times with AMX without channels-last). Elsewhere fp32.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from miudiff.errors import DeviceError

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Placement:
    """A device and a precision."""

    device: torch.device
    precision: Literal["fp32", "bf16"]
    why: str

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context that network calls run in."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    @property
    def threads(self) -> int | None:
        """Threads of the processor that share a network's sums, which round otherwise in another number; None elsewhere."""
        return torch.get_num_threads() if self.device.type == "cpu" else None

    def __str__(self) -> str:
        name = (
            torch.cuda.get_device_name(self.device)
            if self.device.type == "cuda"
            else f"{torch.get_num_threads()} threads"
        )
        return f"{self.device} ({name}), {self.precision} ({self.why})"


CPU_FP32 = Placement(torch.device("cpu"), "fp32", "as asked")


def place(device: str = "auto", precision: Precision = "auto") -> Placement:
    """The placement for what the user asked.

    Args:
        device: "auto" (CUDA, else CPU; MPS on request), or a torch device such as "cuda:0".

    Raises:
        DeviceError: The device is not there; it does not fall back.
    """
    chosen = _device(device)
    if precision != "auto":
        return Placement(chosen, precision, "as asked")
    if chosen.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return Placement(
            chosen, "bf16" if fast else "fp32", "the card has bf16" if fast else "the card has no bf16"
        )
    if chosen.type == "cpu" and (unit := bf16_unit()):
        return Placement(chosen, "bf16", f"the processor has {unit}")
    return Placement(chosen, "fp32", "no fast bf16 here")


def _device(device: str) -> torch.device:
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")  # MPS has not been tried, so it is taken only where it is asked for
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise DeviceError(f"device '{device}': unknown, expected auto, cpu, cuda, cuda:N or mps") from error
    if chosen.type == "cuda" and (
        not torch.cuda.is_available() or (chosen.index or 0) >= torch.cuda.device_count()
    ):
        raise DeviceError(
            f"device '{device}': {torch.cuda.device_count()} CUDA devices are visible; use --device cpu to run without"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("device 'mps': not available on this machine; use --device cpu to run without")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device '{device}': unknown, expected auto, cpu, cuda, cuda:N or mps")
    return chosen


def cores() -> int:
    """Processor cores that this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`; a copy from the processor to a card does not wait for the card's work, as `to` alone does."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Download:
    """Tensors on their way from a device to the processor; work that the device is given afterwards need not wait for them."""

    def __init__(self, *tensors: Tensor) -> None:
        self._copies = [tensor.to("cpu", non_blocking=tensor.is_cuda) for tensor in tensors]
        self._there = torch.cuda.Event() if tensors[0].is_cuda else None  # type: ignore[no-untyped-call]
        if self._there:
            self._there.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[Tensor]:
        """The copies, once they are there."""
        if self._there:
            self._there.synchronize()
        return self._copies


def wait_for(device: torch.device) -> None:
    """Let an accelerator finish what it was given: what is timed else is how long it takes to tell it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device: torch.device, work: Callable[[], object]) -> int:
    """Bytes that some work takes on a CUDA device beyond what is held before it, at most."""
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def free_memory(device: torch.device) -> int:
    """Bytes of a CUDA device that nobody uses, torch's own store of them included."""
    stored = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + stored


def batch_that_fits(one: int, two: int, free: int, most: int) -> int:
    """How many at once, a power of two from 1 to `most`, where one takes `one` bytes, two take `two`, and each further as much more.

    Half of what is free is left alone: CUDA graphs hold memory of their own, and other programs come and go.
    """
    count = 1 + max(0, free // 2 - one) // max(1, two - one)
    return 1 << (min(count, most).bit_length() - 1)


@contextlib.contextmanager
def enough_memory(need: str, fix: str) -> Iterator[None]:
    """Tells in one line that what is done inside takes more memory than there is.

    Args:
        need: What was to be held, as in "a tile of 256 x 256".
        fix: What takes less.

    Raises:
        DeviceError: Out of memory, whether an accelerator's or the machine's own.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found = " ".join(str(error).split())[:120]
        raise DeviceError(f"{need}: found too little memory ({found or 'no reason given'}); {fix}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or numpy ran out of memory; for MPS and the processor torch has no class of its own."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = r"out of memory|can't allocate memory|not enough memory"
    return isinstance(error, RuntimeError) and re.search(words, str(error), re.IGNORECASE) is not None


def bf16_unit() -> str | None:
    """What of the processor multiplies bf16 faster than fp32 (Linux; elsewhere None)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    return next((name for flag, name in _BF16_UNITS.items() if flag in flags), None)


_BF16_UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16"}
