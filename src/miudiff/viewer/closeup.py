"""The pictures of a card in the gallery: what was stained of a slide, and on the H&E, if there is one, where that lies."""

from __future__ import annotations

import numpy as np

from miudiff.errors import SlideError
from miudiff.images import Pixels
from miudiff.slides.reader import Slide, read_scaled
from miudiff.slides.stained import IntBox, stained_box, where
from miudiff.viewer.cases import Case
from miudiff.viewer.sheets import alike, open_role
from miudiff.viewer.tiles import SIDE, Slides

CLOSEUPS = ("he", "ihc")
BORDER = 3  # pixels of white around the small picture


def closeup(case: Case, role: str, slide: Slide, slides: Slides) -> Pixels:
    """A slide of a case as far as it was stained, uint8, at most [512, 512, 3].

    Args:
        role: One of `CLOSEUPS`, the role of `slide`.

    Raises:
        SlideError: It cannot be read.
    """
    box = _box(case, role, slide, slides)
    left, top, right, bottom = box
    factor = max(1.0, max(right - left, bottom - top) / SIDE)
    width, height = (max(1, round(side / factor)) for side in (right - left, bottom - top))
    pixels = read_scaled(slide, box, width, height)
    shows_where = role == ("ihc" if case.he is None else "he")
    if not shows_where or box == (0, 0, slide.width, slide.height):
        return pixels
    return _with_corner(pixels, where(slide, box))


def _box(case: Case, role: str, slide: Slide, slides: Slides) -> IntBox:
    """What of a slide is shown; of an H&E what its virtual stain shows, and all of it where they are not one field."""
    whole = (0, 0, slide.width, slide.height)
    if role == "ihc":
        return stained_box(slide)
    try:
        ihc = open_role(case, case.ihc, slides)
    except (SlideError, OSError):  # told where the virtual stain itself is shown
        return whole
    if not alike(ihc, slide):
        return whole
    across, down = slide.width / ihc.width, slide.height / ihc.height
    left, top, right, bottom = stained_box(ihc)
    return int(left * across), int(top * down), int(right * across), int(bottom * down)


def _with_corner(pixels: Pixels, small: Pixels) -> Pixels:
    """A picture with a small one in its lower right corner; as it is where that has no place."""
    framed = np.pad(small, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), constant_values=255)
    height, width = framed.shape[:2]
    if height > pixels.shape[0] or width > pixels.shape[1]:
        return pixels
    shown = pixels.copy()
    shown[-height:, -width:] = framed
    return shown
