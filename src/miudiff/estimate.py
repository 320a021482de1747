"""How long staining takes here, from a few measured steps and windows: the one place that estimates.

A run is its windows times the network's seconds for one, and beside that reading, putting glass back, blending, resampling and
encoding. On an accelerator those go on meanwhile; on a processor they take its time from the network. Measuring leaves no trace in a
result, since noise is a function of keys.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from miudiff.device import wait_for
from miudiff.errors import MiudiffError
from miudiff.evenly import evenly
from miudiff.images import Pixels, read_image, resize, write_image
from miudiff.methods.miu_diff import MIUDiff
from miudiff.methods.sdedit import StepReport
from miudiff.noise import NoiseKey
from miudiff.progress import duration
from miudiff.slides.encoding import Compression
from miudiff.slides.frame import Frame, Window, frame_of
from miudiff.slides.pace import seconds_beside
from miudiff.slides.sight import Sight
from miudiff.stainer import VirtualStainer

FEW = 8  # windows: of a run of no more, measuring would be more than some per cent
LONG_ENOUGH = 0.8  # seconds of steps that are measured, where a walk has as many
LOOKED_AT = 3  # images of a folder that stand for all


class Pace(NamedTuple):
    """Seconds of a window.

    Attributes:
        network: Of the network, all steps.
        stained: Beside it for a window that is stained.
        left: For a window that is not: its place in the result is made all the same.
        at_once: Whether the network runs elsewhere meanwhile, on an accelerator.
    """

    network: float
    stained: float
    left: float
    at_once: bool

    def seconds(self, stained: int, left: int) -> float:
        """Seconds of a run over so many windows that are stained, and so many that are not."""
        network, beside = stained * self.network, stained * self.stained + left * self.left
        return max(network, beside) if self.at_once else network + beside


def pace_of(
    stainer: VirtualStainer,
    sight: Sight,
    compression: Compression,
    stained: Sequence[Window],
    left: Sequence[Window],
) -> Pace:
    """The pace of a slide, measured on a few of its windows.

    Args:
        stained: The windows that are to be stained.
        left: The windows that are not.
    """
    at_once = stainer.placement.device.type != "cpu"
    cores = 1 if at_once else stainer.placement.threads or 1
    of_stained, of_left = (seconds_beside(sight, compression, some) / cores for some in (stained, left))
    network = seconds_per_window(stainer, sight.frame.size, stainer.at_once) if stained else 0.0
    return Pace(network, of_stained, of_left, at_once)


def tell_slide(
    stainer: VirtualStainer,
    sight: Sight,
    compression: Compression,
    stained: Sequence[Window],
    left: Sequence[Window],
    say: Callable[[str], None],
) -> None:
    """Say how long these windows of a slide take, unless they are few."""
    if len(stained) > FEW:
        pace = pace_of(stainer, sight, compression, stained, left)
        say(f"about {duration(pace.seconds(len(stained), len(left)))} for {len(stained):,} windows")


def tell_images(
    stainer: VirtualStainer,
    paths: Sequence[Path],
    scale: Callable[[Path], float | None],
    say: Callable[[str], None],
) -> None:
    """Say how long images take by a few of them, unless there are few windows; what cannot be read is left to the run to tell.

    Args:
        scale: An image's micrometres per pixel.
    """
    counts, sizes, began = [], [], time.monotonic()
    for path in evenly(paths, LOOKED_AT):
        with contextlib.suppress(MiudiffError):
            pixels = read_image(path)
            frame, count = _windows(stainer, pixels, scale(path))
            counts.append(count)
            sizes.append(frame.size)
            with tempfile.TemporaryDirectory() as folder:  # as long as writing its stain takes
                write_image(Path(folder) / f"measured{path.suffix}", pixels)
    beside = time.monotonic() - began
    if not counts or (windows := round(sum(counts) / len(counts) * len(paths))) <= FEW:
        return
    largest = max(sizes, key=math.prod)
    network = seconds_per_window(stainer, largest, 1) / math.prod(largest)  # of a pixel
    pixels_stained = sum(count * math.prod(size) for count, size in zip(counts, sizes, strict=True))
    seconds = (pixels_stained * network + beside) / len(counts) * len(paths)
    of = f" of {len(paths):,} images" if len(paths) > 1 else ""
    say(f"about {duration(seconds)} for {windows:,} windows{of}")


def _windows(stainer: VirtualStainer, pixels: Pixels, mpp: float | None) -> tuple[Frame, int]:
    """How an image is divided, and how many of its windows are stained.

    Raises:
        SlideError: It is too small.
    """
    height, width = pixels.shape[:2]
    frame = frame_of(width, height, mpp, stainer.model.card.mpp, stainer)
    empty = stainer.find_glass(resize(pixels, frame.rows, frame.columns))
    kept = sum(stainer.is_glass(empty, top, left) for top in frame.tops for left in frame.lefts)
    return frame, len(frame.tops) * len(frame.lefts) - kept


def seconds_per_window(stainer: VirtualStainer, size: tuple[int, int], batch: int) -> float:
    """Seconds that the network takes for a window; what comes before its first step is little, and left out.

    Some steps are measured, and some refined ones where there are such.

    Args:
        size: (height, width) of the window.
        batch: Windows that are stained together.
    """
    piece = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    if stainer.reverse is None:
        _seconds_of_a_batch(stainer, piece, batch)  # pays for what is set up
        return _seconds_of_a_batch(stainer, piece, batch)
    steps, refined = stainer.steps_of_a_tile, 0
    if isinstance(stainer.method, MIUDiff):
        refined = stainer.method.refined_steps
    if not refined:
        return steps * _seconds_of_a_step(stainer, piece, batch)
    plain = stainer.changed(("refinement.loss=none",))
    # a chain of its last indices alone is refined from its first step on
    last = stainer.changed(("reverse.start=4", "reverse.steps=null"))
    return (steps - refined) * _seconds_of_a_step(plain, piece, batch) + (
        refined * _seconds_of_a_step(last, piece, batch)
    )


def _seconds_of_a_batch(stainer: VirtualStainer, piece: Pixels, batch: int) -> float:
    began = time.monotonic()
    stainer.stain([piece] * batch, [NoiseKey(0)] * batch)
    return (time.monotonic() - began) / batch


class _Enough(Exception):
    pass


def _seconds_of_a_step(stainer: VirtualStainer, piece: Pixels, batch: int) -> float:
    """Seconds of a window's step, the mean of some after the first, which pays for what is set up."""
    times: list[float] = []

    def watch(report: StepReport) -> None:
        wait_for(report.y.device)
        times.append(time.monotonic())
        if len(times) > 3 and times[-1] - times[1] > LONG_ENOUGH:
            raise _Enough

    assert stainer.reverse is not None
    stainer.reverse.watch = watch
    try:
        stainer.stain([piece] * batch, [NoiseKey(0)] * batch)
    except _Enough:
        pass
    finally:
        stainer.reverse.watch = None
    done = min(batch, stainer.at_once)  # halved where memory did not suffice
    # From one report to the next it is a step, whenever in its step a method reports.
    first = 1 if len(times) > 2 else 0
    return (times[-1] - times[first]) / (len(times) - 1 - first) / done
