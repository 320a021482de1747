"""Which part of a virtual slide there is something to see of, and a small picture of where on the slide that lies."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from miudiff.images import Pixels
from miudiff.slides.marked import read_scaled_marked
from miudiff.slides.slide import Slide
from miudiff.tissue import glass

LOOKED_AT = 512  # pixels of the longer side, to find what was stained
MARGIN = 0.04  # of the longer side of what was stained, on each side
SPECK = 0.02  # of the largest piece's area: a smaller one is dust or debris, and does not widen the box
WHOLE = 0.7  # of the slide's area: a box that holds more is the whole slide
SMALL = 160  # pixels of the longer side of the small picture
FRAME = (((255, 255, 255), 8), ((0, 0, 0), 4))  # colours and widths, one on the other: seen on any tissue

IntBox = tuple[int, int, int, int]


def stained_box(slide: Slide) -> IntBox:
    """Left, top, right and bottom, in pixels of level 0, of what is neither glass nor the grey of what was left out.

    With a margin and without specks; the whole slide where nothing or nearly everything was stained.
    """
    whole = (0, 0, slide.width, slide.height)
    pixels, factor = _whole(slide, LOOKED_AT)
    seen = glass(pixels, (slide.mpp or 1.0) * factor) < 0.5
    if not seen.any():
        return whole
    labels, _ = ndimage.label(seen)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    seen = (sizes >= SPECK * sizes.max())[labels] & seen
    (top, bottom), (left, right) = (np.flatnonzero(seen.any(axis))[[0, -1]] + (0, 1) for axis in (1, 0))
    margin = MARGIN * max(bottom - top, right - left)
    box = (
        max(int((left - margin) * factor), 0),
        max(int((top - margin) * factor), 0),
        min(int((right + margin) * factor), slide.width),
        min(int((bottom + margin) * factor), slide.height),
    )
    area = (box[2] - box[0]) * (box[3] - box[1])
    return box if area < WHOLE * slide.width * slide.height else whole


def where(slide: Slide, box: IntBox) -> Pixels:
    """The whole slide, small, with a frame around the box: uint8 [H, W, 3]."""
    pixels, factor = _whole(slide, SMALL)
    image = Image.fromarray(pixels)
    left, top, right, bottom = (side / factor for side in box)
    for colour, wide in FRAME:
        frame = (left, top, max(right - 1, left), max(bottom - 1, top))
        ImageDraw.Draw(image).rectangle(frame, None, colour, wide)
    return np.asarray(image)


def _whole(slide: Slide, longest: int) -> tuple[Pixels, float]:
    """The slide with its longer side so many pixels at most, what cannot be read in black; and level-0 pixels of one."""
    factor = max(1.0, max(slide.width, slide.height) / longest)
    width, height = (max(1, round(side / factor)) for side in (slide.width, slide.height))
    return read_scaled_marked(slide, (0, 0, slide.width, slide.height), width, height)[0], factor
