"""The two dyes of an H&E section are found from its tissue, whatever their strength, hue and glass."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from miudiff.data.twin import twin_region
from miudiff.errors import DataError
from miudiff.normalisation import HEStains, Normaliser, fit_he_stains
from miudiff.stains import combine_stains, rgb_from_he, separate_stains, stain_matrix

HE, _ = twin_region("train")
MODEL = HEStains(
    light=(254, 253, 251), hematoxylin=(0.65, 0.69, 0.33), eosin=(0.26, 0.90, 0.34), strength=(0.8, 0.4)
)
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
    halves, whole = fit_he_stains([HE[:256], HE[256:]]), fit_he_stains([HE])
    for key in ("light", "hematoxylin", "eosin", "strength"):  # colours are averaged up to the cut
        assert getattr(halves, key) == pytest.approx(getattr(whole, key), rel=0.03)


def test_the_noise_of_pixels_and_the_colours_of_jpeg_do_not_move_the_dyes():
    pale = restained(hematoxylin=0.6, eosin=0.6)
    noisy = np.clip(pale + np.random.default_rng(0).normal(0, 10, pale.shape), 0, 255).astype(np.uint8)
    Image.fromarray(noisy).save(file := BytesIO(), "JPEG", quality=60)
    before, after = fit_he_stains([pale]), fit_he_stains([np.asarray(Image.open(file))])
    assert np.dot(after.hematoxylin, before.hematoxylin) > 0.998
    assert np.dot(after.eosin, before.eosin) > 0.998


def test_pigment_and_pen_are_no_dyes():
    image = HE.copy()
    image[:80, :80] = (40, 38, 36)
    assert np.dot(fit_he_stains([image]).hematoxylin, fit_he_stains([HE]).hematoxylin) > 0.99


@pytest.mark.parametrize("grey", [255, 128, 0])
def test_what_has_no_tissue_is_refused(grey):
    with pytest.raises(DataError, match="0 pixels of tissue, expected at least 2000"):
        fit_he_stains([np.full((64, 64, 3), grey, np.uint8)])


# The section in the model's dyes


def normalised(image):
    return Normaliser(fit_he_stains([image]), MODEL).he(image).astype(float)


@pytest.mark.parametrize(
    "other",
    [
        *({dye: factor} for dye in ("hematoxylin", "eosin") for factor in (0.6, 0.8, 1.25, 1.6)),
        {"hematoxylin": 0.6, "eosin": 0.6},
        {"matrix": BLUISH},
        {"light": (205, 190, 199)},
    ],
    ids=str,
)
def test_however_a_section_was_stained_and_scanned_the_model_sees_nearly_the_same(other):
    image = restained(**other)
    assert np.abs(image.astype(float) - HE).mean() > 2
    assert np.abs(normalised(image) - normalised(HE)).mean() < 1.5


def test_the_section_has_the_models_glass_dyes_and_strengths():
    found = fit_he_stains([normalised(HE).astype(np.uint8)])
    assert found.light == pytest.approx(MODEL.light, abs=2)
    assert found.strength == pytest.approx(MODEL.strength, rel=0.05)
    assert np.dot(found.hematoxylin, MODEL.hematoxylin) > 0.99
    assert np.dot(found.eosin, MODEL.eosin) > 0.99


def test_a_section_of_the_models_own_dyes_stays_as_it_is():
    own = fit_he_stains([HE])
    assert np.array_equal(Normaliser(own, own).he(HE), HE)


def test_pigment_and_pen_stay_dark_and_glass_is_glass():
    own = HEStains(
        light=(246, 243, 245), hematoxylin=(0.65, 0.69, 0.33), eosin=(0.26, 0.90, 0.34), strength=(0.4, 0.2)
    )
    pixels = np.array([[(40, 38, 36), (30, 90, 40), (246, 243, 245), (0, 0, 0), (255, 255, 255)]], np.uint8)
    found = Normaliser(own, MODEL).he(pixels)
    assert found[0, 0].max() < 40
    assert found[0, 1].argmax() == 1
    assert tuple(found[0, 2]) == MODEL.light
    assert found[0, 3].max() <= 1
    assert found[0, 4].min() >= 251


def test_a_result_takes_the_glass_of_its_section():
    own = HEStains(**(MODEL.model_dump() | {"light": (205, 190, 199)}))
    pixels = np.array([[(255, 255, 255), (128, 64, 0)]], np.uint8)
    found = Normaliser(own, MODEL).ihc(pixels)
    assert found.tolist() == [[[205, 190, 199], [103, 48, 0]]]


def test_a_large_image_is_looked_at_evenly():
    large = np.tile(HE, (3, 3, 1))
    assert fit_he_stains([large]).strength == pytest.approx(fit_he_stains([HE]).strength, rel=0.02)


def test_how_much_tissue_a_section_is_does_not_make_it_darker():
    """Of a pale section a fixed density would take less for tissue than of a dark one."""
    dark, pale = (fit_he_stains([restained(factor, factor)]).strength for factor in (1.6, 0.5))
    assert np.divide(dark, pale) == pytest.approx([3.2, 3.2], rel=0.06)


@pytest.mark.parametrize("tint", [(255, 244, 225), (235, 245, 255), (230, 238, 230), (205, 190, 199)])
def test_glass_may_be_warm_cold_or_greenish(tint):
    image = np.concatenate([HE, np.full((64, HE.shape[1], 3), tint, np.uint8)])
    brightest = np.percentile(image.reshape(-1, 3), 99, axis=0)
    assert fit_he_stains([image]).light == pytest.approx(brightest)


def test_a_result_of_a_field_without_glass_lies_on_what_scanners_usually_have():
    pale = np.full((120, 120, 3), (190, 145, 190), np.uint8)
    pale[:40] = (80, 50, 130)
    pale[40:80] = (180, 90, 140)
    found = fit_he_stains([pale])
    assert found.light == (190, 190, 190)
    assert found.glass == (240, 240, 240)
    bright = np.minimum(pale.astype(int) + 60, 255).astype(np.uint8)
    assert fit_he_stains([bright]).glass == (250, 250, 250)


def test_pale_tissue_is_no_glass_in_a_field_without_any():
    """All pixels have some of both dyes, so that the brightest colour is lavender."""
    amounts = separate_stains(HE, rgb_from_he, np.array([246, 243, 245], float)).clip(0)[..., :2]
    image = combine_stains(amounts + np.array([0.05, 0.08]), rgb_from_he, np.array([246, 243, 245], float))
    light = fit_he_stains([image]).light
    assert len(set(light)) == 1
    assert light[0] == np.percentile(image.reshape(-1, 3), 99, axis=0).max()


def test_a_result_is_on_the_glass_as_it_is_not_on_the_rims_of_a_scanner_that_sharpens():
    glass = np.full((200, HE.shape[1], 3), 240, np.uint8)
    glass[::20] = 255
    dyes = fit_he_stains([np.concatenate([HE, glass])])
    assert (dyes.light, dyes.glass) == ((255, 255, 255), (240, 240, 240))
    white = np.full((4, 4, 3), 255, np.uint8)
    assert (Normaliser(dyes, MODEL).ihc(white) == 240).all()
    earlier = Normaliser(dyes.model_copy(update={"glass": None}), MODEL)
    assert (earlier.ihc(white) == 255).all()
