"""The grid that a slide is measured on, about 1 µm per pixel, cut into blocks and into the squares of its maps.

A pixel of the plane is a whole power of two of level-0 pixels, so that a pyramid holds it as it is and nothing is resampled
twice. Blocks are read one by one, with a margin where cells are looked for; none is larger than `BLOCK` and two margins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

BLOCK = 1024  # pixels a side
COARSEST = 1.1  # µm of a pixel, unless the slide itself is coarser
UNSCALED = 16_384  # pixels of the longer side that a slide without a scale is measured at
FACTORS = (1, 2, 4)  # for such a slide: no scanner is so fine that 4 of its pixels are more than a cell
PLACES = 200_000  # squares of a map
SMALLEST_PLACE, LARGEST_PLACE = 16, BLOCK  # pixels a side


@dataclass(frozen=True)
class Block:
    """A rectangle of the plane, in its pixels."""

    x: int
    y: int
    width: int
    height: int

    def grown(self, margin: int, plane: Plane) -> Block:
        """With a margin on every side, as far as the plane goes."""
        left, top = max(self.x - margin, 0), max(self.y - margin, 0)
        right = min(self.x + self.width + margin, plane.width)
        bottom = min(self.y + self.height + margin, plane.height)
        return Block(left, top, right - left, bottom - top)


@dataclass(frozen=True)
class Plane:
    """The grid.

    Attributes:
        width: Pixels.
        height: Pixels.
        step: Level-0 pixels that a pixel of the plane spans.
        mpp: Micrometres of a pixel of the plane, None if the slide's scale is not known.
        place: Pixels of the plane that a square of the maps spans; it divides `BLOCK`.
    """

    width: int
    height: int
    step: int
    mpp: float | None
    place: int

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the maps; the last ones may reach beyond the slide."""
        return -(-self.height // self.place), -(-self.width // self.place)

    def blocks(self, size: int = BLOCK) -> Iterator[Block]:
        """The blocks that the plane consists of, from above; `size` is a multiple of `place`."""
        for y in range(0, self.height, size):
            for x in range(0, self.width, size):
                yield Block(x, y, min(size, self.width - x), min(size, self.height - y))

    def box(self, block: Block) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of a block in pixels of level 0."""
        s = self.step
        return block.x * s, block.y * s, (block.x + block.width) * s, (block.y + block.height) * s


def plane_of(width: int, height: int, mpp: float | None) -> Plane:
    """The plane of a slide of these level-0 pixels and micrometres per pixel."""
    longest = max(width, height)
    if mpp is None:
        step = next((f for f in FACTORS if longest <= UNSCALED * f), FACTORS[-1])
    else:
        step = 2 ** max(0, math.floor(math.log2(COARSEST / mpp)))
    across, down = max(width // step, 1), max(height // step, 1)
    place = SMALLEST_PLACE
    while place < LARGEST_PLACE and across * down > PLACES * place**2:
        place *= 2
    return Plane(across, down, step, None if mpp is None else mpp * step, place)
