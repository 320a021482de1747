"""Measures against closed forms and invariants, intervals against what they cover, the report as a page."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from skimage.data import immunohistochemistry

from miudiff.cells import cell_labels, cell_mask
from miudiff.errors import DataError
from miudiff.evaluation.fidelity import (
    correlation,
    histogram,
    histogram_correlation,
    joint_histogram_correlation,
    psnr,
    vif,
    vif_luma,
)
from miudiff.evaluation.panel import measure
from miudiff.evaluation.scores import score_images
from miudiff.evaluation.stain import (
    at_side,
    dab_density,
    dab_image,
    integrated_optical_density,
    summarise_iod,
)
from miudiff.evaluation.statistics import Interval, interval
from miudiff.images import write_image
from miudiff.pages.page import BANNER, write_page
from miudiff.pages.parts import Figure, Notes, Table, markdown_table
from miudiff.pages.pictures import GAP, contact_sheet
from miudiff.stains import combine_stains, rgb_from_hdab


@pytest.fixture(scope="module")
def ihc():
    """Real tissue: a piece of scikit-image's IHC picture, [96, 128, 3]."""
    return np.ascontiguousarray(np.asarray(immunohistochemistry())[200:296, 100:228])


@pytest.fixture
def random():
    return np.random.default_rng(3)


def flat(level, height=48, width=64):
    return np.full((height, width, 3), level, np.uint8)


def stained(hematoxylin, dab):
    """A uint8 image whose amounts of the two stains are the arrays [H, W], in optical density."""
    amounts = np.stack(np.broadcast_arrays(hematoxylin, dab), axis=-1).astype(float)
    return combine_stains(amounts, rgb_from_hdab)


# PSNR


def test_psnr_of_a_constant_error_is_its_closed_form():
    assert psnr(flat(100), flat(110)) == pytest.approx(20 * math.log10(255 / 10))


def test_psnr_counts_every_channel():
    image = flat(100)
    image[..., 0] = 130
    assert psnr(image, flat(100)) == pytest.approx(10 * math.log10(255**2 / (30**2 / 3)))


def test_psnr_of_full_range_errors_does_not_wrap_around():
    assert psnr(flat(0), flat(255)) == pytest.approx(0)


def test_psnr_of_identical_images_is_infinite_and_their_mean_says_how_many_there_were(ihc):
    values = [psnr(ihc, ihc), psnr(flat(100), flat(110))]
    assert values[0] == math.inf
    assert interval(values)._replace(low=None, high=None) == Interval(values[1], None, None, 1, left_out=1)


# VIF


def test_vif_of_an_image_with_itself_is_1(ihc):
    assert vif(ihc, ihc) == pytest.approx(1, abs=1e-9)
    assert vif_luma(ihc, ihc) == pytest.approx(1, abs=1e-9)


def test_vif_falls_with_noise_and_rises_above_1_with_contrast(ihc, random):
    def noisy(level):
        disturbed = ihc + level * random.normal(size=ihc.shape)
        return np.clip(disturbed, 0, 255).round().astype(np.uint8)

    values = [vif(noisy(level), ihc) for level in (2, 10, 40)]
    assert 1 > values[0] > values[1] > values[2] > 0
    pale = (128 + (ihc.astype(float) - 128) * 0.5).round().astype(np.uint8)
    assert vif(ihc, pale) > 1 > vif(pale, ihc)


def test_vif_of_an_inverted_image_is_almost_0(ihc):
    assert vif(255 - ihc, ihc) < 0.02


@pytest.mark.parametrize("measure", [vif, vif_luma])
def test_vif_against_a_flat_reference_is_1_for_a_flat_image_and_0_for_any_other(measure, ihc):
    blank = flat(255, *ihc.shape[:2])
    assert measure(flat(200, *ihc.shape[:2]), blank) == 1
    assert measure(ihc, blank) == 0
    assert measure(blank, ihc) == pytest.approx(0, abs=1e-9)


def test_vif_needs_41_pixels_a_side(random):
    tile = random.integers(0, 256, (41, 41, 3), dtype=np.uint8)
    assert vif(tile, tile) == pytest.approx(1)
    with pytest.raises(DataError, match="41 x 40 pixels, expected at least 41"):
        vif(tile[:40], tile[:40])


@pytest.mark.parametrize("measure", [psnr, vif, vif_luma])
def test_a_pair_of_two_sizes_is_refused_in_one_line(measure):
    with pytest.raises(DataError, match="image of 64 x 48 pixels, reference of 48 x 64"):
        measure(flat(1), flat(1, 64, 48))


@pytest.mark.parametrize("measure", [psnr, vif, histogram_correlation, joint_histogram_correlation])
def test_an_image_that_is_not_uint8_colour_is_a_programmers_mistake(measure):
    for wrong in (flat(1).astype(np.float32), flat(1)[..., 0]):
        with pytest.raises(ValueError, match=r"expected uint8 \[H, W, 3\]"):
            measure(wrong, wrong)


# Histograms


@pytest.mark.parametrize("space", ["rgb", "lab"])
def test_histogram_correlation_with_itself_is_1_wherever_the_pixels_lie(ihc, random, space):
    shuffled = random.permutation(ihc.reshape(-1, 3)).reshape(ihc.shape)
    assert histogram_correlation(ihc, ihc, space=space) == pytest.approx(1)
    assert histogram_correlation(shuffled, ihc, space=space) == pytest.approx(1)
    assert joint_histogram_correlation(shuffled, ihc) == pytest.approx(1)


def test_histogram_correlation_ignores_the_order_of_its_arguments_and_the_size(ihc):
    left, right = ihc[:, :64], ihc[:, 64:]
    value = histogram_correlation(left, right)
    assert 0 < value < 1
    assert histogram_correlation(right, left) == pytest.approx(value)
    assert histogram_correlation(np.concatenate([left, left]), right) == pytest.approx(value)


def test_the_joint_histogram_sees_colours_that_the_channels_do_not():
    channels = np.zeros((2, 2, 3), np.uint8)
    channels[0, :, 0], channels[0, :, 1] = 255, 255  # two yellow and two black pixels
    swapped = np.zeros((2, 2, 3), np.uint8)
    swapped[0, :, 0], swapped[1, :, 1] = 255, 255  # two red and two green ones
    assert histogram_correlation(channels, swapped) == pytest.approx(1)
    assert joint_histogram_correlation(channels, swapped) < 0.1


def test_two_colours_in_other_bins_give_the_closed_form_of_two_peaks():
    assert histogram_correlation(flat(10), flat(200), bins=256) == pytest.approx(-1 / 255)
    assert histogram_correlation(flat(10), flat(200), bins=4) == pytest.approx(-1 / 3)
    assert histogram_correlation(flat(10), flat(11), bins=4) == pytest.approx(1)


def test_a_histogram_without_shape_gives_1_beside_another_such_and_0_beside_any_other():
    level, peak = np.full(8, 3), np.eye(8, dtype=int)[2]
    assert correlation(level, 5 * level) == 1
    assert correlation(level, peak) == correlation(peak, level) == 0


def test_histograms_sum_over_a_set(ihc):
    left, right = ihc[:, :64], ihc[:, 64:]
    assert (histogram(left) + histogram(right) == histogram(ihc)).all()


def test_only_the_pixels_of_a_mask_count(ihc):
    painted, mask = ihc.copy(), np.ones(ihc.shape[:2], bool)
    painted[:, :64], mask[:, :64] = 255, False
    assert histogram_correlation(painted, ihc) < 0.9
    assert histogram_correlation(painted, ihc, mask=mask) == pytest.approx(1)
    assert math.isnan(histogram_correlation(painted, ihc, mask=np.zeros_like(mask)))


def test_a_mask_of_another_size_is_refused(ihc):
    with pytest.raises(DataError, match="mask of 8 x 8 pixels, image of 128 x 96"):
        histogram(ihc, mask=np.ones((8, 8), bool))


def test_lab_levels_are_the_8_bit_ones():
    counts = histogram(np.array([[[255, 255, 255], [0, 0, 0], [255, 0, 0]]], np.uint8), space="lab")
    places = [np.flatnonzero(channel).tolist() for channel in counts]
    assert places == [[0, 136, 255], [128, 208], [128, 195]]  # red is L 53.24, a 80.09, b 67.20


def test_a_colour_space_that_is_not_known_is_refused(ihc):
    with pytest.raises(ValueError, match="'hsv'"):
        histogram(ihc, space="hsv")


# IOD


def by_hand(pixel):
    """Grey level of DAB that ImageJ's Colour Deconvolution gives a pixel, by Cramer's rule and scalars."""
    h, d = (0.650, 0.704, 0.286), (0.268, 0.570, 0.776)
    h, d = (tuple(x / math.hypot(*v) for x in v) for v in (h, d))
    rest = tuple(math.sqrt(1 - a * a - b * b) for a, b in zip(h, d, strict=True))
    rest = tuple(x / math.hypot(*rest) for x in rest)
    density = tuple(-255 * math.log((level + 1) / 255) / math.log(255) for level in pixel)

    def determinant(a, b, c):
        return (
            a[0] * (b[1] * c[2] - b[2] * c[1])
            - a[1] * (b[0] * c[2] - b[2] * c[0])
            + a[2] * (b[0] * c[1] - b[1] * c[0])
        )

    amount = determinant(h, density, rest) / determinant(h, d, rest)
    light = math.exp(-(amount - 255) * math.log(255) / 255)
    return math.floor(min(max(light, 0), 255) + 0.5)


# ImageJ's uncalibrated OD, log10(255 / v); v = 0 counts as 0.5.
OD_TABLE = {
    255: 0.0,
    254: 0.0017064638,
    200: 0.1055101848,
    128: 0.2993302108,
    64: 0.6003602064,
    26: 0.9915668325,
    10: 1.4065401804,
    1: 2.4065401804,
    0: 2.7075701761,
}


def test_the_density_of_each_grey_level_is_imagejs():
    grid = np.arange(0, 256, 15, dtype=np.uint8)
    colours = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"), axis=-1).reshape(1, -1, 3)
    level = np.array([by_hand([int(value) for value in colour]) for colour in colours[0]])
    density = dab_density(colours)[0]
    for value, expected in OD_TABLE.items():
        assert (level == value).any()
        np.testing.assert_allclose(density[level == value], expected, atol=1e-9)


def test_white_grey_and_black_pixels_are_as_worked_by_hand():
    # Black: OD' = 255 in each colour, c = 148.54, v = 10.1. Grey 128: OD' = 31.36, c = 18.27, v = 171.5.
    # White: OD' = -0.18, c = -0.10, v = 255.6, clipped to 255.
    pixels = np.array([[[255, 255, 255], [128, 128, 128], [0, 0, 0]]], np.uint8)
    expected = [0, math.log10(255 / 171), math.log10(255 / 10)]
    np.testing.assert_allclose(dab_density(pixels)[0], expected, atol=1e-9)
    assert integrated_optical_density(pixels) == pytest.approx(sum(expected), abs=1e-9)


@pytest.mark.parametrize("amount", [0.1, 0.3, 0.6, 1.0, 1.3])
def test_pure_dab_measures_as_itself_and_pure_hematoxylin_as_nothing(amount):
    # The picture is 8-bit: one grey level is up to 0.02 of density here.
    assert dab_density(stained([[0.0]], [[amount]]))[0, 0] == pytest.approx(amount, abs=0.03)
    assert dab_density(stained([[amount]], [[0.0]]))[0, 0] == pytest.approx(0, abs=0.02)


def test_iod_adds_over_disjoint_parts(ihc):
    tops = integrated_optical_density(ihc[:40]) + integrated_optical_density(ihc[40:])
    assert integrated_optical_density(ihc) == pytest.approx(tops)


def test_iod_rises_with_dab(random):
    cells, hematoxylin = random.random((32, 32)), 0.3 * random.random((32, 32))
    images = [stained(hematoxylin, amount * cells) for amount in (0, 0.2, 0.5, 1.0)]
    values = [integrated_optical_density(image) for image in images]
    assert values == sorted(values)
    assert values[0] < values[1] / 5


def test_the_dab_image_of_a_pure_dab_image_is_itself(random):
    pure = stained(np.zeros((8, 8)), 0.8 * random.random((8, 8)))
    assert np.abs(dab_image(pure).astype(int) - pure).max() <= 6
    assert (dab_image(flat(255)) == 255).all()


def disks(centres, shape=(128, 128), radius=9):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return sum(np.hypot(rows - y, columns - x) <= radius for y, x in centres)


def test_cells_of_either_stain_are_found_and_touching_ones_split():
    blue, brown = disks([(30, 30), (30, 44), (90, 40)]) > 0, disks([(80, 95)]) > 0
    image = stained(0.4 * blue, 1.0 * brown)
    mask, labels = cell_mask(image), cell_labels(image)
    assert ((labels > 0) == mask).all()
    truth = blue | brown
    assert (mask & truth).sum() * 2 / (mask.sum() + truth.sum()) > 0.9
    assert labels.max() == 4


@pytest.mark.parametrize("glass", [255, 230, 180])
def test_noisy_glass_holds_no_cells(random, glass):
    image = np.clip(flat(glass, 96, 96) + 3 * random.normal(size=(96, 96, 3)), 0, 255).astype(np.uint8)
    assert not cell_mask(image).any()
    assert cell_labels(image).max() == 0


def test_specks_are_no_cells():
    assert not cell_mask(stained(0.0, 1.0 * (disks([(40, 40)], radius=2) > 0))).any()


def test_a_tile_that_is_all_dab_is_all_cell():
    image = stained(np.zeros((64, 64)), 1.2)
    assert cell_mask(image).all()
    assert (cell_labels(image) > 0).all()


def test_the_iod_deviation_is_signed_and_summed_over_images(ihc):
    pale = (255 - (255 - ihc.astype(float)) * 0.6).round().astype(np.uint8)
    found = score_images([pale, ihc[:, ::-1]], [ihc, ihc[:, ::-1]]).mean
    expected = integrated_optical_density(pale) - integrated_optical_density(ihc)
    assert expected < 0
    assert found["iod_sum_1e7_native"] == pytest.approx(expected / 1e7)
    assert found["iod_per_image_mean_native"] == pytest.approx(expected / 2)


def test_upsampling_scales_the_iod_by_the_area_and_makes_sizes_comparable():
    image = stained(0.0, 0.5 * (disks([(16, 16)], (32, 32)) > 0))
    large = integrated_optical_density(np.kron(image, np.ones((4, 4, 1), np.uint8)))
    assert integrated_optical_density(at_side(image, 128)) == pytest.approx(large, rel=0.02)
    assert large == pytest.approx(16 * integrated_optical_density(image))


def test_a_model_that_misses_cells_is_punished_by_each_images_own_mask():
    hematoxylin = 0.4 * (disks([(30, 30), (90, 90)]) > 0)
    real = stained(hematoxylin, 0.9 * (disks([(30, 90), (90, 30)]) > 0))
    smeared = stained(hematoxylin, 0.04)  # a veil of DAB too thin for a cell, in place of the cells
    found = measure(smeared, real, nucleus=16)
    own, reference = (
        found[f"iod_generated_native{place}"] - found[f"iod_real_native{place}"]
        for place in ("_cells", "_real_cells")
    )
    assert own < reference < 0
    assert found["iod_real_native_cells"] == found["iod_real_native_real_cells"]


def test_iod_statistics_that_are_not_defined_are_nan():
    one = summarise_iod(np.array([[3.0, 0.0]]))
    assert math.isnan(one.pearson_r)
    assert one.dev_sum == 3
    two = summarise_iod(np.array([[3.0, 0.0], [1.0, 2.0]]))
    assert two.pearson_r == pytest.approx(-1)


# Intervals


def test_the_interval_covers_the_mean_of_the_population_about_as_often_as_it_says():
    draws = np.random.default_rng(0)
    found = [interval(draws.normal(5, 2, 30)) for _ in range(40)]
    covered = np.mean([each.low <= 5 <= each.high for each in found])
    assert 0.85 <= covered <= 1
    # 2 · 1.96 · σ / √n wide
    assert np.mean([each.high - each.low for each in found]) == pytest.approx(2 * 1.96 * 2 / 30**0.5, rel=0.1)


def test_an_interval_hangs_on_the_values_and_the_seed_alone(random):
    values = random.normal(size=20)
    assert interval(values) == interval(list(values))
    assert interval(values, seed=1) != interval(values)
    assert interval(values, seed=1).mean == interval(values).mean == pytest.approx(values.mean())


def test_one_value_has_a_mean_and_no_interval():
    assert interval([7.5]) == Interval(7.5, None, None, 1)
    assert str(interval([7.5])) == "7.5 (n=1)"


def test_equal_values_have_an_interval_of_no_width():
    assert interval([2.0] * 5) == Interval(2.0, 2.0, 2.0, 5)


def test_values_that_are_not_finite_are_left_out_and_counted():
    result = interval([1.0, math.nan, 3.0, math.inf])
    assert (result.mean, result.n, result.left_out) == (2.0, 2, 2)
    assert str(result).endswith("(n=2, 2 left out)")


def test_a_set_of_nothing_finite_has_the_infinity_that_all_share_or_nan():
    assert interval([math.inf, math.inf]) == Interval(math.inf, None, None, 0, 2)
    assert math.isnan(interval([math.nan, math.nan]).mean)
    assert math.isnan(interval([math.inf, -math.inf]).mean)
    with pytest.raises(ValueError, match="no values"):
        interval([])


# The report

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that tags close in order, and collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


HOSTILE = "<script>alert('1')</script> & \"more\""


@pytest.fixture
def page(tmp_path, ihc):
    write_image(tmp_path / "tile.jpg", ihc)
    write_image(tmp_path / "tile.tif", ihc)
    write_page(
        tmp_path / "new" / "report.html",
        HOSTILE,
        f"Lead {HOSTILE}",
        [
            Figure(HOSTILE, HOSTILE, ihc),
            Figure("grey", "one channel", ihc[..., 0]),
            Figure("file", "a JPEG", tmp_path / "tile.jpg"),
            Figure("other", "a TIFF", str(tmp_path / "tile.tif")),
            Table(HOSTILE, ["Method", HOSTILE], [[HOSTILE, 1.23456], ["none", math.nan]], HOSTILE),
            Notes("Notes", [HOSTILE]),
        ],
    )
    return (tmp_path / "new" / "report.html").read_text(encoding="utf-8")


def test_the_report_is_well_formed_and_shows_what_it_was_given(page):
    parsed = Page(page)
    assert page.startswith("<!DOCTYPE html>")
    assert parsed.tags.count("img") == 4
    assert parsed.tags.count("table") == 1
    assert "1.235" in parsed.text
    assert f"Lead {HOSTILE}" in parsed.text


def test_the_report_bears_the_banner(page, tmp_path):
    assert BANNER in Page(page).text
    write_page(tmp_path / "empty.html", "Nothing", "")
    assert BANNER in Page((tmp_path / "empty.html").read_text(encoding="utf-8")).text


def test_the_report_escapes_titles_captions_cells_and_notes(page):
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert "<script" not in page
    assert parsed.text.count(HOSTILE) == 10


def test_the_report_fetches_nothing(page):
    assert not re.search(r"https?://|@import|url\(", page)
    assert Page(page).links
    assert all(link.startswith("data:image/") for link in Page(page).links)


def test_the_reports_images_are_the_pixels_and_files_given(page, ihc, tmp_path):
    parts = [link.removeprefix("data:").split(";base64,") for link in Page(page).links]
    kinds, contents = zip(*parts, strict=True)
    assert kinds == ("image/png", "image/png", "image/jpeg", "image/png")
    decoded = [base64.b64decode(content) for content in contents]
    assert (np.asarray(Image.open(io.BytesIO(decoded[0]))) == ihc).all()
    assert decoded[2] == (tmp_path / "tile.jpg").read_bytes()
    assert (np.asarray(Image.open(io.BytesIO(decoded[3]))) == ihc).all()


def test_a_figure_that_cannot_be_read_leaves_no_report(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    for name, message in [("broken.png", "is not an image"), ("missing.png", "No such file")]:
        with pytest.raises(DataError, match=message):
            write_page(tmp_path / "report.html", "t", "l", [Figure("f", "c", tmp_path / name)])
    assert not (tmp_path / "report.html").exists()


def test_a_markdown_table_escapes_bars_and_sets_numbers_to_the_right():
    rows = [["a|b\nc", Interval(1.5, 1.0, 2.0, 9), 9], ["d", np.float32(0.1), None]]
    table = markdown_table(["Method", "PSNR", "n"], rows)
    assert table.splitlines() == [
        "| Method | PSNR | n |",
        "| --- | ---: | ---: |",
        r"| a\|b c | 1.5 [1, 2] (n=9) | 9 |",
        "| d | 0.1 | – |",
    ]
    assert markdown_table(["a"], []) == "| a |\n| --- |\n"
    with pytest.raises(ValueError, match="a row of 1 cells below a header of 2"):
        markdown_table(["a", "b"], [["c"]])


def test_a_contact_sheet_shows_each_tile_whole_at_one_size(random):
    tiles = [flat(level, 32, 32) for level in (10, 60, 110, 160)]
    tiles[3] = flat(160, 64, 32)  # taller: it fills the height, half the width
    titles = ["H&E", "a title far too long for a tile"]
    sheet = contact_sheet([tiles[:2], tiles[2:]], titles, ["one", "two"], side=40)
    margin = sheet.shape[1] - 2 * (40 + GAP)
    for index, level in enumerate((10, 60, 110, 160)):
        top, left = margin + index // 2 * (40 + GAP), margin + index % 2 * (40 + GAP)
        cell = sheet[top : top + 40, left : left + 40]
        assert (cell == level).all(axis=-1).sum() == (800 if index == 3 else 1600)
    assert sheet[:margin, margin : margin + 40].min() < 128  # a title's ink
    assert sheet[margin : margin + 40, :margin].min() < 128
    assert (sheet[:, -GAP:] == 255).all()


def test_a_contact_sheet_with_titles_that_do_not_fit_its_rows_is_refused():
    with pytest.raises(ValueError, match="1 rows, 2 row titles"):
        contact_sheet([[flat(1)]], ["a"], ["b", "c"])
    with pytest.raises(ValueError, match=r"rows of \[1\] tiles below 2 titles"):
        contact_sheet([[flat(1)]], ["a", "b"], ["c"])
