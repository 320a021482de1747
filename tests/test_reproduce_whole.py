"""Every pair of a dataset as a test pair of a model that is there: tiles at its scale, markers, and nothing trained."""

import json
from dataclasses import replace

import numpy as np
import pytest

from miudiff.errors import ConfigError, DataError
from miudiff.images import read_image, resize, write_image
from miudiff.methods.model import save_model
from miudiff.reproduce import Options
from miudiff.reproduce.cases import prepare
from miudiff.reproduce.prepare import Settings
from miudiff.reproduce.sources import Source, parse_sources
from miudiff.reproduce.whole import share, spread, tiles
from small_set import bci, budget_file, make, options, plain, tissue
from tiny import tiny_model


def ready(root, out, mpp=0.5, side=64, most=None, scale=1.0):
    return prepare(
        Source("set", root, mpp, "model"),
        out,
        Settings(side, most, "all", scale=scale),
        lambda line: None,
    )


@pytest.fixture
def asked(tmp_path):
    """Options of a run on two fields that make six tiles of 64 each, with a model of 1 um/px."""
    save_model(tmp_path / "model", tiny_model(markers=("Ki67", "FHL2"), mpp=1.0))
    root = plain(tmp_path / "twins", pairs=2, size=(300, 400))
    return options(
        "table1",
        root,
        tmp_path / "out",
        budget_file(tmp_path / "tiny.yaml", seeds=1, images=4),
        models=(f"set={tmp_path / 'model'}",),
        markers=("set=Ki67",),
        split="all",
    )


# Tiles


@pytest.mark.parametrize("count", [1, 2, 7, 30])
@pytest.mark.parametrize("most", [1, 2, 5, 30, 31, None])
def test_what_is_taken_lies_as_evenly_as_may_be(count, most):
    taken = spread(count, most)
    assert len(taken) == min(count, most or count)
    assert taken == sorted(set(taken))
    assert 0 <= taken[0] <= taken[-1] < count
    gaps = np.diff([-1 - taken[0], *taken, 2 * count - 1 - taken[-1]])  # the same, mirrored at both ends
    assert gaps.max() - gaps.min() <= 2


@pytest.mark.parametrize(
    ("counts", "most", "found"),
    [
        ([6, 6], 4, [2, 2]),
        ([1, 6, 6], 7, [1, 3, 3]),
        ([9, 1], 4, [3, 1]),
        ([2, 2], 9, [2, 2]),
        ([5, 5, 5], 8, [2, 3, 3]),
    ],
)
def test_a_number_of_tiles_is_shared_out_evenly(counts, most, found):
    assert share(counts, most) == found


@pytest.mark.parametrize("size", [(64, 64), (160, 160), (700, 130), (95, 1000)])
def test_tiles_lie_side_by_side_in_multiples_of_32(size):
    height, width, corners = tiles(np.zeros((*size, 3), np.uint8), 128)
    assert height % 32 == width % 32 == 0
    assert height <= 128 >= width
    covered = np.zeros(size, int)
    for row, column in corners:
        assert covered[row : row + height, column : column + width].shape == (height, width)
        covered[row : row + height, column : column + width] += 1
    assert covered.max() == 1
    assert size[0] - height < covered.any(1).sum()
    assert size[1] - width < covered.any(0).sum()


def test_fields_are_resampled_to_the_models_scale_and_cut(tmp_path):
    root = plain(tmp_path / "set", pairs=1, size=(300, 400))
    case = ready(root, tmp_path / "out")
    assert (case.mpp, case.trains, case.paired) == (1.0, False, False)
    assert case.test == tuple(sorted(f"0_{row}_{column}" for row in (0, 64) for column in (0, 64, 128)))
    for stain in ("HE", "IHC"):
        whole = resize(read_image(root / stain / "0.png"), 150, 200)
        tile = read_image(case.images / "test" / stain / "0_64_128.png")
        assert np.array_equal(tile, whole[64:128, 128:192])
    assert not (case.images / "train").exists()
    assert any("Resampled from 0.5 um/px, as --mpp states, to the model's 1" in note for note in case.notes)
    assert any("1 of 1 pairs, cut into tiles of at most 64 pixels" in note for note in case.notes)


def test_pairs_of_every_part_are_tested(tmp_path):
    case = ready(bci(tmp_path / "bci", size=(160, 160)), tmp_path / "out", side=128)
    assert len(case.test) == 4
    assert {name[:11] for name in case.test} == {
        f"{i:05d}_{p}"[:11] for i in (0, 1) for p in ("train", "test_")
    }


@pytest.mark.parametrize(("most", "each"), [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (7, [2, 2, 3])])
def test_the_budgets_number_is_spread_over_the_files(tmp_path, most, each):
    case = ready(plain(tmp_path / "set", pairs=3, size=(300, 400)), tmp_path / "out", most=most)
    files = [name.split("_")[0] for name in case.test]
    assert sorted(files.count(name) for name in set(files)) == each


def test_a_name_that_looks_like_anothers_tile_takes_no_place(tmp_path):
    for name in ("a", "a_0_0", "a_0"):
        for k, stain in enumerate(("HE", "IHC")):
            write_image(tmp_path / "set" / stain / f"{name}.png", tissue(256, 256, k))
    case = ready(tmp_path / "set", tmp_path / "out")
    assert len(set(case.test)) == 3 * 4
    assert len(list((case.images / "test" / "IHC").iterdir())) == 12


@pytest.mark.parametrize(("mpp", "scale"), [(None, 1.0), (0.5, None)])
def test_where_a_scale_is_not_known_fields_are_shrunk_to_the_budgets_side(tmp_path, mpp, scale):
    case = ready(plain(tmp_path / "set", pairs=1, size=(128, 192)), tmp_path / "out", mpp, 96, scale=scale)
    assert case.test == ("0_0_0",)
    assert case.read("HE")[0].shape == (64, 96, 3)
    assert case.mpp == (mpp and pytest.approx(1.0))
    assert any("Scale unknown" in note for note in case.notes) == (mpp is None)


def test_a_coarser_field_grows(tmp_path):
    case = ready(plain(tmp_path / "set", pairs=1, size=(64, 64)), tmp_path / "out", 2.0, 128)
    assert case.read("IHC")[0].shape == (128, 128, 3)


def test_a_field_that_is_too_small_or_too_large_at_the_models_scale_is_told(tmp_path):
    root = plain(tmp_path / "set", pairs=1, size=(100, 100))
    with pytest.raises(
        DataError, match=r"100 x 100 pixels are 50 x 50 at the model's 1 um/px, .* leave it out$"
    ):
        ready(root, tmp_path / "small")
    with pytest.raises(DataError, match="20000 x 20000 at the model's 0.1 um/px, expected at most"):
        ready(root, tmp_path / "large", mpp=20.0, scale=0.1)


def test_a_pair_of_two_sizes_and_a_set_without_pairs_are_told(tmp_path):
    root = plain(tmp_path / "set", pairs=1, size=(200, 200))
    write_image(root / "IHC" / "0.png", tissue(200, 240, 1))
    with pytest.raises(
        DataError, match="120 x 100 once resampled, but .* is 100 x 100; a test pair has one size"
    ):
        ready(root, tmp_path / "out")
    (root / "IHC" / "0.png").rename(root / "IHC" / "1.png")
    with pytest.raises(DataError, match="no H&E/IHC pairs to measure on"):
        ready(root, tmp_path / "other")


def test_one_field_of_a_stated_scale_among_others_is_told(tmp_path):
    root = plain(tmp_path / "set", pairs=2, size=(200, 200))
    for stain in ("HE", "IHC"):
        (root / stain / "1.png").unlink()
        write_image(root / stain / "1.tif", tissue(200, 200, 1), mpp=0.5)
    with pytest.raises(DataError, match="1.tif: 1 um/px, but .* no stated scale; a case has one scale"):
        ready(root, tmp_path / "out", mpp=None)


# Whole runs


def test_a_table_is_made_and_nothing_is_trained(asked):
    asked = replace(asked, only=("CUT", "ASP", "ILVR", "SDEdit", "EGSDE", "MIU-Diff, fast"))
    path, said = make(asked)
    folder = asked.out / "set"
    assert sorted(p.name for p in folder.iterdir()) == ["case.json", "images", "results"]
    for row, why in (("CUT", "a generator"), ("ASP", "a generator"), ("EGSDE", "a classifier")):
        assert f"set: no row {row}: it needs {why} of this dataset's own, and nothing is trained" in said
    values = json.loads(path.with_suffix(".json").read_text())["cases"]["set"]
    assert set(values) == {"ILVR", "SDEdit", "MIU-Diff, fast"}
    text = path.read_text()
    assert "4 test images" in text
    assert "It stains Ki67, as --marker says; the dataset's own is not named" in text
    assert "It has no palette for Ki67" in text
    assert "trained at" not in text  # the scales agree
    made = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    assert make(asked)[0] == path
    assert made == {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}


def test_a_plan_says_what_is_left_out(asked):
    _, said = make(asked, plan=True)
    assert any("set: nothing to train on, 4 pairs to test on" in line for line in said)
    assert any(line.split()[:3] == ["CUT", "left", "out:"] for line in said)
    assert not (asked.out / "set" / "results").exists()


def test_a_model_of_another_scale_needs_another_folder(asked, tmp_path):
    make(replace(asked, only=("SDEdit",)))
    save_model(tmp_path / "half", tiny_model(markers=("Ki67",), mpp=0.5))
    with pytest.raises(DataError, match=r"another 'scale' \(1.0, now 0.5\); give another --out"):
        make(replace(asked, only=("SDEdit",), models=(f"set={tmp_path / 'half'}",)))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"models": (), "markers": ()}, "set has no model; give --model set=FOLDER"),
        ({"slide_pattern": "(?P<slide>.)"}, "--slide-pattern: divides by slide"),
        ({"init": "model"}, "no score model is trained here"),
        (
            {"only": ("CUT", "EGSDE")},
            "no row is left of CUT, EGSDE: it needs a generator .*; it needs a class",
        ),
        ({"markers": ()}, "stains Ki67, FHL2, but the marker of set is not named; .*--marker set=Ki67"),
        ({"markers": ("set=HER2",)}, "--marker set=HER2: the model 'tiny' stains Ki67, FHL2"),
        ({"markers": ("other=Ki67",)}, "--marker other=Ki67: no dataset of this name"),
    ],
)
def test_what_means_nothing_here_is_refused(asked, changes, told):
    with pytest.raises((ConfigError, DataError), match=told) as refused:
        make(replace(asked, **changes))
    assert "\n" not in str(refused.value)


def test_the_twin_set_that_ships_is_no_test_of_the_model_that_ships(asked):
    with pytest.raises(ConfigError, match="trained on one half of the twin set"):
        make(replace(asked, data=("twin",), models=(), mpp=(), markers=()))


def test_a_marker_that_is_asked_for_stands_for_the_datasets_own(asked, tmp_path):
    root = bci(tmp_path / "bci", size=(160, 160))
    changed = replace(asked, data=(f"set={root}",), out=tmp_path / "bci-out", markers=("set=FHL2",))
    path, _ = make(replace(changed, only=("SDEdit",)))
    assert "It stains FHL2, as --marker says; the dataset's own is HER2" in path.read_text()
    settings = tmp_path / "bci-out" / "set" / "results" / "sdedit" / "seed0" / "settings.json"
    assert json.loads(settings.read_text())["settings"]["marker"] == "FHL2"


def test_a_marker_needs_a_model(tmp_path):
    with pytest.raises(DataError, match="--marker a=Ki67: .* give --model a=FOLDER, too"):
        parse_sources([f"a={tmp_path}"], [], [], ["a=Ki67"])
    (twin,) = parse_sources(["twin"], [], [], ["twin=Ki67"])
    assert twin.marker == "Ki67"
    assert isinstance(Options("table1", ("twin",), tmp_path).markers, tuple)
