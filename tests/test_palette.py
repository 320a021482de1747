"""The palette gives H&E's two dyes the colours that nuclei and all else have in a marker's IHC."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from miudiff.errors import DataError
from miudiff.images import to_tensor, to_uint8
from miudiff.methods.palette import MOST, Palette, measure_palette
from miudiff.normalisation import HEStains
from miudiff.stains import (
    HE_EOSIN,
    HE_HEMATOXYLIN,
    combine_stains,
    optical_density,
    rgb_from_hdab,
    rgb_from_he,
    stain_matrix,
)

NUCLEI, GROUND = (0.4, 0.3, 0.2), (0.05, 0.06, 0.08)
UNIT = stain_matrix(HE_HEMATOXYLIN, HE_EOSIN)
DYES = {
    "light": (255, 255, 255),
    "hematoxylin": tuple(UNIT[0]),
    "eosin": tuple(UNIT[1]),
    "strength": (1.0, 0.5),
}


def palette(**changes):
    given = {
        "dyes": DYES,
        "hematoxylin": (0.1, 0.6),
        "eosin": 0.8,
        "nuclei": NUCLEI,
        "ground": GROUND,
        "dab": (0.0, 0.0),
    }
    return Palette.model_validate(given | changes)


def he_of(hematoxylin, eosin):
    """Pixels of stated amounts, 1 being the dyes' strength, as a tensor [1, 3, 1, N] without rounding."""
    density = np.array(hematoxylin)[:, None] * UNIT[0] + 0.5 * np.array(eosin)[:, None] * UNIT[1]
    return torch.tensor(2 * 10**-density - 1).T.reshape(1, 3, 1, -1)


def density_of(image):
    return -torch.log10((image + 1) / 2)[0, :, 0].T.numpy()


def test_glass_mean_tissue_and_a_mean_nucleus_take_the_colours_that_they_have_in_ihc():
    found = density_of(palette()(he_of([0, 0.1, 0.6], [0, 0.8, 0.0])))
    assert found == pytest.approx(np.array([(0, 0, 0), GROUND, NUCLEI]), abs=1e-6)


def test_eosin_never_makes_a_nucleus_and_hides_behind_one():
    found = density_of(palette()(he_of([0.1, 0.6, 0.6], [1.2, 0.0, 0.8])))
    assert found[0] == pytest.approx(MOST * np.array(GROUND), abs=1e-6)
    assert found[1] == pytest.approx(found[2], abs=1e-6)


def test_folds_and_pigment_are_no_denser_than_most():
    found = density_of(palette()(he_of([2.5, 0.0], [0.0, 4.0])))
    assert found == pytest.approx(MOST * np.array([NUCLEI, GROUND]), abs=1e-6)


def test_a_pixels_colour_depends_on_that_pixel_alone_for_antigens_of_nuclei():
    he = to_tensor(np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)[0])
    whole = palette()(he)
    torch.testing.assert_close(palette()(he[..., 4:9, 3:20]), whole[..., 4:9, 3:20])
    assert whole.min() >= -1
    assert whole.max() <= 1


def test_dab_beside_nuclei_follows_how_crowded_they_are_where_the_antigen_is_none_of_nuclei():
    """Two pixels of equal eosin: with a nucleus in reach the DAB of its ground is w = 2 / 9 / 0.1, cut at 2 times the mean, else none."""
    he = he_of([0.1] * 4 + [0.6] + [0.1] * 10, [0.8] * 4 + [0.0] + [0.8] * 10)
    found = density_of(palette(dab=(0.0, 0.2), crowding=0.1, reach=3)(he)) @ np.linalg.inv(rgb_from_hdab)
    rest = np.array(GROUND) @ np.linalg.inv(rgb_from_hdab)
    assert found[3] == pytest.approx(rest + np.array([0, 0.4, 0]), abs=1e-6)
    assert found[9] == pytest.approx(rest, abs=1e-6)
    even = density_of(palette(dab=(0.0, 0.2))(he)) @ np.linalg.inv(rgb_from_hdab)
    assert even[[3, 9]] == pytest.approx(np.stack([rest + np.array([0, 0.2, 0])] * 2), abs=1e-6)


def field(nucleus, tissue, matrix, seed, side=160):
    """Round nuclei in tissue, each of stated amounts of two stains, on glass; the image and its nuclei."""
    y, x = np.mgrid[:side, :side]
    stain, mask = np.zeros((side, side, 2)), np.zeros((side, side), bool)
    stain[16:, 16:] = tissue
    for row, column in np.stack(np.mgrid[40:side:32, 40:side:32], -1).reshape(-1, 2):
        mask |= (y - row) ** 2 + (x - column) ** 2 <= 64
    stain[mask] = nucleus
    grain = np.random.default_rng(seed).uniform(0.95, 1.05, (side, side, 2))
    return combine_stains(stain * grain, matrix), mask


def test_what_is_measured_is_what_the_sets_hold():
    he, _ = field((0.8, 0.1), (0.05, 0.3), rgb_from_he, 0)
    ihc, mask = field((0.5, 0.0), (0.03, 0.02), rgb_from_hdab, 1)
    found = measure_palette([he], [ihc], nuclear=True)
    nuclei = -np.log10((ihc[mask] / 255).mean(axis=0))
    assert found.nuclei == pytest.approx(nuclei, abs=0.06)  # without DAB
    assert np.linalg.norm(found.ground) < 0.2 * np.linalg.norm(found.nuclei)
    seen = optical_density(to_uint8(found(to_tensor(he)))[0])
    assert seen[mask].mean(axis=0) == pytest.approx(nuclei, abs=0.08)


def test_the_dab_of_nuclei_counts_as_often_as_the_gain_says():
    once, twice = (
        density_of(palette(dab=(0.3, 0.1), gain=gain)(he_of([0.6, 0.1], [0.0, 0.8])))
        @ np.linalg.inv(rgb_from_hdab)
        for gain in (1.0, 2.0)
    )
    assert twice - once == pytest.approx(np.array([(0, 0.3, 0), (0, 0, 0)]), abs=1e-6)


def test_dab_is_told_from_the_rest_of_nuclei_and_of_what_lies_beside_them():
    he, _ = field((0.8, 0.1), (0.05, 0.3), rgb_from_he, 0)
    ihc, _ = field((0.3, 0.2), (0.03, 0.02), rgb_from_hdab, 1)
    found = measure_palette([he], [ihc], nuclear=False)
    assert found.dab[0] == pytest.approx(0.2, abs=0.01)
    assert found.dab[1] < 0.06  # the nuclei's rims lie there, too
    rest = np.array(found.nuclei) @ np.linalg.inv(rgb_from_hdab)
    assert rest == pytest.approx([0.3, 0, 0], abs=0.01)


def test_sets_without_tissue_are_refused():
    he, _ = field((0.8, 0.1), (0.05, 0.3), rgb_from_he, 0)
    ihc, _ = field((0.5, 0.0), (0.03, 0.02), rgb_from_hdab, 1)
    glass = np.full((64, 64, 3), 250, np.uint8)
    with pytest.raises(DataError, match="no IHC image has 300 pixels of nuclei"):
        measure_palette([he], [glass], nuclear=True)
    with pytest.raises(DataError, match="no H&E image has 300 pixels of nuclei"):
        measure_palette([glass], [ihc], nuclear=True)


@pytest.mark.parametrize("wrong", [{"eosin": 0.0}, {"nuclei": (0.1, 0.2)}, {"channel": "red"}])
def test_a_palette_that_is_none_is_refused(wrong):
    with pytest.raises(ValidationError):
        palette(**wrong)


def test_dyes_are_of_unit_length_in_what_is_stored():
    assert HEStains.model_validate(DYES).strength == (1.0, 0.5)
