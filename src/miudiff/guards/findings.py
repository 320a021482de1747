"""The guards themselves: thresholds, and the line that each says. `docs/guards.md` has how each threshold was found."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from miudiff.errors import DataError
from miudiff.guards.colours import Colours, colours_of
from miudiff.guards.reference import HEReference, describe
from miudiff.guards.texture import nuclear_size, part, sharpness
from miudiff.images import Pixels

log = logging.getLogger(__name__)

Kind = Literal["stain", "tissue", "focus", "scale", "model"]

DARK = 0.6  # share of a picture that is nearly black: fluorescence
DRAWN = 0.4  # share of what is no glass in exactly even areas: a drawing
PRINTED = 0.001  # share of what is not white that is black beside white: print on a page
INK = 0.01  # share of what is stained that is green: a pen
TISSUE = 0.02  # share of a picture below which there is nothing to stain
BROWN = 0.025  # share of the dye: DAB
EOSIN = 0.23  # index below which there is no eosin: DAB or hematoxylin alone
SPECKS = 0.002  # share of a picture from which on its colours are looked at
SHARP = 0.33  # contrast of fine over coarse detail
NUCLEAR = (5.6, 8.8)  # micrometres
PIXELS = 4.8  # across the least that is found: at a coarse scale more than nuclei
# Micrometres per pixel: finer than slide scanners and 100x lenses have, and coarser than nuclei of a few pixels, which then say nothing.
SCANNED = (0.07, 2.5)
# The size that is found where the scale stated is so many times the true one, as medians of H&E of known scale.
FOUND = ((5.3, 0.25), (5.9, 0.5), (7.1, 1.0), (8.9, 2.0), (11.2, 4.0))

REFUSES = "; --strict refuses all else"
STAIN = f"give H&E, the only stain that the model translates{REFUSES}"
SCAN = f"give the scan of the H&E section itself{REFUSES}"
PEN = "stain the tissue around it alone (a slide's by --roi, an image's by cutting it out), or wipe the glass and scan it again"


@dataclass(frozen=True)
class Finding:
    """One thing that is not as H&E for a model should be.

    Attributes:
        kind: What was looked at; an image has at most one finding of a kind.
        figure: What was measured.
        expected: What it is in images that the model is for, in words.
        text: Both in a line, with what it looks like and the option that answers it.
    """

    kind: Kind
    figure: float
    expected: str
    text: str


def inspect(
    samples: Sequence[Pixels], mpp: float | None, reference: HEReference | None = None
) -> tuple[Finding, ...]:
    """What is wrong with an image or a slide, the gravest first; nothing for H&E as it should be.

    Args:
        samples: uint8 [H, W, 3]: the image itself, or some parts of a slide.
        mpp: Their micrometres per pixel; None looks neither at focus nor at scale nor for the model's H&E.
        reference: The H&E that the model knows; None does not compare.
    """
    found = _of_colours(colours_of(samples)) if samples else _of_tissue(0.0)
    if found is not None:  # what is measured of nuclei means nothing where there are none
        return (found,)
    if mpp is None:
        return ()
    if not SCANNED[0] <= mpp <= SCANNED[1]:  # no nucleus can be measured then
        return (_of_stated(mpp),)
    parts, scale = part(samples, mpp)
    findings = [_of_focus(sharpness(parts, scale), mpp), _of_scale(nuclear_size(parts, scale), mpp)]
    if reference is not None:
        with contextlib.suppress(DataError):  # too little tissue to tell its dyes apart
            findings.append(_of_distance(reference.distance(describe(parts, scale)), reference))
    return tuple(one for one in findings if one is not None)


def warn(path: Path, findings: Sequence[Finding], strict: bool) -> list[dict[str, Any]]:
    """Say a line in the log for each finding of a file; returns them as a result's record holds them.

    Raises:
        DataError: There is a finding, and `strict` refuses what has one.
    """
    lines = [one.text for one in findings]
    if strict and lines:
        told = "; ".join(line.removesuffix(REFUSES) for line in lines)
        raise DataError(f"{path}: {told} (refused, as --strict asks)")
    for line in lines:
        log.warning("%s: %s", path, line)
    return [asdict(one) | {"figure": round(one.figure, 4)} for one in findings]


def _of_colours(seen: Colours) -> Finding | None:
    """What the colours are if they are not those of H&E; the surest sign decides."""
    stained = seen.tissue >= TISSUE
    if seen.dark > DARK:
        return _looks("a fluorescence image", "{:.0%} of it is nearly black", seen.dark, DARK, SCAN)
    if seen.drawn > DRAWN:
        return _looks("a drawing", "{:.0%} of it lies in exactly even areas", seen.drawn, DRAWN, SCAN)
    if seen.brown > BROWN and seen.tissue > SPECKS:
        return _looks("a DAB IHC section", "{:.0%} of its dye is brown", seen.brown, BROWN, STAIN)
    if seen.ink > INK and seen.tissue > SPECKS:
        return _looks("ink on the glass", "{:.0%} of what is stained is green", seen.ink, INK, PEN)
    if not stained:
        return _of_tissue(seen.tissue)
    if seen.eosin < EOSIN:
        text = f"looks like hematoxylin without eosin, as weak or negative IHC: its eosin index is {seen.eosin:.2f}, expected at least {EOSIN:g}; {STAIN}"
        return Finding("stain", seen.eosin, f"at least {EOSIN:g}", text)
    if seen.printed > PRINTED:
        return _looks(
            "a page with print",
            "{:.1%} of what is not white is black beside white",
            seen.printed,
            PRINTED,
            SCAN,
        )
    return None


def _looks(like: str, measured: str, figure: float, most: float, fix: str) -> Finding:
    expected = f"at most {100 * most:g} %"
    return Finding(
        "stain", figure, expected, f"looks like {like}: {measured.format(figure)}, expected {expected}; {fix}"
    )


def _of_tissue(share: float) -> Finding:
    expected = f"at least {TISSUE:.0%}"
    text = f"{share:.1%} of it is tissue, expected {expected}; there is nothing to stain, choose another place (of a slide, with --roi)"
    return Finding("tissue", share, expected, text)


def _of_focus(sharp: float, mpp: float) -> Finding | None:
    if not sharp < SHARP:  # NaN where it cannot be seen
        return None
    expected = f"at least {SHARP:g}"
    text = (
        f"is not as sharp as {mpp:.3g} um per pixel would be: its finest detail has {sharp:.2f} of the contrast of coarser, expected {expected}; "
        "scan it again in focus, or if it was enlarged give the scale that it was scanned at with --mpp"
    )
    return Finding("focus", sharp, expected, text)


def _of_scale(size: float, mpp: float) -> Finding | None:
    low, high = NUCLEAR[0], max(NUCLEAR[1], PIXELS * mpp)
    if not (size < low or size > high):
        return None
    sizes, times = zip(*FOUND, strict=True)
    believed = mpp / 2 ** float(np.interp(size, sizes, np.log2(times)))
    expected = f"{low:g} to {high:g}"
    text = f"its nuclei are {size:.1f} um across at {mpp:.3g} um per pixel, expected {expected}, as at about {believed:.2g} um per pixel; give the right scale with --mpp"
    return Finding("scale", size, expected, text)


def _of_stated(mpp: float) -> Finding:
    expected = f"{SCANNED[0]:g} to {SCANNED[1]:g}"
    seen = "nuclei are too small to be seen" if mpp > SCANNED[1] else "no slide scanner is as fine"
    text = f"is stated to have {mpp:.3g} um per pixel, expected {expected}: {seen}; give the right scale with --mpp"
    return Finding("scale", mpp, expected, text)


def _of_distance(distance: float, reference: HEReference) -> Finding | None:
    if not distance > reference.limit:
        return None
    expected = f"at most {reference.limit:.1f}"
    text = f"is far from the H&E that the model knows: distance {distance:.1f}, expected {expected}; look at the result with care, or take another --model"
    return Finding("model", distance, expected, text)
