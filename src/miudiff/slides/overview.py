"""A slide as a whole: where it shows glass, a small picture of it, and what there is to say of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from miudiff.images import Pixels
from miudiff.slides.resampling import Box
from miudiff.slides.scaled import Read, read_scaled
from miudiff.slides.slide import Slide
from miudiff.tissue import SPECK, WIDTH, glass

# Micrometres per pixel to judge glass at. Beside the judgement at 1 um/px, real H&E fields of known scale (lung, breast, of three
# scanners) have at 2, 3, 4, 8 um/px at most 4, 10, 20, 46 % of an image taken for glass that is tissue: a coarse look smooths
# pale tissue flat. The other way round, glass taken for tissue, is at most 3 % at 2 um/px, and only costs time.
JUDGED = 2.0
BLOCK = 1536  # pixels of that scale at once: with the margin about 400 MB
HELD = 32_000_000  # pixels of the map at most


Neighbours = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.floating]]


@dataclass(frozen=True)
class TissueMap:
    """How much of each small square of a slide is glass.

    Attributes:
        glass: uint8 [h, w], 0 all tissue to 255 all glass.
        step_x: Pixels of level 0 that a square spans across.
        step_y: Pixels of level 0 that a square spans down.
    """

    glass: NDArray[np.uint8]
    step_x: float
    step_y: float

    def tissue_share(self) -> float:
        """The share of the slide that is tissue, 0 to 1."""
        return 1 - float(self.glass.mean(dtype=np.float64)) / 255

    def in_box(self, left: float, top: float, right: float, bottom: float) -> NDArray[np.uint8]:
        """The squares of the map that a box of level 0 touches, uint8 [h, w]; none outside the slide."""
        rows, columns = (
            slice(max(0, math.floor(low / step)), max(0, math.ceil(high / step)))
            for low, high, step in ((top, bottom, self.step_y), (left, right, self.step_x))
        )
        return self.glass[rows, columns]

    def shows_tissue(self, box: Box, width: int, height: int) -> bool:
        """Whether any pixel of `resampled` is less than all glass, without making them."""
        down, across = self._around(box, width, height)
        rows, columns = (
            np.unique(np.concatenate([first, second[weight > 0]])) for first, second, weight in (down, across)
        )
        return bool((self.glass[np.ix_(rows, columns)] < 255).any())

    def resampled(self, box: Box, width: int, height: int) -> NDArray[np.float32]:
        """The glass of a box of level 0 at another scale, float32 [height, width] in [0, 1], interpolated linearly.

        What a pixel becomes depends on its place on the slide alone. Beyond the slide its edge goes on.
        """
        (y0, y1, wy), (x0, x1, wx) = self._around(box, width, height)
        rows = self.glass[y0] * (1 - wy)[:, None] + self.glass[y1] * wy[:, None]
        return np.asarray((rows[:, x0] * (1 - wx) + rows[:, x1] * wx) / 255, np.float32)

    def _around(self, box: Box, width: int, height: int) -> tuple[Neighbours, Neighbours]:
        """The squares around the centres of a box's pixels, down and across."""
        across = (box[0] + (np.arange(width) + 0.5) * ((box[2] - box[0]) / width)) / self.step_x - 0.5
        down = (box[1] + (np.arange(height) + 0.5) * ((box[3] - box[1]) / height)) / self.step_y - 0.5
        return _neighbours(down, self.glass.shape[0]), _neighbours(across, self.glass.shape[1])


def tissue_mask(slide: Slide, mpp: float, read: Read | None = None, block: int = BLOCK) -> TissueMap:
    """Where the slide shows glass, judged at 2 um/px in blocks; the map is coarser where it would grow too large.

    Args:
        slide: An H&E slide.
        mpp: Its micrometres per pixel, from the file or the user.
        read: Reads instead of `slide.read`.
        block: Pixels of a block's side at that scale; the map does not depend on it.

    Raises:
        SlideError: A part of the slide cannot be read.
    """
    scale = max(JUDGED, mpp)
    width, height = (max(1, round(side * mpp / scale)) for side in (slide.width, slide.height))
    step_x, step_y = slide.width / width, slide.height / height
    # How far `glass` looks: smoothing, specks of dust however long, the disc of the opening there and back, the soft edge.
    margin = math.ceil(16 + SPECK / scale**2 + WIDTH / scale + 8) + 2
    fold = max(1, math.ceil(math.sqrt(width * height / HELD)))
    block = max(1, block // fold) * fold
    result = np.empty((-(-height // fold), -(-width // fold)), np.uint8)
    for top in range(0, height, block):
        for left in range(0, width, block):
            x0, y0 = max(0, left - margin), max(0, top - margin)
            x1, y1 = min(width, left + block + margin), min(height, top + block + margin)
            box = (x0 * step_x, y0 * step_y, x1 * step_x, y1 * step_y)
            seen = glass(read_scaled(slide, box, x1 - x0, y1 - y0, read), scale)
            inner = seen[top - y0 : min(top + block, height) - y0, left - x0 : min(left + block, width) - x0]
            folded = _fold(np.rint(inner * 255).astype(np.uint8), fold)
            at_y, at_x = top // fold, left // fold
            result[at_y : at_y + folded.shape[0], at_x : at_x + folded.shape[1]] = folded
    return TissueMap(result, fold * step_x, fold * step_y)


def thumbnail(slide: Slide, longest: int = 1024) -> Pixels:
    """The whole slide with its longer side `longest` pixels, or as it is if that is smaller; uint8 [H, W, 3]."""
    factor = max(1.0, max(slide.width, slide.height) / longest)
    width, height = (max(1, round(side / factor)) for side in (slide.width, slide.height))
    return read_scaled(slide, (0, 0, slide.width, slide.height), width, height)


def describe(slide: Slide, mpp: float | None = None, tissue: TissueMap | None = None) -> list[str]:
    """Lines for `miudiff info`: what the file is, its size, levels, scale and where that was read, its tissue.

    Args:
        slide: What to describe.
        mpp: The scale that the user gave, if any; it is told beside the file's own.
        tissue: Its map, if one was made.
    """
    used = mpp or slide.mpp
    size = f"{slide.width} x {slide.height} pixels"
    if used is not None:
        size += f", {slide.width * used / 1000:.2f} x {slide.height * used / 1000:.2f} mm"
    lines = [f"format   {slide.format}", f"size     {size}"]
    levels = [f"{level.width} x {level.height} (1:{level.downsample:.4g})" for level in slide.levels]
    lines.append(f"levels   {len(levels)}: {', '.join(levels)}")
    objective = f"; objective {slide.objective}x, which is no scale" if slide.objective else ""
    if slide.mpp is not None:
        stated = f"{slide.mpp:.4g} um/px, from {slide.mpp_source}"
        given = f"; {mpp:.4g} um/px was given" if mpp else ""
    else:
        stated = "not stated in the file"
        given = f"; {mpp:.4g} um/px was given" if mpp else "; give it with --mpp"
    lines.append(f"scale    {stated}{given}{objective}")
    if tissue is not None:
        lines.append(f"tissue   {tissue.tissue_share():.1%} of the slide")
    return lines


def _neighbours(places: NDArray[np.floating], count: int) -> Neighbours:
    """The two indices around each place, and the weight of the second."""
    inside = places.clip(0, count - 1)
    first = np.floor(inside).astype(np.int64)
    return first, np.minimum(first + 1, count - 1), inside - first


def _fold(values: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Means of squares of factor x factor; those at the end may be smaller."""
    if factor == 1:
        return values
    rows, columns = np.arange(0, values.shape[0], factor), np.arange(0, values.shape[1], factor)
    sums = np.add.reduceat(np.add.reduceat(values.astype(np.int64), rows, 0), columns, 1)
    counts = np.outer(np.diff(np.append(rows, values.shape[0])), np.diff(np.append(columns, values.shape[1])))
    return np.rint(sums / counts).astype(np.uint8)
