"""The measure of seams against closed forms."""

import math

import numpy as np
import pytest

from miudiff.slides.seams import seams


def slope(height, width, step=1):
    """Grey levels that rise by `step` a column."""
    return np.repeat((step * np.arange(width, dtype=np.uint8))[None, :, None], height, 0).repeat(3, 2)


def test_an_even_slope_has_no_seams():
    ramp = slope(64, 64) + slope(64, 64).transpose(1, 0, 2)
    found = seams(ramp, [0, 32], [0, 32], (32, 32))
    assert found.border == pytest.approx(1)


def test_a_step_between_two_windows_is_told_by_its_height():
    picture = slope(10, 64)
    picture[:, 32:] += 9  # a step of 10 where all others are 1, in one row of windows
    found = seams(picture, [0, 32], [0], (10, 32))
    inside = 62 * 10 / (62 * 10 + 9 * 64)  # 62 lines across of slope 1, and 9 lines down of slope 0
    assert found.border == pytest.approx(10 / inside)
    assert math.isnan(found.blend)


def test_what_two_windows_share_is_told_apart_from_its_ends():
    picture = slope(10, 56)
    picture[:, 24:32] = (
        24  # flat where the windows [0, 32) and [24, 56) overlap: their blend has lost the slope
    )
    found = seams(picture, [0, 24], [0], (10, 32))
    assert found.blend == 0
    assert found.border > 1
