"""The cells of a block: each is counted in the one block that holds its centroid.

A block is read with a margin, so a nucleus on its border is seen whole, and the same way, by all blocks that it touches. Its
centroid is a quotient of sums of whole numbers in pixels of the slide: all blocks get the same bits, so the nucleus falls to one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import find_contours

from miudiff.cells import AROUND, CELL, NUCLEUS, Bars, Labels, Mask, cell_mask, split_cells
from miudiff.images import Pixels
from miudiff.slide_report.plane import Block, Plane
from miudiff.stains import Floats, dab_map

COARSEST = 1.5  # µm per pixel: at a coarser scale a nucleus is five pixels across, and its watershed a guess

Outline = NDArray[np.float32]


@dataclass(frozen=True)
class Nuclei:
    """Cells, in pixels of the plane.

    Attributes:
        x: Centroids, [cells]; the upper left corner of the slide is 0, 0.
        y: The same downwards.
        pixels: Their areas.
        dab: Their mean densities of DAB.
        outlines: A closed ring [points, 2] of x, y for each; empty if nobody asked.
    """

    x: Floats
    y: Floats
    pixels: NDArray[np.int64]
    dab: Floats
    outlines: tuple[Outline, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    def pixel_of(self, block: Block) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows and columns of the centroids in their block."""
        return np.floor(self.y).astype(np.int64) - block.y, np.floor(self.x).astype(np.int64) - block.x

    def without_outlines(self) -> Nuclei:
        """The same cells as points."""
        return replace(self, outlines=())

    @classmethod
    def together(cls, several: Sequence[Nuclei]) -> Nuclei:
        """The cells of several blocks; with outlines if all have them."""
        nothing = cls(np.zeros(0), np.zeros(0), np.zeros(0, np.int64), np.zeros(0))
        each = [nuclei for nuclei in several if len(nuclei)] or [nothing]
        outlined = all(nuclei.outlines for nuclei in each)
        return cls(
            np.concatenate([nuclei.x for nuclei in each]),
            np.concatenate([nuclei.y for nuclei in each]),
            np.concatenate([nuclei.pixels for nuclei in each]),
            np.concatenate([nuclei.dab for nuclei in each]),
            tuple(ring for nuclei in each for ring in nuclei.outlines) if outlined else (),
        )


def diameter(plane: Plane) -> float | None:
    """Pixels of the plane across a nucleus; None where cells cannot be measured."""
    return None if plane.mpp is None or plane.mpp > COARSEST else NUCLEUS / plane.mpp


def margin(across: float) -> int:
    """Pixels around a block within which something can change a cell inside it: its surroundings, and two neighbours."""
    return math.ceil(across * AROUND / 2 + 3 * across)


def find_nuclei(
    pixels: Pixels,
    seen: Block,
    block: Block,
    bars: Bars,
    across: float = CELL,
    counts: Mask | None = None,
    outlined: bool = False,
) -> Nuclei:
    """The cells whose centroids lie in a block.

    Args:
        pixels: uint8 [H, W, 3] of virtual IHC.
        seen: What `pixels` show: the block with its margin.
        bars: What cells of this slide are judged by.
        across: Pixels across a nucleus.
        counts: The pixels [H, W] of `block` whose cells count; None takes all.
        outlined: Trace the outlines.
    """
    labels = split_cells(cell_mask(pixels, across, bars), across)
    size = np.bincount(labels.ravel())
    dab = np.bincount(labels.ravel(), dab_map(pixels, bars.light).ravel())
    size[0] = max(size[0], 1)  # what is no cell is dropped below; there may be none of it
    x = _centre(labels, np.arange(labels.shape[1])[None] + seen.x, size)
    y = _centre(labels, np.arange(labels.shape[0])[:, None] + seen.y, size)
    inside = (x >= block.x) & (x < block.x + block.width) & (y >= block.y) & (y < block.y + block.height)
    inside[0] = False
    if counts is not None:
        rows, columns = (np.floor(place[inside]).astype(np.int64) for place in (y - block.y, x - block.x))
        inside[inside] = counts[rows, columns]
    outlines = _outlines(labels, np.flatnonzero(inside), seen) if outlined else ()
    return Nuclei(x[inside], y[inside], size[inside], dab[inside] / size[inside], outlines)


def _centre(labels: Labels, places: NDArray[np.int64], size: NDArray[np.int64]) -> Floats:
    """Mean over each label's pixels of their middles; sums of whole numbers are exact."""
    total = np.bincount(labels.ravel(), np.broadcast_to(places, labels.shape).ravel()).astype(np.int64)
    return np.asarray((2 * total + size) / (2 * size))


def _outlines(labels: Labels, wanted: NDArray[np.intp], seen: Block) -> tuple[Outline, ...]:
    boxes: list[Any] = ndimage.find_objects(labels)
    rings = []
    for label in wanted:
        down, across = boxes[label - 1]
        mask = np.pad(labels[down, across] == label, 1).astype(np.float32)
        # A cell of the watershed is connected; its longest contour goes around it, the others around its holes.
        ring = _corners(max(find_contours(mask, 0.5), key=len))
        # Contours count from the middle of the first pixel, which is padding here.
        corner = (seen.x + across.start - 0.5, seen.y + down.start - 0.5)
        rings.append((ring[:, ::-1] + corner).astype(np.float32))
    return tuple(rings)


def _corners(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """A closed ring [points, 2] without the points on its straight parts."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    corners = points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return np.concatenate([corners, corners[:1]])
