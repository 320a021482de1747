"""What of a slide is to be stained and what stays: glass, regions of interest, and what cannot be read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from miudiff.errors import SlideError
from miudiff.images import Pixels, write_bytes
from miudiff.slides.frame import Box, Frame, Window
from miudiff.slides.marked import read_marked
from miudiff.slides.overview import TissueMap
from miudiff.slides.reader import Slide, read_scaled
from miudiff.slides.regions import Regions
from miudiff.slides.scaled import Read

OUTSIDE = 204  # grey of what lies outside the regions asked for: no tissue, no glass, no stain
HATCH, HATCH_WIDTH = (204, 102), 16  # greys and pixels of the hatching over what cannot be read
MARGIN = 4  # working pixels around a window that the resampling back to level 0 looks at


class Rectangle(NamedTuple):
    """Whole pixels of level 0."""

    x: int
    y: int
    width: int
    height: int


def write_rectangles(path: Path, found: Iterable[Rectangle]) -> None:
    """Note what could not be read, each place once."""
    write_bytes(path, json.dumps(sorted(set(found))).encode())


def read_rectangles(path: Path) -> list[Rectangle]:
    """What was noted; nothing where there is no note.

    Raises:
        SlideError: The note is damaged.
    """
    try:
        return [Rectangle(*map(int, at)) for at in json.loads(path.read_text())]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise SlideError(f"{path}: damaged; remove this file and run the same command again") from error


@dataclass(frozen=True)
class Sight:
    """A slide as the runner sees it. Reading is safe from several threads, and a function of the place alone.

    Attributes:
        glass: None stains glass like tissue.
        regions: None asks for the whole slide.
        chosen: The only windows that are stained; None takes every one that is needed.
        mark: What cannot be read is told beside the pixels instead of stopping the job.
    """

    slide: Slide
    frame: Frame
    glass: TissueMap | None = None
    regions: Regions | None = None
    mark: bool = False
    chosen: frozenset[Window] | None = None

    def parted(self) -> tuple[list[Window], list[Window]]:
        """The windows that are stained, and those that are not."""
        kinds: tuple[list[Window], list[Window]] = ([], [])
        for row in range(len(self.frame.tops)):
            for window in self.frame.row(row):
                kinds[not self.needs(window)].append(window)
        return kinds

    def needs(self, window: Window) -> bool:
        """Whether any pixel of the result comes from this window."""
        if self.chosen is not None and window not in self.chosen:
            return False
        height, width = self.frame.size
        left, top = max(window.left - MARGIN, 0), max(window.top - MARGIN, 0)
        right = min(window.left + width + MARGIN, self.frame.columns)
        bottom = min(window.top + height + MARGIN, self.frame.rows)
        box = self.frame.box(left, top, right, bottom)
        if self.regions is not None and not self.asked_for(box, 1 / self.frame.scale[0]).any():
            return False
        if self.glass is None:
            return True
        return self.glass.shows_tissue(box, right - left, bottom - top)

    def asked_for(self, box: Box, downsample: float = 1.0) -> NDArray[np.bool_]:
        """Which pixels of a box of level 0, seen at `downsample`, lie in the regions."""
        assert self.regions is not None
        width = max(round((box.right - box.left) / downsample), 1)
        height = max(round((box.bottom - box.top) / downsample), 1)
        return self.regions.mask(box.left, box.top, width, height, downsample)

    def windows(self, windows: Sequence[Window]) -> tuple[list[Pixels], list[Rectangle]]:
        """H&E at the working scale of neighbouring windows of one row, and what of it cannot be read.

        They are read in one go; a pixel depends on its place alone, so it does not matter which are read together.

        Raises:
            SlideError: Something cannot be read and is not to be marked.
        """
        height, width = self.frame.size
        left, top = windows[0].left, windows[0].top
        end, right = windows[-1].left + width, min(windows[-1].left + width, self.frame.columns)
        bottom = min(top + height, self.frame.rows)
        bad: list[Rectangle] = []
        read = marking(self.slide, bad) if self.mark else None
        pixels = read_scaled(
            self.slide, self.frame.box(left, top, right, bottom), right - left, bottom - top, read
        )
        spare = ((0, top + height - bottom), (0, end - right), (0, 0))
        pixels = np.pad(pixels, spare, mode="symmetric") if any(map(any, spare)) else pixels
        return [pixels[:, at.left - left : at.left - left + width] for at in windows], bad

    def level0(self, x: int, y: int, width: int, height: int) -> tuple[Pixels, list[Rectangle]]:
        """Pixels of level 0 as they are, and what of them cannot be read.

        Raises:
            SlideError: Something cannot be read and is not to be marked.
        """
        bad: list[Rectangle] = []
        if self.mark:
            return marking(self.slide, bad)(x, y, width, height, 0), bad
        return self.slide.read(x, y, width, height, 0), bad


def marking(slide: Slide, found: list[Rectangle]) -> Read:
    """Reads of a slide that tell in `found` what cannot be read, instead of stopping at it."""
    return partial(_read_and_mark, found, slide)


def _read_and_mark(
    found: list[Rectangle], slide: Slide, x: int, y: int, width: int, height: int, level: int
) -> Pixels:
    pixels, bad = read_marked(slide, x, y, width, height, level)
    if not bad.any():
        return pixels
    found += _rectangles(bad, x, y, slide.levels[level].downsample)
    # A network sees what surrounds a hole; black would be an edge to it.
    filled = pixels.copy()
    filled[bad] = np.median(pixels[~bad], axis=0).astype(np.uint8) if (~bad).any() else 255
    return filled


def painted(pixels: Pixels, x: int, y: int, bad: Iterable[Rectangle]) -> Pixels:
    """Pixels whose left upper corner lies at (x, y) of level 0, with a hatching over what could not be read."""
    height, width = pixels.shape[:2]
    result = pixels
    for at in bad:
        top, bottom = max(at.y - y, 0), min(at.y + at.height - y, height)
        left, right = max(at.x - x, 0), min(at.x + at.width - x, width)
        if top < bottom and left < right:
            result = pixels.copy() if result is pixels else result
            rows, columns = np.mgrid[top:bottom, left:right]
            stripe = (rows + y + columns + x) // HATCH_WIDTH % 2
            result[top:bottom, left:right] = np.array(HATCH, np.uint8)[stripe][..., None]
    return result


def _rectangles(bad: NDArray[np.bool_], x: int, y: int, downsample: float) -> list[Rectangle]:
    """The blocks of an unreadable mask in level-0 pixels, rounded outwards."""
    from scipy import ndimage

    labels, _ = ndimage.label(bad)
    found = []
    for rows, columns in ndimage.find_objects(labels):
        left, top = int((x + columns.start) * downsample), int((y + rows.start) * downsample)
        right, bottom = math.ceil((x + columns.stop) * downsample), math.ceil((y + rows.stop) * downsample)
        found.append(Rectangle(left, top, right - left, bottom - top))
    return found
