"""The machine that figures belong to, and how fast it multiplies matrices: what a network can reach at best."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path

import torch

from miudiff import __version__
from miudiff.bench.timing import Clock
from miudiff.device import Placement, cores

MATRIX = {"cpu": 2048, "cuda": 8192}  # side of the matrices that are multiplied


def describe(placement: Placement) -> dict[str, object]:
    """What the machine is, for the head of the table."""
    found: dict[str, object] = {
        "miudiff": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "device": str(placement),
    }
    if placement.device.type == "cuda":
        properties = torch.cuda.get_device_properties(placement.device)
        found |= {"card": properties.name, "card_memory_gb": round(properties.total_memory / 1e9, 1)}
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def matrix_peak(placement: Placement, clock: Clock) -> dict[str, float]:
    """Measured TFLOP/s of square matrix products, for each precision."""
    side = MATRIX.get(placement.device.type, 4096)
    peaks = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=placement.device).to(dtype) for _ in range(2))
        peaks[name] = round(2 * side**3 / clock.seconds(lambda a=a, b=b: a @ b) / 1e12, 3)  # type: ignore[misc]
    return peaks


def most_held(placement: Placement) -> int:
    """MiB: the card's since `forget_most`, or this process's since it began."""
    if placement.device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(placement.device) / 2**20)
    return peak_of_process()


def peak_of_process() -> int:
    """MiB that this process has held at most. On Linux `ru_maxrss` would count the process that started it, too."""
    try:
        status = Path("/proc/self/status").read_text()
        return round(int(status.split("VmHWM:")[1].split()[0]) / 2**10)
    except (OSError, IndexError):
        unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss: bytes there, KiB elsewhere
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def forget_most(placement: Placement) -> None:
    """Begin counting the card's peak anew; a process's own cannot be."""
    if placement.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(placement.device)
