"""The two dyes of an H&E section are found from its tissue, whatever their strength, hue and glass."""

import numpy as np
import pytest

from miudiff.data.twin import twin_region
from miudiff.errors import DataError
from miudiff.normalisation import fit_he_stains
from miudiff.stains import combine_stains, rgb_from_he, separate_stains, stain_matrix

HE, _ = twin_region("train")
BLUISH = stain_matrix((0.70, 0.66, 0.27), (0.18, 0.92, 0.35))


def restained(hematoxylin=1.0, eosin=1.0, matrix=rgb_from_he, light=(246, 243, 245)):
    """The twin with its dyes stronger or weaker, in other colours, on other glass."""
    amounts = separate_stains(HE, rgb_from_he, np.array([246.0, 243.0, 245.0]))[..., :2]
    return combine_stains(amounts * (hematoxylin, eosin), matrix, np.array(light, float))


def test_the_dyes_of_a_section_are_found():
    found = fit_he_stains([HE])
    assert np.dot(found.hematoxylin, rgb_from_he[0]) > 0.995
    assert np.dot(found.eosin, rgb_from_he[1]) > 0.995
    assert found.light == pytest.approx((246, 243, 245), abs=1)


@pytest.mark.parametrize(
    "other",
    [
        {"hematoxylin": 0.6},
        {"hematoxylin": 1.6},
        {"eosin": 0.6},
        {"eosin": 1.6},
        {"matrix": BLUISH},
        {"light": (205, 190, 199)},
    ],
    ids=str,
)
def test_amounts_are_the_same_however_the_section_was_stained_and_scanned(other):
    image = restained(**other)
    before, after = fit_he_stains([HE]).amounts(HE), fit_he_stains([image]).amounts(image)
    assert np.abs(after - before).mean(axis=(0, 1)) == pytest.approx([0, 0], abs=0.04)


def test_several_samples_of_a_section_are_fitted_as_one():
    halves = [HE[:256], HE[256:]]
    assert fit_he_stains(halves) == fit_he_stains([HE])


def test_pigment_and_pen_are_no_dyes():
    image = HE.copy()
    image[:80, :80] = (40, 38, 36)
    assert np.dot(fit_he_stains([image]).hematoxylin, fit_he_stains([HE]).hematoxylin) > 0.99


@pytest.mark.parametrize("grey", [255, 128, 0])
def test_what_has_no_tissue_is_refused(grey):
    with pytest.raises(DataError, match="0 pixels of tissue, expected at least 2000"):
        fit_he_stains([np.full((64, 64, 3), grey, np.uint8)])
