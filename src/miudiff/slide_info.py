"""What staining a slide would take, measured on this machine: part of `miudiff info`."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from miudiff.methods.miu_diff import MIUDiff, MIUDiffConfig
from miudiff.methods.sdedit import StepReport
from miudiff.noise import NoiseKey
from miudiff.slides.frame import Frame
from miudiff.slides.runner import GROUP, READ_AHEAD
from miudiff.stainer import VirtualStainer

TILE = 512  # of the result, in pixels


class Estimate(NamedTuple):
    """What staining so many windows takes: seconds of the network, and bytes beside it."""

    seconds: float
    memory: int


def estimate(stainer: VirtualStainer, frame: Frame, windows: int) -> Estimate:
    """Time by a few steps of one window on the device at hand; memory by the sizes of what is held at once."""
    height, width = frame.size
    window = height * width * 3
    held = (READ_AHEAD + 2) * GROUP * window + len(
        frame.lefts
    ) * window  # groups read and stained, a row of windows
    strip = round(TILE * frame.scale[1] + 8) * frame.columns * 3
    # a row of the result's tiles: blended, resampled, with the glass behind it, and its half
    held += 2 * strip + 3 * TILE * frame.width * 3
    return Estimate(windows * seconds_per_window(stainer, (height, width)), held)


def seconds_per_window(stainer: VirtualStainer, size: tuple[int, int]) -> float:
    """Seconds that a window of `size` takes, from two steps of its walk, and two refined ones where there are such."""
    piece = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    if stainer.reverse is None:
        began = time.monotonic()
        stainer.stain([piece], [NoiseKey(0)])
        return time.monotonic() - began
    steps, refined = stainer.steps_of_a_tile, 0
    seconds = _seconds_of_a_step(stainer, piece)
    if isinstance(stainer.method, MIUDiff) and isinstance(stainer.config, MIUDiffConfig):
        refined = stainer.method.refined_steps
    if not refined:
        return steps * seconds
    # a chain of its last indices alone is refined from its first step on
    reverse = stainer.config.reverse.model_copy(update={"start": 4, "steps": None})  # type: ignore[union-attr]
    last = stainer.config.model_copy(update={"reverse": reverse})  # type: ignore[union-attr]
    short = VirtualStainer(stainer.model, last, stainer.placement, stainer.marker, stainer.glass)
    return (steps - refined) * seconds + refined * _seconds_of_a_step(short, piece)


class _Enough(Exception):
    pass


def _seconds_of_a_step(stainer: VirtualStainer, piece: np.ndarray) -> float:
    """The mean of the second and the third step: the first one pays for what is set up."""
    times: list[float] = []

    def watch(report: StepReport) -> None:
        times.append(time.monotonic())
        if len(times) == 4:
            raise _Enough

    assert stainer.reverse is not None
    stainer.reverse.watch = watch
    try:
        stainer.stain([piece], [NoiseKey(0)])
        times.append(time.monotonic())
    except _Enough:
        pass
    finally:
        stainer.reverse.watch = None
    return (times[-1] - times[1]) / (len(times) - 2)
