"""The curve that removes a source's colour: quantiles to quantiles, of luma or of red."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from miudiff.errors import DataError
from miudiff.images import luma, to_gray, to_tensor
from miudiff.methods.tone import ToneCurve, measure_tone, stained
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


def coloured(count=1, low=0, high=255, seed=0):
    """Fields without ground: every pixel is far from grey."""
    images = fields(count, low, high, seed)
    for image in images:
        image[..., 2] = 250
        image[..., 1] = np.minimum(image[..., 1], 120)
    return images


def test_mapped_images_have_the_targets_quantiles():
    he, ihc = coloured(1, 20, 120), fields(1, 100, 240, seed=1)
    mapped = measure_tone(he, ihc)(to_tensor(he))[:, 0].flatten().double()
    wanted = luma(to_tensor(ihc)).flatten().double()
    for share in (0.1, 0.5, 0.9):
        assert float(mapped.quantile(share)) == pytest.approx(float(wanted.quantile(share)), abs=0.01)


def with_ground(stain, grey, share=0.5):
    """A field whose left columns are grey ground and whose others are the image's."""
    field = stain.copy()
    field[:, : int(share * field.shape[1])] = grey
    return field


def test_ground_stays_as_it_is_and_is_no_part_of_the_curve():
    """Of two fields on dark and on bright ground each keeps its own, and the stain is mapped as if there were none."""
    he, ihc = coloured(2, 20, 120), fields(2, 60, 100, seed=1)
    curve = measure_tone(
        [with_ground(image, grey) for image, grey in zip(he, (130, 240), strict=True)],
        [with_ground(image, grey) for image, grey in zip(ihc, (130, 240), strict=True)],
    )
    for grey in (0, 90, 130, 240):
        flat = to_tensor(np.full((8, 8, 3), grey, np.uint8))
        torch.testing.assert_close(curve(flat), flat)
    alone = measure_tone(he, ihc)
    assert alone.source == pytest.approx(curve.source, abs=0.02)
    assert alone.target == pytest.approx(curve.target, abs=0.02)


def test_a_pixel_is_moved_by_as_much_as_it_is_stained():
    pixels = np.array([[[200, 200, 200], [200, 180, 200], [200, 140, 200], [250, 20, 250]]], np.uint8)
    he = to_tensor(pixels)
    density = np.log10(200 / np.array([200, 180, 140])).tolist()
    share = [(min(max(c, 0.015), 0.2) - 0.015) / 0.185 for c in density] + [1.0]
    assert stained(he, (0.015, 0.2))[0, 0, 0].tolist() == pytest.approx(share, abs=1e-5)
    whole, soft = curve()(he), curve(chroma=(0.015, 0.2))(he)
    gray = to_gray(he)
    wanted = gray + torch.tensor(share).view(1, 1, 1, 4) * (whole - gray)
    torch.testing.assert_close(soft, wanted, atol=1e-5, rtol=0)


def test_a_curve_measured_before_grounds_were_kept_moves_every_pixel():
    old = ToneCurve.model_validate({"source": [-1.0, 1.0], "target": [-0.5, 0.5]})
    assert old(torch.full((1, 3, 2, 2), 1.0)).unique().tolist() == [0.5]


def test_he_without_colour_is_refused():
    with pytest.raises(DataError, match="no colour"):
        measure_tone([np.full((9, 9, 3), 128, np.uint8)], fields())


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
    he = coloured()
    other = [np.dstack([he[0][..., 0], 120 - he[0][..., 1], he[0][..., 2]])]
    assert measure_tone(he, fields(seed=1), "red") == measure_tone(other, fields(seed=1), "red")
    assert measure_tone(he, fields(seed=1)) != measure_tone(other, fields(seed=1))


@pytest.mark.parametrize(
    "wrong",
    [{"source": (0.0, -1.0, 1.0)}, {"target": (0.0, 1.0)}, {"channel": "green"}, {"chroma": (0.2, 0.1)}],
)
def test_a_curve_that_is_none_is_refused(wrong):
    with pytest.raises(ValidationError):
        curve(**wrong)
