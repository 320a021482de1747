"""PSNR, VIF and histogram correlation equal the numbers of skimage, sewar, piq and OpenCV."""

import numpy as np
import pytest
from sewar.full_ref import vifp
from skimage.metrics import peak_signal_noise_ratio

from miudiff.evaluation.fidelity import (
    histogram_correlation,
    joint_histogram_correlation,
    psnr,
    vif,
    vif_luma,
)


@pytest.fixture
def pair(golden):
    """(image, reference): what was generated and what is real."""
    return golden["metric/generated"], golden["metric/reference"]


@pytest.fixture
def waves(formulas, det):
    """(image, reference) of the closed-form case: a sine, and it fainter, raised and disturbed by another."""
    shape = (64, 64, 3)
    reference = np.round((det(shape, 0.05, 0.1).numpy() + 1) * 127.5).astype(np.uint8)
    disturbed = 0.8 * reference + 12 * det(shape, 1.7, 0.3).numpy() + 10
    return np.round(np.clip(disturbed, 0, 255)).astype(np.uint8), reference


def by_bins(golden, prefix):
    """{bins: value} of the keys `prefix` + bins; how many bins were recorded is the file's to say."""
    names = [name for name in golden if name.startswith(prefix)]
    assert names
    return {int(name.removeprefix(prefix)): float(golden[name]) for name in names}


def test_psnr_is_the_recorded_one(golden, pair):
    assert psnr(*pair) == pytest.approx(float(golden["metric/psnr"]), abs=1e-9)


def test_psnr_is_skimages(pair):
    image, reference = pair
    assert psnr(image, reference) == pytest.approx(peak_signal_noise_ratio(reference, image), abs=1e-9)


def test_vif_is_the_recorded_one_of_sewar(golden, pair):
    assert vif(*pair) == pytest.approx(float(golden["metric/vifp_sewar_rgb_mean"]), abs=1e-8)


def test_vif_is_sewars_with_the_arguments_swapped(pair):
    image, reference = pair
    assert vif(image, reference) == pytest.approx(vifp(reference, image), abs=1e-8)
    assert vif(reference, image) == pytest.approx(vifp(image, reference), abs=1e-8)


def test_vif_follows_sewar_through_flat_and_inverted_regions(pair):
    image, reference = (pixels.copy() for pixels in pair)
    half, quarter = image.shape[0] // 2, image.shape[0] // 4
    image[:quarter] = 200
    image[half:] = 255 - reference[half:]
    reference[quarter:half] = 90
    assert vif(image, reference) == pytest.approx(vifp(reference, image), abs=1e-8)
    assert vif(reference, image) == pytest.approx(vifp(image, reference), abs=1e-8)


def test_vif_of_waves_is_the_recorded_one_in_both_orders(formulas, waves):
    image, reference = waves
    assert vif(image, reference) == pytest.approx(formulas["vif"]["vifp"], abs=1e-8)
    assert vif(reference, image) == pytest.approx(formulas["vif"]["vifp_rev"], abs=1e-8)
    assert vif(reference, reference) == pytest.approx(formulas["vif"]["identity"], abs=1e-8)


def test_vif_of_the_luma_is_the_recorded_one_of_piq_in_both_orders(golden, pair):
    image, reference = pair
    assert vif_luma(image, reference) == pytest.approx(float(golden["metric/vifp_piq_luma"]), abs=1e-6)
    swapped = float(golden["metric/vifp_piq_luma_swapped"])
    assert vif_luma(reference, image) == pytest.approx(swapped, abs=1e-6)


def test_the_mean_of_the_channels_histogram_correlations_is_the_recorded_one(golden, pair):
    for bins, value in by_bins(golden, "metric/hist_correl_rgb_mean_").items():
        assert histogram_correlation(*pair, bins) == pytest.approx(value, abs=1e-8)


def test_the_joint_histogram_correlation_is_the_recorded_one(golden, pair):
    for bins, value in by_bins(golden, "metric/hist_correl_rgb_joint_").items():
        assert joint_histogram_correlation(*pair, bins) == pytest.approx(value, abs=1e-8)
