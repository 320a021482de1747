"""Stains separate and combine again; a twin has its image's tissue and has lost what DAB said about the antigen."""

import os

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from miudiff.cells import stained_nuclei
from miudiff.cli import main
from miudiff.data.twin import make_twins, render_twin, skimage_ihc, twin_region, twin_region_file, unrelated
from miudiff.errors import DataError
from miudiff.images import read_image, write_image
from miudiff.stains import (
    DAB,
    HEMATOXYLIN,
    background_light,
    combine_stains,
    dab_map,
    optical_density,
    rgb_from_hdab,
    rgb_from_he,
    rgb_from_hed,
    separate_stains,
    stain_matrix,
)

MATRICES = {"hdab": rgb_from_hdab, "hed": rgb_from_hed, "he": rgb_from_he}


def amounts(stains, side=24, seed=0):
    return np.random.default_rng(seed).uniform(0, 0.5, (side, side, stains))


# Stains


@pytest.mark.parametrize("name", MATRICES)
def test_stains_that_are_combined_separate_again(name):
    """To the half grey level that 8 bits leave: at 10^-d of the light it is a density of 0.22 / (255 10^-d)."""
    matrix, given = MATRICES[name], amounts(2)
    image = combine_stains(given, matrix)
    half_a_level = 0.5 / (np.log(10) * np.maximum(image, 1.0)) * 1.02
    allowed = half_a_level @ np.abs(np.linalg.inv(matrix))
    found = separate_stains(image, matrix)
    assert (np.abs(found[..., :2] - given) <= allowed[..., :2]).all()
    assert (np.abs(found[..., 2]) <= allowed[..., 2]).all()


@pytest.mark.parametrize("name", MATRICES)
def test_an_image_that_is_separated_combines_again(name):
    image = np.random.default_rng(1).integers(20, 256, (16, 16, 3), np.uint8)
    assert np.array_equal(combine_stains(separate_stains(image, MATRICES[name]), MATRICES[name]), image)


@pytest.mark.parametrize(("stain", "index"), [(HEMATOXYLIN, 0), (DAB, 1)], ids=["hematoxylin", "DAB"])
def test_a_pixel_of_one_stain_has_that_stain_alone(stain, index):
    colour = np.array(stain) / np.linalg.norm(stain)
    pixel = np.round(255 * 10 ** -(0.6 * colour)).astype(np.uint8).reshape(1, 1, 3)
    found = separate_stains(pixel, rgb_from_hdab)[0, 0]
    expected = np.zeros(3)
    expected[index] = 0.6
    assert found == pytest.approx(expected, abs=0.01)


def test_a_pair_of_stains_is_completed_as_imagej_does():
    rows = np.array([HEMATOXYLIN, DAB]) / np.linalg.norm([HEMATOXYLIN, DAB], axis=1, keepdims=True)
    third = np.sqrt(np.clip(1 - (rows**2).sum(0), 0, None))
    assert np.allclose(rgb_from_hdab, np.vstack([rows, third / np.linalg.norm(third)]))
    assert np.allclose(np.linalg.norm(stain_matrix(HEMATOXYLIN, DAB, (0, 0, 2)), axis=1), 1)


def test_density_is_the_logarithm_of_the_light_that_is_lost_and_never_negative():
    image = np.array([[[255, 128, 26], [0, 1, 255]]], np.uint8)
    expected = [[[0, np.log10(255 / 128), np.log10(255 / 26)], [np.log10(255), np.log10(255), 0]]]
    assert np.allclose(optical_density(image), expected)
    assert (optical_density(image, light=100.0) >= 0).all()


def test_grey_glass_counts_as_no_stain():
    image = np.full((40, 40, 3), (201, 198, 204), np.uint8)
    image[10:20, 10:20] = combine_stains(
        np.array([[[0.2, 0.4]]]), rgb_from_hdab, light=np.array([201, 198, 204])
    )
    light = background_light(image)
    assert light.tolist() == [201, 198, 204]
    dab = dab_map(image, light)
    assert (dab[20:] == 0).all()
    assert dab[15, 15] == pytest.approx(0.4, abs=0.01)
    assert dab_map(image)[30, 30] > 0.02  # with white light assumed the glass is stain


# Twins


def field(nuclei, side=128, radius=8):
    """An IHC image of round nuclei, each (row, column, hematoxylin, DAB), in pale tissue on glass."""
    y, x = np.mgrid[:side, :side]
    stain = np.zeros((side, side, 2))
    stain[20:108, 20:108, 0] = 0.03
    for row, column, hematoxylin, dab in nuclei:
        stain[(y - row) ** 2 + (x - column) ** 2 <= radius**2] = (hematoxylin, dab)
    return combine_stains(ndimage.gaussian_filter(stain, (0.7, 0.7, 0)), rgb_from_hdab)


def darkness(image, row, column):
    """Mean optical density of a nucleus' middle."""
    return float(optical_density(image[row - 4 : row + 5, column - 4 : column + 5]).mean())


NEGATIVE = [(r, c, 0.5, 0.0) for r in (32, 64, 96) for c in (32, 64)]


@pytest.mark.parametrize("where", ["nuclear", "cytoplasmic"])
@pytest.mark.parametrize(("height", "width"), [(128, 128), (1, 1), (37, 90)])
def test_a_twin_is_an_image_of_the_same_size_and_always_the_same(where, height, width):
    image = field(NEGATIVE)[:height, :width]
    before = image.copy()
    twin = render_twin(image, where)
    assert (twin.dtype, twin.shape) == (np.uint8, image.shape)
    assert np.array_equal(twin, render_twin(image, where))
    assert np.array_equal(image, before)


def test_glass_stays_almost_white():
    for glass in (np.full((64, 64, 3), 255, np.uint8), np.full((64, 64, 3), (214, 213, 216), np.uint8)):
        grain = np.random.default_rng(0).integers(-1, 2, glass.shape)
        for image in (glass, np.clip(glass + grain, 0, 255).astype(np.uint8)):
            assert render_twin(image, "nuclear").min() > 225
    twin = render_twin(field(NEGATIVE), "nuclear")
    assert twin[:12].min() > 225


def test_nuclei_are_darker_and_bluer_than_the_tissue_around_them():
    twin = render_twin(field(NEGATIVE), "nuclear").astype(float)
    nucleus, tissue = twin[28:37, 28:37].mean((0, 1)), twin[44:53, 92:101].mean((0, 1))
    assert nucleus.sum() < tissue.sum() - 60
    assert nucleus[2] - nucleus[0] > tissue[2] - tissue[0]


def positive_and_negative(hematoxylin, dab):
    """How dark nuclei with DAB are in the twin, and those without."""
    twin = render_twin(field([*NEGATIVE, (48, 96, hematoxylin, dab), (80, 96, hematoxylin, dab)]), "nuclear")
    of_negative = [darkness(twin, row, column) for row, column, *_ in NEGATIVE]
    return np.mean([darkness(twin, 48, 96), darkness(twin, 80, 96)]), np.mean(of_negative)


@pytest.mark.parametrize("dab", [0.1, 0.3, 0.4])
def test_a_positive_nucleus_is_as_dark_as_an_equally_dense_negative_one(dab):
    positive, negative = positive_and_negative(0.5 - dab, dab)
    assert positive == pytest.approx(negative, abs=0.03)


def many_nuclei(seed, side=384, positive=0.35):
    """A field of 64 nuclei with a haze of DAB, a share of them positive: the IHC, its DAB and its nuclei."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side]
    stain, mask = np.full((side, side, 2), (0.05, 0.02)), np.zeros((side, side), bool)
    for row, column in np.stack(np.mgrid[24:side:48, 24:side:48], -1).reshape(-1, 2):
        top, left = rng.integers(-9, 10, 2)
        nucleus = (y - row - top) ** 2 + (x - column - left) ** 2 <= rng.uniform(7, 10) ** 2
        dense, pale, share = rng.uniform(0.4, 1.2), rng.uniform(0.3, 0.6), rng.random()
        stain[nucleus] = (0.15, dense) if share < positive else (pale, 0)
        mask |= nucleus
    stain[:12] = 0  # glass
    stain = ndimage.gaussian_filter(stain, (0.8, 0.8, 0)) * rng.uniform(0.9, 1.1, (side, side, 2))
    return combine_stains(stain, rgb_from_hdab), stain[..., 1], ndimage.binary_erosion(mask, iterations=1)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("window", [1, 4, 16])
def test_how_dark_a_nucleus_is_says_nothing_of_its_dab(seed, window):
    """Not its hematoxylin, its luma or its red, at any scale; of the IHC itself luma has r = 0.9 with DAB."""
    ihc, dab, nuclei = many_nuclei(seed)

    def within(field):
        whole = [ndimage.uniform_filter(f * nuclei, window) for f in (field, np.ones_like(field))]
        return (whole[0] / np.maximum(whole[1], 1e-6))[nuclei]

    def channels(image):
        density = optical_density(image)
        return density @ [0.299, 0.587, 0.114], density[..., 0], separate_stains(image, rgb_from_he)[..., 0]

    twin = render_twin(ihc, "nuclear")
    assert np.corrcoef(within(channels(ihc)[0]), within(dab))[0, 1] > 0.8
    for channel in channels(twin):
        assert abs(np.corrcoef(within(channel), within(dab))[0, 1]) < 0.1


def test_what_is_linear_in_dab_at_any_scale_is_taken_out():
    rng = np.random.default_rng(3)
    dab = sum(np.abs(ndimage.gaussian_filter(rng.normal(size=(256, 256)), s)) * s for s in (0.5, 4, 16))
    where = ndimage.gaussian_filter(rng.normal(size=(256, 256)), 8) > 0
    own = ndimage.gaussian_filter(rng.normal(size=(256, 256)), 1)
    known = own / own.std() + 3 * dab + 5 * ndimage.uniform_filter(dab, 16)
    left = unrelated(known, dab, where, 0.5)
    assert abs(np.corrcoef(left[where], dab[where])[0, 1]) < 1e-6
    assert np.corrcoef(left[where], own[where])[0, 1] > 0.95
    assert left[where].mean() == pytest.approx(known[where].mean())
    assert np.array_equal(left[~where], known[~where])


def test_brown_cytoplasm_becomes_no_nucleus():
    twin = render_twin(field([*NEGATIVE, (64, 96, 0.05, 0.5)]), "cytoplasmic")
    red, _, blue = twin[60:69, 92:101].mean((0, 1))
    assert red > blue + 10  # eosin
    hematoxylin = separate_stains(twin, rgb_from_he)[..., 0]
    assert hematoxylin[60:69, 92:101].mean() < 0.5 * hematoxylin[60:69, 60:69].mean()


def test_the_twin_hides_dab():
    """Two fields that differ by DAB in their nuclei alone have twins that hardly differ."""
    (brown, _, nuclei), (blue, *_) = many_nuclei(0), many_nuclei(0, positive=0.0)
    twins = [render_twin(image, "nuclear") for image in (brown, blue)]

    def difference(first, second):
        return np.abs(optical_density(first) - optical_density(second))[nuclei].mean()

    assert difference(brown, blue) > 0.05
    assert difference(*twins) < 0.3 * difference(brown, blue)


# The set that ships


def test_the_regions_are_disjoint_and_together_the_whole_image():
    from skimage.data import immunohistochemistry

    train, test = skimage_ihc("train"), skimage_ihc("test")
    assert train.shape == test.shape == (512, 256, 3)
    assert np.array_equal(np.hstack([train, test]), immunohistochemistry())


def test_a_region_is_a_pair_whose_ihc_is_the_source_and_its_twin_the_he():
    he, ihc = twin_region("test")
    assert he.shape == ihc.shape == (512, 256, 3)
    assert np.array_equal(ihc, skimage_ihc("test"))


def test_a_twin_lies_on_its_image_to_the_pixel():
    """Of all shifts by up to 2 pixels, none at all makes their edges agree best."""
    he, ihc = (np.hypot(*np.gradient(image[:256].mean(-1))) for image in twin_region("test"))
    inside = (slice(8, -8), slice(8, -8))

    def agreement(shift):
        return np.corrcoef(he[inside].ravel(), np.roll(ihc, shift, (0, 1))[inside].ravel())[0, 1]

    shifts = [(rows, columns) for rows in range(-2, 3) for columns in range(-2, 3)]
    assert max(shifts, key=agreement) == (0, 0)


def test_an_unknown_region_is_refused():
    with pytest.raises(DataError, match="twin:both: no such region, expected twin:train or twin:test"):
        skimage_ihc("both")


def test_a_regions_file_holds_the_region(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    he, ihc = twin_region("train")
    for which, expected in (("HE", he), ("IHC", ihc)):
        path = twin_region_file("train", which)
        assert tmp_path in path.parents
        assert np.array_equal(read_image(path), expected)


# Files


def test_a_folder_becomes_pairs_of_one_name_and_a_broken_file_is_told(tmp_path):
    ihc, out = tmp_path / "ihc", tmp_path / "out"
    write_image(ihc / "a.png", field(NEGATIVE))
    write_image(ihc / "b.1.tif", field(NEGATIVE[:2]))
    write_image(ihc / "b.2.tif", field(NEGATIVE[2:]))
    (ihc / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but cut off")
    written, failed = make_twins(ihc, out, "nuclear")
    assert [path.name for path in written] == ["a.png", "b.1.png", "b.2.png"]
    assert [line.split(": ")[0] for line in failed] == [str(ihc / "broken.png")]
    for path, source in zip(written, ("a.png", "b.1.tif", "b.2.tif"), strict=True):
        assert np.array_equal(read_image(out / "IHC" / path.name), read_image(ihc / source))
        assert np.array_equal(read_image(path), render_twin(read_image(ihc / source), "nuclear"))
    assert sorted(path.name for path in (out / "HE").iterdir()) == [path.name for path in written]


def test_two_images_of_one_name_do_not_overwrite_each_others_twin(tmp_path):
    write_image(tmp_path / "ihc" / "a.png", field(NEGATIVE))
    write_image(tmp_path / "ihc" / "a.tif", field(NEGATIVE[:1]))
    written, failed = make_twins(tmp_path / "ihc", tmp_path / "out", "nuclear")
    assert len(written) == len(failed) == 1
    assert "a.tif: another image is named a as well" in failed[0]
    assert np.array_equal(
        read_image(tmp_path / "out" / "IHC" / "a.png"), read_image(tmp_path / "ihc" / "a.png")
    )


def test_twins_are_not_written_among_their_sources(tmp_path):
    Image.fromarray(field(NEGATIVE)).save(tmp_path / "a.jpg")
    (tmp_path / "IHC").mkdir()
    (tmp_path / "a.jpg").rename(tmp_path / "IHC" / "a.jpg")
    for source in (tmp_path / "IHC", tmp_path / "IHC" / "a.jpg"):
        with pytest.raises(DataError, match="among the sources"):
            make_twins(source, tmp_path, "nuclear")
    assert [path.name for path in (tmp_path / "IHC").iterdir()] == ["a.jpg"]


def test_pipes_are_named_and_left_out_and_each_failure_is_told_once_on_stderr(tmp_path, capsys):
    write_image(tmp_path / "in" / "a.png", field(NEGATIVE))
    os.mkfifo(tmp_path / "in" / "pipe.png")
    with pytest.raises(SystemExit) as left:
        main(["data", "twin", str(tmp_path / "in"), str(tmp_path / "out")])
    assert left.value.code == 3
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        f"miudiff: {tmp_path / 'in' / 'pipe.png'}: is a pipe, a socket or a device, left out, expected an image file"
    ]
    assert printed.out == f"1 pairs in {tmp_path / 'out'}, 1 failed\n"
    with pytest.raises(DataError, match="no regular file"):
        make_twins(tmp_path / "in" / "pipe.png", tmp_path / "out", "nuclear")


@pytest.mark.parametrize("ground", [0.02, 0.35])
def test_nuclei_of_a_field_that_is_brown_all_over_are_what_is_browner(ground):
    y, x = np.mgrid[:128, :128]
    mask = ((y % 32 - 16) ** 2 + (x % 32 - 16) ** 2) < 64
    stain = np.where(mask[..., None], (0.2, 0.9), (0.02, ground))
    found = stained_nuclei(combine_stains(stain, rgb_from_hdab), 16)
    assert (found & mask).sum() > 0.85 * mask.sum()
    assert (found & ~mask).sum() < 0.25 * mask.sum()
