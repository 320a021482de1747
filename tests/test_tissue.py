"""Empty glass: found by its own surroundings, and never painted on."""

import numpy as np
import pytest

from miudiff.methods.systems import configure
from miudiff.stainer import VirtualStainer
from miudiff.tissue import glass
from tiny import CPU, tiny_model


def field(colour, height=96, width=96, grain=0.0, seed=0):
    noise = np.random.default_rng(seed).normal(0, grain, (height, width, 1))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def tissue(height=96, width=96):
    y, x = np.mgrid[:height, :width] / 4
    wave = np.sin(x)[..., None] * np.cos(y)[..., None]
    return np.round(np.array([190, 120, 180]) + np.array([40, 60, 30]) * wave).astype(np.uint8)


@pytest.mark.parametrize("colour", [(255, 255, 255), (242, 240, 243), (236, 232, 226), (160, 160, 162)])
def test_flat_colourless_fields_are_glass_white_cream_or_grey(colour):
    assert (glass(field(colour, grain=1.5), 1.0) == 1).all()


@pytest.mark.parametrize("colour", [(240, 200, 225), (225, 190, 205), (120, 80, 150), (40, 40, 42)])
def test_flat_fields_of_colour_and_of_ink_are_none(colour):
    assert (glass(field(colour, grain=1.5), 1.0) == 0).all()


def test_texture_is_none():
    assert (glass(tissue(), 1.0) == 0).all()


@pytest.mark.parametrize("mpp", [0.25, 0.5, 1.0])
def test_a_gap_and_a_lumen_belong_to_the_tissue_and_a_wide_field_does_not(mpp):
    for microns, empty in ((8, False), (50, False), (110, True)):
        image = tissue(640, 640)
        pixels = round(microns / mpp)
        image[100 : 100 + pixels, 100 : 100 + pixels] = 243
        found = glass(image, mpp)
        middle = 100 + pixels // 2
        assert (found[middle, middle] == 1) == empty
        assert found[:90].max() == 0


def test_what_is_found_depends_on_the_surroundings_alone():
    image = tissue(400, 400)
    image[:, 190:] = 242
    whole, part = glass(image, 1.0), glass(image[40:360, 30:370], 1.0)
    np.testing.assert_allclose(part[110:-110, 110:-110], whole[150:250, 140:260], atol=1e-6)


def test_dust_on_glass_is_glass_and_a_lone_cell_is_none():
    image = field((165, 166, 165), 240, 240, grain=1)
    image[60:63, 60:63] = 90
    image[150:164, 150:164] = (90, 60, 140)
    found = glass(image, 1.0)
    assert found[61, 61] == 1
    assert found[157, 157] == 0


def test_a_red_cell_on_glass_is_stained_and_the_glass_around_it_stays():
    image = field((236, 234, 236), 240, 240, grain=1)
    image[100:114, 100:114] = (215, 60, 120)  # 7 um across
    image[40:44, 40:44] = 90  # colourless: dust
    found = glass(image, 0.5)
    assert found[107, 107] == 0
    assert found[42, 42] == 1
    assert found[107, 170] == 1
    assert min(found[107, 140], found[75, 107]) > 0.98
    stained = stainer().translate(image, 1.0)
    assert np.array_equal(stained[:60], image[:60])


def stainer(**changes):
    config = configure("miu-diff", "fast", ("reverse.steps=2", "refinement.start=0", "reverse.palette=false"))
    return VirtualStainer(tiny_model(), config, CPU, **changes)


def test_glass_keeps_its_pixels_and_tissue_does_not():
    image = tissue(96, 200)
    image[:, 60:] = 241
    stained = stainer().translate(image, 1.0)
    assert np.array_equal(stained[:, 80:], image[:, 80:])
    assert not np.array_equal(stained[:, :50], image[:, :50])
    assert not np.array_equal(stainer(glass="stain").translate(image, 1.0)[:, 80:], image[:, 80:])


def test_an_image_of_another_scale_keeps_its_glass_pixel_by_pixel():
    image = field((241, 240, 242), 150, 360, grain=2)
    image[:, :60] = tissue(150, 60)
    stained = stainer().translate(image, 0.5)
    assert np.array_equal(stained[:, 100:], image[:, 100:])


def test_a_field_of_glass_alone_is_given_back_without_asking_the_network(monkeypatch):
    made = stainer()
    monkeypatch.setattr(made.method, "translate", None)
    image = field((240, 240, 241), 150, 200, grain=1)
    assert np.array_equal(made.translate(image, 1.0), image)
