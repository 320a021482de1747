"""What a slide holds, and what staining it would take, measured on this machine: `miudiff info`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from miudiff.config import check_mpp
from miudiff.errors import ConfigError, MiudiffError, SlideError
from miudiff.estimate import pace_of
from miudiff.guards import Finding, inspect
from miudiff.progress import duration
from miudiff.slides.brightfield import check_brightfield
from miudiff.slides.choice import tissue_samples
from miudiff.slides.encoding import Compression
from miudiff.slides.frame import Frame, frame_of
from miudiff.slides.overview import TissueMap, describe, tissue_mask
from miudiff.slides.reader import Slide, is_slide, open_slide
from miudiff.slides.runner import GROUP, READ_AHEAD
from miudiff.slides.sight import Rectangle, Sight, marking
from miudiff.stainer import VirtualStainer

TILE = 512  # of the result, in pixels


def tell_slides(
    paths: Sequence[Path],
    mpp: float | None,
    load: Callable[[Path], VirtualStainer] | None,
    say: Callable[[str], None],
    mark: bool = False,
    strict: bool = False,
) -> list[str]:
    """Say what each slide holds; returns what is wrong with those that cannot be translated, a line each.

    Args:
        mpp: Micrometres per pixel where the files do not state it.
        load: Makes the stainer that a file's time and memory are estimated for; None leaves them out.
        mark: What cannot be read is counted instead of being an error, as `translate --mark-unreadable` takes it.
        strict: What the guards find is wrong, instead of only said.

    Raises:
        ConfigError: No slides.
    """
    if not paths:
        raise ConfigError("info: found no slides, expected at least one file")
    if mpp is not None:
        check_mpp(mpp)
    failed = []
    for path in paths:
        try:
            with open_slide(path) as slide:
                say(str(path))
                scale = mpp or slide.mpp
                began = time.monotonic()
                tissue = _describe(slide, mpp, mark, say)
                spent = time.monotonic() - began
                told = load is not None and (scale is not None or not is_slide(path))
                stainer = load(path) if load is not None and told else None
                # As `translate` takes them: an image without a scale as if it had the model's, a slide not at all.
                assumed = stainer.model.card.mpp if stainer and scale is None else scale
                found = _look(slide, assumed, tissue, stainer, mark, say)
                if strict and found:
                    failed.append(f"{path}: {'; '.join(one.text for one in found)}")
                    continue
                if load is None:
                    continue
                if scale is None:
                    say("  estimate not possible without a scale")
                    continue
                assert stainer is not None
                frame = frame_of(slide.width, slide.height, scale, stainer.model.card.mpp, stainer)
                say(f"  estimate {_tell(stainer, Sight(slide, frame, tissue), spent)}")
        except MiudiffError as error:
            failed.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    return failed


def _describe(slide: Slide, mpp: float | None, mark: bool, say: Callable[[str], None]) -> TissueMap:
    """Say what the file is; returns where its tissue is.

    Raises:
        SlideError: It is no brightfield slide, or a part of it cannot be read.
    """
    bright = _not_bright(slide)
    unreadable: list[Rectangle] = []
    read = marking(slide, unreadable) if mark else None
    tissue = None if bright else tissue_mask(slide, mpp or slide.mpp or 1.0, read)
    for line in describe(slide, mpp, tissue):
        say(f"  {line}")
    if unreadable:
        say(f"  damage   {_where(unreadable)} cannot be read")
    if tissue is None:
        raise SlideError(bright)
    return tissue


def _look(
    slide: Slide,
    scale: float | None,
    tissue: TissueMap,
    stainer: VirtualStainer | None,
    mark: bool,
    say: Callable[[str], None],
) -> tuple[Finding, ...]:
    """Say what the guards find in some places of the slide, and how strong its dyes are."""
    samples, sampled_at = tissue_samples(slide, scale, tissue, read=marking(slide, []) if mark else None)
    found = inspect(samples, sampled_at, stainer.model.card.he_reference if stainer else None)
    dyes = stainer.fit((he, sampled_at) for he in samples) if stainer and samples else None
    if stainer and dyes:
        say(f"  dyes     {stainer.for_section(dyes).section}")
    for one in found:
        say(f"  {one.kind:<8} {one.text}")
    return found


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


def _tell(stainer: VirtualStainer, sight: Sight, spent: float) -> str:
    """Time and memory of a slide; `spent` are the seconds that finding its glass took, which a run spends as well."""
    frame, card = sight.frame, stainer.model.card
    stained, left = sight.parted()
    pace = pace_of(stainer, sight, Compression(), stained, left)
    scale = f" at {card.mpp:g} um/px" if card.mpp else ""
    return (
        f"{duration(spent + pace.seconds(len(stained), len(left)))} for {len(stained):,} of {len(stained) + len(left):,} windows "
        f"of {frame.size[1]} x {frame.size[0]}{scale} ({card.name}, {stainer.placement}); "
        f"{memory_of(frame) / 2**20:.0f} MiB beside the network"
    )


def memory_of(frame: Frame) -> int:
    """Bytes beside the network, by the sizes of what is held at once."""
    height, width = frame.size
    window = height * width * 3
    # groups that are read and stained, and a row of windows
    held = ((READ_AHEAD + 2) * GROUP + len(frame.lefts)) * window
    strip = round(TILE * frame.scale[1] + 8) * frame.columns * 3
    # a row of the result's tiles: blended, resampled, with the glass behind it, and its half
    return held + 2 * strip + 3 * TILE * frame.width * 3
