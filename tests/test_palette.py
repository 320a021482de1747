"""The palette gives H&E's two dyes the colours that nuclei and all else have in a marker's IHC."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from miudiff.errors import DataError
from miudiff.images import to_tensor, to_uint8
from miudiff.methods.palette import CONTRAST, LITTLE, MOST, Palette, _smooth_noise, measure_palette
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

NUCLEI, POSITIVE = (0.4, 0.3, 0.2), (0.4, 0.7, 0.9)
GROUND, STAINED = (0.05, 0.06, 0.08), (0.2, 0.3, 0.5)
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
        "nuclei": (NUCLEI, POSITIVE),
        "ground": (GROUND, STAINED),
        "nuclear": True,
        "share": 0.0,
        "basophilia": (0.1, 0.05),
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


def test_where_antigens_that_are_none_of_nuclei_are_follows_how_basophilic_tissue_is_around():
    """Pixels of equal eosin: with a nucleus in reach min(h, LITTLE) averages to two ninths of LITTLE (a box of 3, twice), else to 0."""
    he = he_of([0.1] * 4 + [0.6] + [0.1] * 10, [0.8] * 4 + [0.0] + [0.8] * 10)
    found = density_of(palette(nuclear=False, share=0.2, reach=3, basophilia=(0.03, 0.02))(he))
    normal = NormalDist()
    for pixel, around in ((3, LITTLE * 2 / 9), (9, 0.0)):
        u = (around - 0.03) / 0.02
        p = normal.cdf(CONTRAST * u + (1 + CONTRAST**2) ** 0.5 * normal.inv_cdf(0.2))
        assert found[pixel] == pytest.approx((1 - p) * np.array(GROUND) + p * np.array(STAINED), abs=1e-5)
    u = (LITTLE * 3 / 9 - 0.03) / 0.02
    p = normal.cdf(CONTRAST * u + (1 + CONTRAST**2) ** 0.5 * normal.inv_cdf(0.2))
    assert found[4] == pytest.approx((1 - p) * np.array(NUCLEI) + p * np.array(POSITIVE), abs=1e-5)


def test_of_such_antigens_what_is_stained_does_not_hang_on_eosin_but_on_there_being_tissue():
    found = density_of(
        palette(nuclear=False, share=1.0, basophilia=(0.0, 1.0))(he_of([0.1] * 4, [0.0, 0.2, 0.4, 1.1]))
    )
    p = NormalDist().cdf(5**0.5 * NormalDist().inv_cdf(0.999))
    plain = (1 - p) * np.array([0.0, 0.25, 0.5, 1.375])[:, None] * np.array(GROUND)
    stained = p * np.array([0.0, 0.5, 1.0, 1.0])[:, None] * np.array(STAINED)
    assert found == pytest.approx(plain + stained, abs=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_their_share_is_kept_where_basophilia_is_as_in_the_h_and_e_set(share):
    around = torch.randn(2**18, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    h = (0.1 + 0.02 * around).clamp(0, LITTLE).numpy()
    he = he_of(0.1 + 0.5 * h, [0.8] * len(h))
    density = density_of(palette(nuclear=False, share=share, basophilia=(0.1, 0.02))(he))
    nucleus = h[:, None] * (np.array(NUCLEI), np.array(POSITIVE))[0]
    beside, stained = (1 - h[:, None]) * np.array(GROUND), (1 - h[:, None]) * np.array(STAINED)
    p = (density - nucleus - beside)[:, 2] / (h * (POSITIVE[2] - NUCLEI[2]) + stained[:, 2] - beside[:, 2])
    assert p.mean() == pytest.approx(share, abs=0.01)


def test_without_variety_each_nucleus_is_the_mean_of_both_kinds_in_the_share_times_the_gain():
    found = density_of(palette(share=0.3, gain=2.0)(he_of([0.6, 0.1], [0.0, 0.8])))
    assert found[0] == pytest.approx(0.4 * np.array(NUCLEI) + 0.6 * np.array(POSITIVE), abs=1e-6)
    assert found[1] == pytest.approx(GROUND, abs=1e-6)


@pytest.mark.parametrize("variety", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_of_positive_nuclei_is_the_same_for_every_variety(variety, share):
    """p is recovered from the colour; the more variety, the more of it is near 0 or 1."""
    he = he_of([0.6] * 2**18, [0.0] * 2**18).reshape(1, 3, 512, 512)
    noise = torch.randn((1, 1, 512, 512), generator=torch.Generator().manual_seed(0), dtype=he.dtype)
    density = -torch.log10((palette(share=share, grain=3)(he, noise, variety) + 1) / 2)[0, 2]
    positive = (density - NUCLEI[2]) / (POSITIVE[2] - NUCLEI[2])
    assert positive.mean() == pytest.approx(share, abs=0.02)
    sure = ((positive - 0.5).abs() > 0.4).double().mean()
    assert sure > {0.5: 0.0, 1.0: 0.15, 4.0: 0.7}[variety]


def test_noise_is_averaged_over_the_grain_and_of_unit_variance_again():
    noise = torch.randn((1, 1, 1024, 1024), generator=torch.Generator().manual_seed(1))
    smooth = _smooth_noise(noise, 7)[0, 0, 20:-20, 20:-20]
    assert smooth.std() == pytest.approx(1, abs=0.03)
    apart = [(smooth[:, k:] * smooth[:, : smooth.shape[1] - k]).mean() for k in (3, 20)]
    assert apart[0] > 0.5
    assert abs(apart[1]) < 0.05


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
    blue, mask = field((0.5, 0.0), (0.03, 0.02), rgb_from_hdab, 1)
    brown, _ = field((0.3, 0.4), (0.03, 0.02), rgb_from_hdab, 2)
    found = measure_palette([he], [blue, brown, brown], nuclear=True)
    for colour, image in zip(found.nuclei, (blue, brown), strict=True):
        true = -np.log10((image[mask] / 255).mean(axis=0))
        assert np.dot(colour, true) > 0.99 * np.linalg.norm(colour) * np.linalg.norm(true)
        assert np.linalg.norm(colour) == pytest.approx(np.linalg.norm(true), rel=0.35)  # rims count
    assert found.share == pytest.approx(2 / 3, abs=0.01)
    assert np.linalg.norm(found.ground[0]) < 0.2 * np.linalg.norm(found.nuclei[0])
    assert found.nuclear
    seen = optical_density(to_uint8(found(to_tensor(he)))[0])
    plain, positive = (np.array(colour) for colour in found.nuclei)
    expected = found.share * positive + (1 - found.share) * plain
    assert seen[mask].mean(axis=0) == pytest.approx(expected, abs=0.08)


def test_of_other_antigens_the_tissue_beside_nuclei_is_what_is_stained_or_not():
    he, _ = field((0.8, 0.1), (0.05, 0.3), rgb_from_he, 0)
    pale, mask = field((0.5, 0.0), (0.1, 0.03), rgb_from_hdab, 1)
    brown, _ = field((0.5, 0.05), (0.05, 0.4), rgb_from_hdab, 2)
    found = measure_palette([he], [pale, brown], nuclear=False)
    beside = ~mask & (brown < 240).any(axis=-1)
    for colour, image in zip(found.ground, (pale, brown), strict=True):
        assert colour == pytest.approx(-np.log10((image[beside] / 255).mean(axis=0)), abs=0.05)
    assert found.share == pytest.approx(0.5, abs=0.05)


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
