"""Measures of stain truth, structure at a length and sharpness against geometry, closed forms and other routes."""

import math

import numpy as np
import pytest
from scipy import ndimage, signal
from skimage.data import immunohistochemistry
from skimage.transform import integral_image

from miudiff.cells import WEAK, dab_above_glass, tissue_of_either
from miudiff.evaluation.panel import FOREMOST, HEADLINES, MEASURES, measure
from miudiff.evaluation.scores import score_images
from miudiff.evaluation.structure import coarse_gradient_correlation, sharpness
from miudiff.evaluation.truth import SPANS, correlations, darkness, darkness_scores, look_at_darkness, overlap
from miudiff.images import resize
from miudiff.stains import combine_stains, rgb_from_hdab, rgb_from_he

MPP = 0.5


@pytest.fixture(scope="module")
def ihc():
    return np.ascontiguousarray(np.asarray(immunohistochemistry())[100:356, 100:356])


@pytest.fixture
def random():
    return np.random.default_rng(5)


def disc(across, shape=(160, 160), radius=30, down=80):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return np.hypot(rows - down, columns - across) <= radius


def an_ihc(dab, hematoxylin=0.0):
    return combine_stains(np.stack([hematoxylin + 0 * dab, dab], axis=-1), rgb_from_hdab)


def grey(plane):
    return np.repeat(np.clip(np.round(plane), 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def in_glass(image, margin=160):
    return np.pad(image, ((margin, margin), (margin, margin), (0, 0)), constant_values=255)


# DAB masks


@pytest.mark.parametrize("shift", [0, 10, 25, 59])
def test_the_dice_of_two_discs_is_that_of_geometry(shift):
    found = measure(an_ihc(0.8 * disc(60 + shift)), an_ihc(0.8 * disc(60)))
    half = shift / 60
    shared = 2 / np.pi * (math.acos(half) - half * math.sqrt(1 - half**2))  # of a disc: a lens
    assert found["dab_dice_real"] == pytest.approx(shared, abs=0.02)
    assert found["dab_iou_real"] == pytest.approx(shared / (2 - shared), abs=0.02)


def test_the_bound_of_the_mask_is_that_of_a_positive_cell():
    true = an_ihc(0.8 * disc(80))
    assert measure(an_ihc((WEAK + 0.02) * disc(80)), true)["dab_dice_real"] > 0.98
    assert measure(an_ihc((WEAK - 0.02) * disc(80)), true)["dab_dice_real"] == 0


def test_two_empty_masks_agree_on_nothing_that_can_be_told():
    blue = an_ihc(0.0 * disc(80), 0.5 * disc(80))
    assert math.isnan(measure(blue, blue)["dab_dice_real"])
    assert math.isnan(measure(blue, blue)["dab_iou_real"])
    assert overlap(disc(80), disc(80) & False) == {"dab_dice_real": 0, "dab_iou_real": 0}


# DAB density at scales


def test_r_at_each_scale_is_that_of_integral_images(ihc):
    other = np.ascontiguousarray(ihc[:, ::-1])
    density, true = dab_above_glass(other), dab_above_glass(ihc)
    tissue = tissue_of_either(other, ihc)
    sums = [np.pad(integral_image(each * tissue), ((1, 0), (1, 0))) for each in (density, true, 1.0)]
    for span in (2, 8, 32):
        side = round(span / MPP)
        where = np.argwhere(tissue)
        low, high = (np.clip(where - side // 2 + add, 0, 256) for add in (0, side))
        boxes = [
            s[high[:, 0], high[:, 1]]
            - s[low[:, 0], high[:, 1]]
            - s[high[:, 0], low[:, 1]]
            + s[low[:, 0], low[:, 1]]
            for s in sums
        ]
        expected = np.corrcoef(boxes[0] / boxes[2], boxes[1] / boxes[2])[0, 1]
        assert measure(other, ihc, mpp=MPP)[f"dab_r_{span}um_real"] == pytest.approx(expected, abs=1e-9)


def test_noise_lowers_r_as_its_variance_after_averaging_says(random):
    shared = np.kron(random.uniform(0.2, 0.8, (8, 8)), np.ones((64, 64)))  # squares of 32 um
    noisy = [shared + random.normal(0, 0.1, shared.shape) for _ in range(2)]
    found = correlations(*noisy, np.ones(shared.shape, bool), MPP)
    for span in (2, 8):
        smooth = ndimage.uniform_filter(shared, round(span / MPP), mode="nearest").var()
        expected = smooth / (smooth + 0.1**2 / round(span / MPP) ** 2)
        assert found[f"dab_r_{span}um_real"] == pytest.approx(expected, abs=0.01)
    assert found["dab_r_2um_real"] < found["dab_r_8um_real"]


def test_two_scales_that_disagree_are_told_apart(random):
    coarse = np.kron(random.normal(size=(8, 8)), np.ones((64, 64)))
    fine = np.kron(random.normal(size=(128, 128)), np.ones((4, 4)))  # squares of 2 um
    found = correlations(coarse + 2 * fine, coarse - 2 * fine, np.ones(coarse.shape, bool), MPP)
    assert found["dab_r_2um_real"] < -0.3
    assert found["dab_r_32um_real"] > 0.9


def test_a_scale_that_the_field_has_no_room_for_is_left_out_of_the_mean(ihc):
    found = measure(ihc, np.roll(ihc, 3, 0), mpp=MPP)  # 128 um a side
    assert math.isnan(found["dab_r_128um_real"])
    assert found["dab_r_real"] == pytest.approx(np.mean([found[f"dab_r_{s}um_real"] for s in (2, 8, 32)]))
    assert math.isnan(measure(ihc, ihc, mpp=3.0)["dab_r_2um_real"])  # smaller than a pixel
    assert not [
        key for key in measure(ihc, ihc, ihc) if "um_" in key or "sharp" in key or key == "dab_r_real"
    ]


def test_stain_that_is_the_same_everywhere_tells_nothing():
    true, tissue = np.zeros((64, 64)), np.ones((64, 64), bool)
    true[20:40] = 1
    assert correlations(np.full(true.shape, 0.3), true, tissue, 1.0)["dab_r_real"] == 0
    assert math.isnan(correlations(true, np.full(true.shape, 0.3), tissue, 1.0)["dab_r_real"])


# Amount


def test_the_error_of_each_field_does_not_cancel_in_the_set():
    fields = [an_ihc(dab * disc(80)) for dab in (0.4, 0.8)]
    found = score_images(fields, fields[::-1])
    amounts = [np.log10(255 / np.round(255 * 10**-dab)) for dab in (0.4, 0.8)]  # pure DAB: its own density
    errors = [100 * (amounts[1] / amounts[0] - 1), 100 * (1 - amounts[0] / amounts[1])]
    assert found.mean["iod_sum_1e7"] == 0
    assert [row["iod_field_error"] for row in found.rows] == pytest.approx(errors[::-1], rel=0.02)
    assert found.mean["iod_field_error"] == pytest.approx(np.mean(errors), rel=0.02)


def test_the_median_field_is_not_moved_by_one_that_is_far_off():
    real = an_ihc(0.5 * disc(80))
    made = [an_ihc(dab * disc(80)) for dab in (0.5, 0.5, 2.0)]
    found = score_images([*made, real], [real] * 3 + [an_ihc(0.0 * disc(80))])
    assert found.mean["iod_field_error_median"] == 0
    assert found.mean["iod_field_error"] > 50
    assert found.summary["iod_field_error_median"].n == 3  # the last has no real DAB to be off from
    assert found.summary["iod_field_error"].left_out == 1


# Structure at a length, sharpness


def test_coarse_gradients_are_those_of_shifted_means(ihc):
    other = np.ascontiguousarray(ihc[::-1])
    kernel = np.zeros((9, 4))
    kernel[0], kernel[-1] = 1, -1
    edges = []
    for image in (ihc, other):
        plane = image @ np.array([0.299, 0.587, 0.114])
        mean = signal.convolve2d(plane, np.ones((4, 4)) / 16, "valid")
        across, down = mean[4:-4, 8:] - mean[4:-4, :-8], mean[8:, 4:-4] - mean[:-8, 4:-4]
        edges.append(np.hypot(across, down))
    inner = np.zeros((256, 256), bool)
    inner[6:-5, 6:-5] = True
    found = coarse_gradient_correlation(other, ihc, inner, MPP)
    assert found == pytest.approx(np.corrcoef(*(each.ravel() for each in edges))[0, 1], abs=1e-9)
    assert math.isnan(coarse_gradient_correlation(other, ihc, inner, 2.1))
    assert math.isnan(
        coarse_gradient_correlation(grey(np.full((64, 64), 90)), ihc[:64, :64], inner[:64, :64], MPP)
    )


@pytest.mark.parametrize(("period", "share"), [(2.0, 0), (4.0, 1), (6.4, 1), (16.0, 0)])
def test_the_power_of_a_wave_counts_where_its_period_is_a_nucleuss(period, share):
    columns = np.arange(256) * MPP
    wave = 30 * np.sin(2 * np.pi * columns / period) + 0 * columns[:, None]
    base = 20 * np.sin(2 * np.pi * columns[:, None] / 4) + 0 * columns
    found = sharpness(grey(128 + base + wave), grey(128 + base), np.ones((256, 256), bool), MPP)
    assert found == pytest.approx(1 + share * (30 / 20) ** 2, abs=0.1)


def test_blur_is_below_one_and_noise_above(ihc, random):
    tissue = np.ones((256, 256), bool)
    blurred = ndimage.gaussian_filter(ihc, (2, 2, 0))
    noisy = np.clip(ihc + random.normal(0, 25, ihc.shape), 0, 255).astype(np.uint8)
    assert sharpness(blurred, ihc, tissue, MPP) < 0.7
    assert sharpness(noisy, ihc, tissue, MPP) > 1.1
    assert sharpness(ihc, ihc, tissue, MPP) == 1


def test_sharpness_needs_its_band_its_tissue_and_a_reference_that_is_not_flat(ihc):
    tissue, flat = np.ones((256, 256), bool), grey(np.full((256, 256), 90))
    assert math.isnan(sharpness(ihc, ihc, tissue, 1.3))
    assert math.isnan(sharpness(ihc, ihc, ~tissue, MPP))
    assert math.isnan(sharpness(ihc, flat, tissue, MPP))
    assert sharpness(flat, ihc, tissue, MPP) == pytest.approx(0, abs=1e-9)


# Invariances

AT_A_LENGTH = ("dab_r_2um_real", "dab_r_8um_real", "gradient_r_2um_source", "sharpness_real", "dab_dice_real")


@pytest.fixture(scope="module")
def fields(ihc):
    """(generated, real, source) in a little glass: a soft and shifted image, the real one, an H&E of its nuclei."""
    real = in_glass(ihc, 32)
    soft = ndimage.gaussian_filter(np.roll(real, 2, 1), (1, 1, 0))
    amounts = np.stack([1.2 * (real[..., 0] < 120), 0.3 * (real[..., 1] < 190)], axis=-1)
    return soft, real, combine_stains(amounts, rgb_from_he)


def test_glass_around_changes_nothing(fields):
    small, large = measure(*fields, mpp=MPP), measure(*(in_glass(each) for each in fields), mpp=MPP)
    for key in (*AT_A_LENGTH, "dab_iou_real", "dab_r_32um_real", "iod_field_error"):
        assert large[key] == pytest.approx(small[key], rel=0.01), key
    dark, darker = (
        darkness_scores([look_at_darkness(s, r, MPP)])[0]
        for _, r, s in (fields, [in_glass(each) for each in fields])
    )
    assert darker == pytest.approx(dark, rel=0.01, nan_ok=True)


def test_a_length_is_the_same_at_two_scales(fields):
    smooth = [ndimage.gaussian_filter(each, (1, 1, 0)) for each in fields]
    fine = [resize(each, 640, 640) for each in smooth]
    coarse, twice = measure(*smooth, mpp=MPP), measure(*fine, mpp=MPP / 2)
    for key in AT_A_LENGTH:
        assert twice[key] == pytest.approx(coarse[key], abs=0.03), key


# The darkness of the H&E


def test_darkness_is_the_density_of_luma_above_the_glass():
    image = grey(np.full((64, 64), 200))
    image[:32] = 20
    assert darkness(image)[0, 0] == pytest.approx(1)
    assert darkness(image)[-1, 0] == 0


def test_darkness_is_told_the_share_of_the_set_and_not_of_each_field():
    shapes = [disc(60, radius=20), disc(60, radius=40)]
    sources = [combine_stains(np.stack([0.1 + 0.9 * s, 0.2 + 0 * s], -1), rgb_from_he) for s in shapes]
    reals = [an_ihc(0.8 * s, 0.1) for s in shapes]
    for image in (*sources, *reals):
        image[:8] = 255
    found = score_images(reals, reals, sources, mpp=MPP).mean
    assert found["darkness_dab_dice_real"] > 0.97  # where the darkest is the positive, darkness knows all
    assert found["darkness_dab_r_2um_real"] > 0.95
    seen = [look_at_darkness(s, r, MPP) for s, r in zip(sources, reals[::-1], strict=True)]
    small, large = (int(s[8:].sum()) for s in shapes)
    swapped = [each["darkness_dab_dice_real"] for each in darkness_scores(seen)]
    assert swapped == pytest.approx([2 * small / (small + large)] * 2, abs=0.03)


def test_darkness_that_knows_nothing_marks_the_true_share_and_meets_it_by_chance():
    source = grey(np.linspace(40, 170, 400) + np.zeros((200, 1)))
    real = an_ihc(0.8 * (np.arange(200)[:, None] >= 140) + np.zeros(400), 0.4)  # 30 %, along the other axis
    for image in (source, real):
        image[:, :8] = 255
    found = darkness_scores([look_at_darkness(source, real)])[0]
    assert found["darkness_dab_dice_real"] == pytest.approx(0.3, abs=0.01)


def test_darkness_has_the_reals_tissue_and_no_key_without_an_he(ihc):
    assert not [key for key in score_images([ihc], [ihc], mpp=MPP).mean if key.startswith("darkness")]
    found = score_images([ihc], [ihc], [ihc], mpp=MPP).mean
    assert {f"darkness_dab_r_{span}um_real" for span in SPANS} < set(found)
    assert found["dab_r_2um_real"] == 1 > found["darkness_dab_r_2um_real"]


# What fools what


def test_blur_beats_noise_on_psnr_and_on_dab_but_not_on_sharpness(ihc, random):
    noisy = np.clip(ihc + random.normal(0, 40, ihc.shape), 0, 255).astype(np.uint8)
    blurred = ndimage.gaussian_filter(ihc, (4, 4, 0))
    blur, noise = (measure(each, ihc, mpp=MPP) for each in (blurred, noisy))
    assert blur["psnr_real"] > noise["psnr_real"]
    assert blur["dab_r_real"] > noise["dab_r_real"] - 0.05
    assert blur["sharpness_real"] < 0.3 < noise["sharpness_real"]


def test_brown_everywhere_has_dice_but_no_correlation(ihc):
    brown = np.broadcast_to(ihc[dab_above_glass(ihc) > 0.6].mean(0).astype(np.uint8), ihc.shape).copy()
    brown[:8] = 255
    found = measure(brown, ihc, mpp=MPP)
    assert found["dab_dice_real"] > 0.6
    assert abs(found["dab_r_real"]) < 0.3
    assert found["sharpness_real"] < 0.4  # the edge of its glass


def test_the_headlines_begin_with_those_of_a_page():
    assert HEADLINES[: len(FOREMOST)] == FOREMOST
    assert len(set(HEADLINES)) == len(HEADLINES)
    assert set(HEADLINES) <= set(MEASURES)
