"""The curve that removes a source's colour: quantiles to quantiles, of luma or of red."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from miudiff.images import luma, to_gray, to_tensor
from miudiff.methods.tone import ToneCurve, measure_tone
from miudiff.stains import combine_stains, rgb_from_he


def fields(count=3, low=0, high=255, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(low, high, (40, 50, 3), dtype=np.uint8) for _ in range(count)]


def curve(**changes):
    return ToneCurve(**{"source": (-1.0, 0.0, 1.0), "target": (-0.5, 0.0, 0.25)} | changes)


def test_the_curve_of_a_population_to_itself_changes_no_luma():
    same = measure_tone(fields(), fields())
    he = to_tensor(fields())
    torch.testing.assert_close(same(he), to_gray(he), atol=2e-3, rtol=0)


def test_mapped_images_have_the_targets_quantiles():
    he, ihc = fields(1, 20, 120), fields(1, 100, 240, seed=1)
    mapped = measure_tone(he, ihc)(to_tensor(he))[:, 0].flatten().double()
    wanted = luma(to_tensor(ihc)).flatten().double()
    for share in (0.1, 0.5, 0.9):
        assert float(mapped.quantile(share)) == pytest.approx(float(wanted.quantile(share)), abs=0.01)


def test_it_is_linear_between_points_and_keeps_differences_beyond_them():
    grays = torch.tensor([-0.5, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    assert curve()(grays)[:, 0, 0, 0].tolist() == pytest.approx([-0.25, 0.125, 0.25])
    inner = curve(source=(-0.5, 0.5), target=(0.0, 0.5))
    assert inner(torch.full((1, 3, 2, 2), -0.6)).unique().tolist() == pytest.approx([-0.1])


def test_eosin_is_pale_in_red_and_dark_in_luma():
    stains = np.array([[[0.0, 1.0], [1.0, 0.0]]])  # a pixel of eosin, a pixel of hematoxylin
    he = to_tensor(combine_stains(stains, rgb_from_he))
    straight = {"source": (-1.0, 1.0), "target": (-1.0, 1.0)}
    by_red, by_luma = (ToneCurve(**straight, channel=channel)(he)[0, 0, 0] for channel in ("red", "luma"))
    assert by_red[0] - by_red[1] > 2.5 * (by_luma[0] - by_luma[1]).abs()
    torch.testing.assert_close(by_red, he[0, 0, 0])


def test_red_is_measured_as_red():
    he = fields(1)
    blind = [np.dstack([he[0][..., :1], np.zeros_like(he[0][..., 1:])])]
    assert measure_tone(he, fields(seed=1), "red") == measure_tone(blind, fields(seed=1), "red")


@pytest.mark.parametrize(
    "wrong", [{"source": (0.0, -1.0, 1.0)}, {"target": (0.0, 1.0)}, {"channel": "green"}]
)
def test_a_curve_that_is_none_is_refused(wrong):
    with pytest.raises(ValidationError):
        curve(**wrong)
