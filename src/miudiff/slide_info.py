"""What a slide holds, and what staining it would take, measured on this machine: `miudiff info`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from miudiff.errors import ConfigError, MiudiffError, SlideError
from miudiff.methods.miu_diff import MIUDiff, MIUDiffConfig
from miudiff.methods.sdedit import StepReport
from miudiff.noise import NoiseKey
from miudiff.progress import duration
from miudiff.slides.brightfield import check_brightfield
from miudiff.slides.frame import Frame, frame_of
from miudiff.slides.overview import TissueMap, describe, tissue_mask
from miudiff.slides.reader import Slide, open_slide
from miudiff.slides.runner import GROUP, READ_AHEAD
from miudiff.slides.sight import Rectangle, Sight, marking
from miudiff.stainer import VirtualStainer, check_mpp

TILE = 512  # of the result, in pixels


def tell_slides(
    paths: Sequence[Path],
    mpp: float | None,
    load: Callable[[], VirtualStainer] | None,
    say: Callable[[str], None],
    mark: bool = False,
) -> list[str]:
    """Say what each slide holds; returns what is wrong with those that cannot be translated, a line each.

    Args:
        mpp: Micrometres per pixel where the files do not state it.
        load: Makes the stainer that time and memory are estimated for; None leaves them out.
        mark: What cannot be read is counted instead of being an error, as `translate --mark-unreadable` takes it.

    Raises:
        ConfigError: No slides.
    """
    if not paths:
        raise ConfigError("info: found no slides, expected at least one file")
    if mpp is not None:
        check_mpp(mpp)
    stainer: VirtualStainer | None = None
    failed = []
    for path in paths:
        try:
            with open_slide(path) as slide:
                say(str(path))
                scale = mpp or slide.mpp
                bright = _not_bright(slide)
                unreadable: list[Rectangle] = []
                read = marking(slide, unreadable) if mark else None
                tissue = None if bright else tissue_mask(slide, scale or 1.0, read)
                for line in describe(slide, mpp, tissue):
                    say(f"  {line}")
                if unreadable:
                    say(f"  damage   {_where(unreadable)} cannot be read")
                if bright:
                    failed.append(bright)
                    continue
                if load is None:
                    continue
                if scale is None:
                    say("  estimate not possible without a scale")
                    continue
                stainer = stainer or load()
                say(f"  estimate {_tell(stainer, slide, scale, tissue)}")
        except MiudiffError as error:
            failed.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    return failed


def _where(found: Sequence[Rectangle]) -> str:
    """The box of level 0 around what cannot be read, which was met while glass was looked for."""
    left, top = min(at.x for at in found), min(at.y for at in found)
    right, bottom = max(at.x + at.width for at in found), max(at.y + at.height for at in found)
    return f"{len(set(found))} places within {left}, {top} to {right}, {bottom}"


def _not_bright(slide: Slide) -> str | None:
    try:
        check_brightfield(slide)
    except SlideError as error:
        return str(error)
    return None


def _tell(stainer: VirtualStainer, slide: Slide, mpp: float, tissue: TissueMap | None) -> str:
    frame = frame_of(slide.width, slide.height, mpp, stainer.model.card.mpp, stainer)
    sight = Sight(slide, frame, tissue)
    windows = sum(sight.needs(window) for row in range(len(frame.tops)) for window in frame.row(row))
    found = estimate(stainer, frame, windows)
    total = len(frame.tops) * len(frame.lefts)
    return (
        f"{duration(found.seconds)} for {windows} of {total} windows of {frame.size[1]} x {frame.size[0]} at {stainer.model.card.mpp or mpp:g} um/px "
        f"({stainer.model.card.name}, {stainer.placement}); {found.memory / 2**20:.0f} MiB beside the network"
    )


class Estimate(NamedTuple):
    """What staining so many windows takes: seconds of the network, and bytes beside it."""

    seconds: float
    memory: int


def estimate(stainer: VirtualStainer, frame: Frame, windows: int) -> Estimate:
    """Time by a few steps of one window on the device at hand; memory by the sizes of what is held at once."""
    height, width = frame.size
    window = height * width * 3
    # groups that are read and stained, and a row of windows
    held = ((READ_AHEAD + 2) * GROUP + len(frame.lefts)) * window
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
