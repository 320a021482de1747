"""A set's scores: each key against an independent library or a closed form, intervals, cells and structure."""

import math

import numpy as np
import pytest
from scipy import ndimage
from sewar.full_ref import vifp
from skimage.data import immunohistochemistry
from skimage.feature import peak_local_max
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from miudiff.cells import (
    _peaks,
    cell_labels,
    cell_mask,
    nuclei_of_he,
    positivity,
    split_cells,
    tissue_mask,
    without_specks,
)
from miudiff.errors import DataError
from miudiff.evaluation.fidelity import histogram_correlation, vif
from miudiff.evaluation.panel import HEADLINE, HEADLINES, MEASURES, measure
from miudiff.evaluation.scores import score_images, summarise
from miudiff.evaluation.stain import at_side, dab_density
from miudiff.evaluation.statistics import bootstrap, interval
from miudiff.evaluation.structure import dice, gradient_correlation, ssim, ssim_hematoxylin
from miudiff.images import resize
from miudiff.stains import combine_stains, rgb_from_hdab, rgb_from_he


def disks(centres, shape=(128, 128), radius=9):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return sum(np.hypot(rows - y, columns - x) <= radius for y, x in centres) > 0


BLUE, BROWN = disks([(30, 30), (90, 40), (60, 100)]), disks([(30, 80), (100, 100)])


def an_ihc(blue=BLUE, brown=BROWN, dab=0.9):
    return combine_stains(np.stack([0.4 * blue, dab * brown], axis=-1), rgb_from_hdab)


@pytest.fixture(scope="module")
def tissue():
    """Pieces of scikit-image's IHC picture, [96, 128, 3]."""
    image = np.asarray(immunohistochemistry())
    return [np.ascontiguousarray(image[y : y + 96, 100:228]) for y in (0, 100, 200, 300)]


@pytest.fixture(scope="module")
def trio(tissue):
    """(generated, real, source), one image of each."""
    return tissue[0], tissue[1], tissue[2]


# Every key against who else computes it


def test_each_reference_is_the_one_that_the_key_names(trio):
    generated, real, source = trio
    found = measure(generated, real, source)
    for name, reference in (("real", real), ("source", source)):
        assert found[f"psnr_{name}"] == pytest.approx(peak_signal_noise_ratio(reference, generated))
        assert found[f"vif_{name}"] == pytest.approx(vifp(reference, generated), abs=1e-8)
        assert found[f"ssim_{name}_win7"] == pytest.approx(
            structural_similarity(reference, generated, channel_axis=-1)
        )
    assert found["vif_source"] != pytest.approx(vifp(generated, source), rel=0.01)  # the order matters


def test_the_recorded_pair_has_its_recorded_scores(golden):
    found = measure(golden["metric/generated"], golden["metric/reference"], golden["metric/reference"])
    assert found["psnr_real"] == pytest.approx(float(golden["metric/psnr"]))
    assert found["vif_real"] == pytest.approx(float(golden["metric/vifp_sewar_rgb_mean"]), abs=1e-8)
    assert found["vif_source_luma"] == pytest.approx(float(golden["metric/vifp_piq_luma"]), abs=1e-6)
    if "metric/hist_correl_rgb_mean_256" in golden:
        expected = float(golden["metric/hist_correl_rgb_mean_256"])
        assert found["hist_rgb256"] == pytest.approx(expected, abs=1e-8)


def test_vif_at_256_is_that_of_the_shrunken_pair_and_nothing_for_smaller_ones(trio):
    large = [np.kron(image, np.ones((4, 4, 1), np.uint8)) for image in trio]
    found = measure(*large)
    small = [resize(image, 192, 256) for image in large]
    assert found["vif_source_256"] == pytest.approx(vif(small[0], small[2]))
    assert found["vif_real_256"] == pytest.approx(vif(small[0], small[1]))
    assert math.isnan(measure(*trio)["vif_source_256"])


def test_a_key_tells_what_is_in_a_result(trio):
    generated, real, source = trio
    alone, whole = measure(generated, real), measure(generated, real, source, nucleus=12, tissue=True)
    assert not [key for key in alone if "source" in key or "cell" in key or "ki67" in key or "tissue" in key]
    assert set(alone) < set(whole) <= set(MEASURES)
    assert {HEADLINE, *HEADLINES} <= set(MEASURES)
    assert list(whole) == [key for key in MEASURES if key in whole]


def test_an_image_beside_itself_has_the_identitys_values(trio):
    found = score_images(trio, trio, trio, nucleus=12, tissue=True).mean
    assert found["psnr_real"] == found["psnr_source"] == math.inf
    for key in ("vif_real", "vif_source", "vif_source_luma", "ssim_real_win7", "hist_rgb256", "hist_lab256"):
        assert found[key] == pytest.approx(1), key
    for key in ("hist_rgb3d32", "hist_rgb256_tissue", "gradient_correlation_source", "iod_pearson"):
        assert found[key] == pytest.approx(1), key
    for key in (
        "iod_sum_1e7",
        "iod_field_error",
        "iod_field_error_median_cells",
        "iod_sum_1e7_native_cells",
        "iod_sum_1e7_real_cells",
        "ki67_index_mae",
        "h_score_mae",
    ):
        assert found[key] == 0, key


# Sums over the set


def test_the_iod_of_the_set_is_the_signed_sum_at_1024(tissue):
    generated, reals = tissue[:2], tissue[2:]
    found = score_images(generated, reals, nucleus=12).mean

    def in_cells(image, of, diameter):
        return dab_density(image)[cell_mask(of, diameter)].sum()

    for size, larger in (("", 8), ("_native", 1)):
        pairs = [[at_side(p, 128 * larger) for p in pair] for pair in zip(generated, reals, strict=True)]
        for place, table in (
            ("", [[dab_density(image).sum() for image in pair] for pair in pairs]),
            ("_cells", [[in_cells(image, image, 12 * larger) for image in pair] for pair in pairs]),
            (
                "_real_cells",
                [[in_cells(image, real, 12 * larger) for image in (_, real)] for _, real in pairs],
            ),
        ):
            fake, true = np.array(table).T
            assert found[f"iod_sum_1e7{size}{place}"] == pytest.approx((fake - true).sum() / 1e7), (
                size + place
            )
            assert found[f"iod_per_image_mean{size}{place}"] == pytest.approx((fake - true).mean())
            assert found[f"iod_pearson{size}{place}"] == pytest.approx(np.corrcoef(fake, true)[0, 1])
    assert found["iod_sum_1e7"] / found["iod_sum_1e7_native"] == pytest.approx(64, rel=0.1)


def test_an_image_that_is_not_square_keeps_its_proportions_at_1024(tissue):
    assert at_side(tissue[0]).shape == (768, 1024, 3)
    assert at_side(tissue[0].swapaxes(0, 1)).shape == (1024, 768, 3)


def test_less_dab_is_a_negative_deviation():
    found = score_images([an_ihc(dab=0.4)] * 2, [an_ihc()] * 2).mean
    assert found["iod_sum_1e7"] < 0
    assert found["iod_sum_1e7"] * 1e7 == pytest.approx(2 * found["iod_per_image_mean"])


def test_a_set_is_refused_that_does_not_fit_together(tissue):
    with pytest.raises(DataError, match="1 true IHC images for 2 generated"):
        score_images(tissue[:2], tissue[:1])
    with pytest.raises(DataError, match="3 H&E images for 2 generated"):
        score_images(tissue[:2], tissue[:2], tissue[:3])
    with pytest.raises(DataError, match="no images"):
        score_images([], [])
    with pytest.raises(DataError, match="reference of 64 x 96"):
        score_images(tissue[:1], [tissue[0][:, :64]])


# Intervals


def test_a_mean_over_images_is_one_and_slides_widen_its_interval():
    values = [0.0] * 10 + [1.0] * 10
    alone = interval(values)
    slides = interval(values, groups=["a"] * 10 + ["b"] * 10)
    assert alone.mean == slides.mean == 0.5
    assert (slides.low, slides.high) == (0, 1)
    assert 0.2 < alone.low < alone.high < 0.8


def test_one_slide_has_no_interval():
    assert interval([1.0, 2.0, 3.0], groups=["a", "a", "a"])[1:3] == (None, None)


def test_groups_that_are_not_as_many_are_a_programmers_mistake():
    with pytest.raises(ValueError, match="2 groups of 3 values"):
        interval([1.0, 2.0, 3.0], groups=["a", "b"])


def test_the_interval_of_a_sum_is_its_closed_form():
    draws = np.random.default_rng(0).normal(3, 2, 400)
    ((low, high),) = bootstrap(lambda drawn: [float(draws[drawn].sum())], len(draws))
    width = 2 * 1.96 * draws.std() * len(draws) ** 0.5
    assert high - low == pytest.approx(width, rel=0.1)
    assert low < draws.sum() < high


def test_a_statistic_that_half_of_the_draws_do_not_have_has_no_interval():
    found = bootstrap(lambda drawn: [math.nan, 1.0 if drawn[0] else math.nan, 2.0], 10)
    assert found[0] == (None, None)
    assert found[1] == (1, 1)
    assert found[2] == (2, 2)


def test_images_without_cells_are_left_out_of_the_agreement_and_counted():
    rows = [
        {"ki67_index_generated": fake, "ki67_index_real": real}
        for fake, real in [(0.2, 0.3), (math.nan, 0.5), (0.5, 0.4), (0.6, 0.8)]
    ]
    found = summarise(list("abcd"), rows).summary["ki67_index_mae"]
    assert found.mean == pytest.approx((0.1 + 0.1 + 0.2) / 3)
    assert (found.n, found.left_out) == (3, 1)


def test_a_set_without_any_cells_has_no_agreement():
    rows = [{"h_score_generated": math.nan, "h_score_real": math.nan}] * 2
    found = summarise(["a", "b"], rows).summary["h_score_mae"]
    assert math.isnan(found.mean)
    assert (found.n, found.left_out) == (0, 2)


# Cells


def test_pale_nuclei_are_found_beside_dark_dab_and_on_bluish_stroma():
    blue, brown = np.tile(BLUE, (3, 3)), np.tile(BROWN, (3, 3))
    stroma = np.linspace(0, 0.2, 384)[None, :] * np.ones((384, 1))
    image = combine_stains(np.stack([stroma + 0.2 * blue, 1.3 * brown], axis=-1), rgb_from_hdab)
    assert dice(cell_mask(image, 18), blue | brown) > 0.85


def test_the_index_counts_cells_and_the_h_score_weighs_them():
    brown = [disks([(20 + 30 * row, 100)]) for row in range(3)]
    dab = sum(amount * mask for amount, mask in zip((0.3, 0.5, 1.0), brown, strict=True))
    blue = disks([(20 + 30 * row, 30) for row in range(3)])
    image = combine_stains(np.stack([0.4 * blue, dab], axis=-1), rgb_from_hdab)
    found = positivity(image, cell_labels(image, 18))
    assert found.cells == 6
    assert found.positive == pytest.approx(3 / 6)
    assert found.h_score == pytest.approx(100 * (1 + 2 + 3) / 6)


def test_an_image_without_cells_has_no_index():
    white = np.full((64, 64, 3), 255, np.uint8)
    found = positivity(white, cell_labels(white, 18))
    assert found.cells == 0
    assert math.isnan(found.positive)
    assert math.isnan(found.h_score)


def test_cells_scale_with_the_nucleus():
    image = np.kron(an_ihc(), np.ones((3, 3, 1), np.uint8))
    assert split_cells(cell_mask(image, 54), 54).max() == cell_labels(an_ihc(), 18).max() == 5


def test_nuclei_of_an_he_image_are_its_hematoxylin():
    amounts = np.stack([0.9 * BLUE, np.full(BLUE.shape, 0.3)], axis=-1)
    assert dice(nuclei_of_he(combine_stains(amounts, rgb_from_he), 18), BLUE) > 0.9


@pytest.mark.parametrize("glass", [(255, 255, 255), (225, 225, 225), (240, 235, 215)])
def test_tissue_is_what_is_darker_than_the_images_own_glass(glass):
    stained = disks([(64, 64)], radius=40)
    density = np.stack([0.3 * stained, np.zeros_like(stained)], axis=-1)
    image = combine_stains(density, rgb_from_hdab, np.array(glass))
    assert dice(tissue_mask(image), stained) > 0.93


def test_histograms_of_tissue_do_not_see_the_glass(tissue):
    glass = np.full((200, 128, 3), 245, np.uint8)
    pair = [np.concatenate([image, glass]) for image in tissue[:2]]
    found = measure(*pair, tissue=True)
    assert found["hist_rgb256"] > 0.99
    assert found["hist_rgb256_tissue"] < 0.98
    both = tissue_mask(pair[0]) | tissue_mask(pair[1])
    assert found["hist_rgb256_tissue"] == pytest.approx(histogram_correlation(*pair, mask=both))


# Structure


def test_structure_survives_a_change_of_colour_and_not_a_shift(tissue):
    image = tissue[0]
    recoloured = np.clip(0.8 * image[..., ::-1].astype(float) + 30, 0, 255).astype(np.uint8)
    shifted = np.roll(image, 6, axis=1)
    for value in (gradient_correlation, ssim):
        assert value(recoloured, image) > value(shifted, image) + 0.1
    assert gradient_correlation(recoloured, image) > 0.8


def test_flat_images_have_no_gradients_to_correlate(tissue):
    assert math.isnan(gradient_correlation(np.full((96, 128, 3), 9, np.uint8), tissue[0]))


def test_the_hematoxylin_of_two_stains_of_one_tissue_agrees():
    he = combine_stains(np.stack([0.4 * BLUE, np.full(BLUE.shape, 0.3)], axis=-1), rgb_from_he)
    elsewhere = np.roll(BLUE, 30, axis=1)
    same, other = an_ihc(BLUE, np.zeros_like(BLUE)), an_ihc(elsewhere, np.zeros_like(BLUE))
    assert ssim_hematoxylin(same, he) > 0.9 > ssim_hematoxylin(other, he)
    assert measure(same, same, he, nucleus=18)["nuclei_dice_source"] > 0.9
    assert measure(other, other, he, nucleus=18)["nuclei_dice_source"] < 0.3


def test_dice_is_its_formula():
    first, second = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert dice(first, second) == 0.5
    assert math.isnan(dice(~first & first, ~second & second))


@pytest.mark.parametrize("smooth", [0.0, 1.0])  # without, many pixels are as high as each other
@pytest.mark.parametrize("apart", [2, 8])
def test_peaks_are_those_of_skimage_in_its_order(smooth, apart):
    field = ndimage.gaussian_filter(np.random.default_rng(apart).standard_normal((150, 210)), 3)
    mask = without_specks(field > 0, 8)
    height = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    height = ndimage.gaussian_filter(height, smooth) * mask if smooth else height
    islands, count = ndimage.label(mask)
    expected = peak_local_max(height, min_distance=apart, labels=islands, exclude_border=False)
    assert len(expected) > count > 5
    assert np.array_equal(np.stack(_peaks(height, islands, apart), 1), expected)


def test_nothing_has_no_peaks():
    rows, columns = _peaks(np.zeros((9, 7)), np.zeros((9, 7), np.int32), 2)
    assert len(rows) == len(columns) == 0
