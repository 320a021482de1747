"""Layouts are recognised and never guessed; the check finds every trap in one pass and tells it in a line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from miudiff.cli import main
from miudiff.data.check import CheckReport, check_dataset
from miudiff.data.layouts import name_of, open_dataset, slide_of
from miudiff.data.splits import paper_split
from miudiff.data.tiles import DataConfig, SourceConfig, find_images
from miudiff.errors import DataError
from miudiff.images import write_image


def tissue(seed: int = 0, size: tuple[int, int] = (64, 64)) -> NDArray[np.uint8]:
    """A coarse random texture in the colours of a stained section."""
    coarse = np.random.default_rng(seed).integers(100, 250, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def touch(root: Path, *names: str) -> Path:
    """Empty files: for what only looks at names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def fill(root: Path, *names: str) -> Path:
    """Files with a tissue of their own each."""
    for seed, name in enumerate(names):
        write_image(root / name, tissue(seed))
    return root


def messages(report: CheckReport, level: str) -> dict[str, str]:
    """The messages of a level by file name, or "." for the root."""
    found = [finding for finding in report.findings if finding.level == level]
    return {"." if f.path == report.root else f.path.name: f.message for f in found}


# Layouts


@pytest.mark.parametrize("below", ["", "BCI_dataset/"])
def test_bci_as_published_is_recognised(tmp_path, below):
    names = ["train/00000_train_1+.png", "train/00001_train_0.png", "test/00000_test_3+.png"]
    touch(tmp_path, *[f"{below}{stain}/{name}" for stain in ("HE", "IHC") for name in names])
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "bci"
    assert [(p.he.name, p.ihc.name, p.ihc.split, p.ihc.marker) for p in dataset.pairs()] == [
        ("00000_test_3+", "00000_test_3+", "test", "HER2"),
        ("00000_train_1+", "00000_train_1+", "train", "HER2"),
        ("00001_train_0", "00001_train_0", "train", "HER2"),
    ]
    assert {field.slide for field in dataset.fields} == {None}
    assert any("carry no slide id" in note for note in dataset.notes)
    assert [path.name for path in dataset.files("IHC", "test")] == ["00000_test_3+.png"]


def test_bci_of_the_challenge_has_the_split_above_the_stain(tmp_path):
    touch(tmp_path, *[f"{s}/{stain}/00007_{s}_0.png" for s in ("train", "test") for stain in ("HE", "IHC")])
    dataset = open_dataset(tmp_path)
    assert dataset.splits == ("train", "test")
    assert len(dataset.pairs("test")) == 1


def test_mist_of_several_markers_is_recognised(tmp_path):
    for marker, slide in (("HER2", "15M2102762"), ("Ki67", "28M2101987")):
        for folder in ("trainA", "trainB"):
            touch(tmp_path, f"{marker}/TrainValAB/{folder}/{slide}_18_18.jpg")
        for folder in ("valA", "valB"):
            touch(tmp_path, f"{marker}/TrainValAB/{folder}/{slide}_2_3.jpg")
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.markers, dataset.splits) == ("mist", ("HER2", "Ki67"), ("train", "val"))
    assert len(dataset.pairs()) == 4
    (pair,) = dataset.pairs("val", "Ki67")
    assert (pair.he.path.parent.name, pair.ihc.path.parent.name) == ("valA", "valB")
    assert (pair.he.slide, pair.ihc.slide) == ("28M2101987", "28M2101987")


@pytest.mark.parametrize("root", ["HER2", "HER2/TrainValAB"])
def test_the_marker_may_be_the_roots_own_name(tmp_path, root):
    touch(tmp_path, "HER2/TrainValAB/trainB/15M2102762_18_18.jpg")
    assert open_dataset(tmp_path / root).markers == ("HER2",)


def test_a_cut_folder_has_stains_and_splits_but_no_slides(tmp_path):
    touch(tmp_path, "trainA/case1_3.png", "trainB/other_5.png", "testA/x_1.png", "testB/x_1.png")
    dataset = open_dataset(tmp_path)
    assert (dataset.layout, dataset.splits) == ("cut", ("train", "test"))
    assert [field.slide for field in dataset.fields] == [None] * 4
    assert [pair.he.name for pair in dataset.pairs()] == ["x_1"]
    assert [field.name for field in dataset.unpaired()] == ["case1_3", "other_5"]


def test_plain_folders_pair_by_name_whatever_the_format(tmp_path):
    touch(tmp_path, "HE/a.ome.tif", "HE/b.png", "IHC/a.jpg", "IHC/c.png")
    dataset = open_dataset(tmp_path)
    assert dataset.layout == "plain"
    assert [(pair.he.path.name, pair.ihc.path.name) for pair in dataset.pairs()] == [("a.ome.tif", "a.jpg")]
    assert [field.name for field in dataset.unpaired()] == ["b", "c"]


def test_one_he_folder_may_serve_several_markers(tmp_path):
    touch(tmp_path, "HE/a.png", "IHC/Ki-67/a.png", "IHC/CD8/a.png", "ER/a.png")
    dataset = open_dataset(tmp_path)
    assert dataset.markers == ("CD8", "ER", "Ki67")
    assert [pair.ihc.marker for pair in dataset.pairs()] == ["ER", "CD8", "Ki67"]
    assert len(dataset.pairs(marker="ER")) == 1


def test_equal_names_of_two_cases_do_not_mix(tmp_path):
    touch(tmp_path, *[f"case{i}/{stain}/1.png" for i in (1, 2) for stain in ("HE", "IHC")])
    pairs = open_dataset(tmp_path).pairs()
    assert len(pairs) == 2
    assert all(pair.he.path.parent.parent == pair.ihc.path.parent.parent for pair in pairs)


def test_a_name_of_two_images_makes_no_pair(tmp_path):
    touch(tmp_path, "HE/a.png", "IHC/a.png", "IHC/a.jpg")
    assert open_dataset(tmp_path).pairs() == []


def test_a_folder_that_says_unpaired_expects_no_partners(tmp_path):
    touch(tmp_path, "HE/a.png", "IHC/a.png", "IHC_unpaired/b.png")
    dataset = open_dataset(tmp_path)
    assert len(dataset.files("IHC")) == 2
    assert dataset.unpaired() == []


@pytest.mark.parametrize("folder", ["", "tiles/", "train/"])
def test_images_of_no_said_stain_are_taken_as_ihc_and_it_is_noted(tmp_path, folder):
    touch(tmp_path, f"{folder}a.png", f"{folder}b.png")
    dataset = open_dataset(tmp_path)
    assert len(dataset.files("IHC")) == 2
    assert "is taken as IHC" in dataset.notes[0]


def test_the_other_of_two_folders_is_the_other_stain(tmp_path):
    touch(tmp_path, "HE/a.png", "proSPC/a.png")
    dataset = open_dataset(tmp_path)
    assert len(dataset.pairs()) == 1
    assert "'proSPC' does not say its stain; it is taken as IHC" in dataset.notes[0]


def test_masks_and_stray_images_are_left_out(tmp_path):
    touch(tmp_path, "HE/a.png", "IHC/a.png", "masks/a.png", "overview.png", "readme.txt", ".hidden/x.png")
    dataset = open_dataset(tmp_path)
    assert len(dataset.fields) == 2
    assert [path.name for path in dataset.left_out] == ["a.png", "overview.png", "readme.txt"]


@pytest.mark.parametrize("names", [("one/a.png", "two/a.png"), ("He.jpg", "Ki67-7.jpg")])
def test_a_stain_is_not_guessed(tmp_path, names):
    with pytest.raises(DataError, match="HE"):
        open_dataset(touch(tmp_path, *names))


def test_what_is_no_dataset_is_told(tmp_path):
    touch(tmp_path, "empty/readme.txt", "some/HE/x.png")
    with pytest.raises(DataError, match="no such folder"):
        open_dataset(tmp_path / "nothing")
    with pytest.raises(DataError, match="a file, expected the folder"):
        open_dataset(tmp_path / "empty" / "readme.txt")
    with pytest.raises(DataError, match="no images below it"):
        open_dataset(tmp_path / "empty")
    with pytest.raises(DataError, match=r"not BCI, found names as x\.png"):
        open_dataset(tmp_path / "some", "bci")


@pytest.mark.parametrize("below", ["", "deeper/"])
def test_datasets_of_two_layouts_are_named_and_not_mixed(tmp_path, below):
    bci, mist = f"{below}bci_her2", f"{below}mist_her2"
    touch(tmp_path, *(f"{bci}/{stain}/0000{i}_test_1+.png" for stain in ("HE", "IHC") for i in range(9)))
    touch(tmp_path, *(f"{mist}/{stain}/15M2102762_18_18.jpg" for stain in ("HE", "IHC")))
    told = (
        f"holds several datasets, bci in {tmp_path / bci} and mist in {tmp_path / mist}; take them one by one"
    )
    for layout in ("auto", "bci", "mist"):
        with pytest.raises(DataError) as error:
            open_dataset(tmp_path, layout)
        assert told in str(error.value)
    source = SourceConfig(files=".", split="official", part="test")
    with pytest.raises(DataError, match="holds several datasets"):
        find_images(DataConfig(root=tmp_path, sources=(source,), native=True), ())


def test_a_published_set_beside_a_plain_one_is_not_mixed_and_a_set_of_masks_is_no_dataset(tmp_path):
    names = [
        f"BCI/{stain}/{part}/00000_{part}_1+.png" for stain in ("HE", "IHC") for part in ("train", "test")
    ]
    touch(tmp_path, *names, "BCI/masks/a.png", "BCI/old/b.png")
    assert open_dataset(tmp_path).layout == "bci"
    touch(tmp_path, "own/HE/a.png", "own/IHC/a.png")
    with pytest.raises(DataError, match="bci in .*BCI and plain in .*own"):
        open_dataset(tmp_path)


def test_names_of_two_published_sets_in_one_folder_are_not_mixed(tmp_path):
    touch(
        tmp_path,
        *(f"{stain}/{name}" for stain in ("HE", "IHC") for name in ("00000_test_1+.png", "1M2_3_4.png")),
    )
    with pytest.raises(DataError, match="several datasets, bci in .*HE and mist in .*HE"):
        open_dataset(tmp_path)


def test_folders_that_link_to_each_other_end(tmp_path):
    touch(tmp_path, *(f"{i}/a.png" for i in range(12)))
    for i in range(12):
        for k in range(12):
            (tmp_path / str(i) / f"to{k}").symlink_to(tmp_path / str(k))
    with pytest.raises(DataError, match="more than 100 links lead to this folder"):
        open_dataset(tmp_path)


def test_what_is_no_file_is_named_and_left_out(tmp_path):
    fill(tmp_path, "HE/a.png", "IHC/a.png")
    os.mkfifo(tmp_path / "IHC" / "pipe.png")
    (tmp_path / "IHC" / "zero.tif").symlink_to("/dev/zero")
    (tmp_path / "IHC" / "loop.png").symlink_to("loop.png")
    report = check_dataset(tmp_path)
    special = "is a pipe, a socket or a device, left out, expected an image file"
    errors = messages(report, "error")
    assert (errors["pipe.png"], errors["zero.tif"]) == (special, special)
    assert report.pairs == 1
    assert "loop.png" in errors


def test_the_paper_split_takes_names_that_are_no_text(tmp_path):
    names = [f"IHC/{i}\udce9.png" for i in range(12)]
    assert sum(paper_split(open_dataset(touch(tmp_path, *names)), 0).counts().values()) == 12


def test_a_link_back_to_the_root_ends(tmp_path):
    touch(tmp_path, "IHC/a.png")
    (tmp_path / "IHC" / "loop").symlink_to(tmp_path)
    assert len(open_dataset(tmp_path).fields) == 1


def test_slides_come_from_mist_names_or_a_pattern_and_from_nothing_else(tmp_path):
    assert slide_of("15M2102762_18_18.jpg", "mist") == "15M2102762"
    assert slide_of("00007_test_1+.png", "bci") is None
    assert slide_of("case7_3.png", "plain") is None
    assert slide_of("case7_3.png", "plain", r"^(?P<slide>case\d+)_") == "case7"
    assert slide_of("other.png", "plain", r"^(?P<slide>case\d+)_") is None
    touch(tmp_path, "HE/case7_3.png", "IHC/case7_3.png")
    assert {f.slide for f in open_dataset(tmp_path, slide_pattern=r"(?P<slide>case\d+)").fields} == {"case7"}
    with pytest.raises(DataError, match="no group 'slide'"):
        open_dataset(tmp_path, slide_pattern=r"case\d+")
    for pattern in ("(", "][[", "a{99999999999}"):
        with pytest.raises(DataError, match="not a regular expression"):
            slide_of("a", "plain", pattern)


def test_names_lose_the_endings_of_formats_only():
    assert [name_of(name) for name in ("a.ome.tif", "b.PNG", "c.1.jpg", "d")] == ["a", "b", "c.1", "d"]


# The check


def test_a_sound_dataset_passes(tmp_path):
    fill(tmp_path, "HE/train/a_1.png", "HE/test/b_1.png", "IHC/train/a_1.png", "IHC/test/b_1.png")
    done: list[tuple[int, int]] = []
    pattern = r"^(?P<slide>\w)_"
    report = check_dataset(tmp_path, slide_pattern=pattern, progress=lambda *at: done.append(at))
    assert report.findings == ()
    assert report.exit_code == 0
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (report.pairs, report.sizes, report.modes) == (2, {"64 x 64": 4}, {"PNG, RGB, 8 bit": 4})
    assert report.slides == {"train": 1, "test": 1}
    assert report.lines()[-1] == "wrong: 0 files; warnings: 0"


def test_every_trap_is_found_in_one_pass(tmp_path):
    good = fill(tmp_path, "IHC/good.png") / "IHC"
    image = Image.fromarray(tissue(1))
    image.convert("L").save(good / "grey.png")
    image.convert("RGBA").save(good / "opaque.png")
    glass = image.convert("RGBA")
    glass.putalpha(100)
    glass.save(good / "transparent.png")
    tifffile.imwrite(good / "deep.tif", tissue(2).astype(np.uint16), photometric="rgb")
    write_image(good / "cut.jpg", tissue(3))
    (good / "cut.jpg").write_bytes((good / "cut.jpg").read_bytes()[:600])
    (good / "text.png").write_text("not an image")
    (good / "empty.png").touch()
    (good / "folder.png").mkdir()
    (good / "gone.png").symlink_to(good / "nothing.png")
    write_image(good / "one.png", tissue(4)[:1, :1])
    write_image(good / "dark.png", tissue(5) // 8)
    report = check_dataset(tmp_path)
    expected = {
        "grey.png": "grey image",
        "transparent.png": "transparent",
        "deep.tif": "16 bits",
        "cut.jpg": "damaged or cut off",
        "text.png": "is not an image",
        "empty.png": "empty",
        "folder.png": "is a folder",
        "gone.png": "cannot be read",
        "one.png": "1 x 1 pixels",
        "dark.png": "expected brightfield",
    }
    errors = messages(report, "error")
    assert errors.keys() == expected.keys()
    for name, message in expected.items():
        assert message in errors[name]
        assert str(tmp_path) not in errors[name].removeprefix(str(good))
    assert report.exit_code == 3
    assert report.lines()[-1].startswith("wrong: 10 files")
    assert report.modes["PNG, RGBA, 8 bit"] == 2
    assert report.modes["TIFF, RGB, 16 bit"] == 1


def test_empty_looking_tiles_are_noted_whatever_the_colour_of_the_glass(tmp_path):
    noise = np.random.default_rng(0).integers(-1, 2, (64, 64, 3))
    for name, glass in (("white", (250, 250, 250)), ("grey", (170, 172, 171)), ("cream", (236, 228, 205))):
        write_image(tmp_path / "IHC" / f"{name}.png", (np.array(glass) + noise).astype(np.uint8))
    write_image(tmp_path / "IHC" / "tissue.png", tissue())
    report = check_dataset(tmp_path)
    assert messages(report, "note").keys() == {"white.png", "grey.png", "cream.png"}
    assert report.exit_code == 0


def test_a_drawing_is_warned_of(tmp_path):
    squares = np.kron(np.random.default_rng(0).integers(0, 2, (8, 8)), np.ones((8, 8), int))
    drawing = np.array([[255, 255, 255], [200, 30, 30]], np.uint8)[squares]
    write_image(tmp_path / "IHC" / "a.png", drawing)
    assert "has only 2 colours" in messages(check_dataset(tmp_path), "warning")["a.png"]


def test_partners_are_checked_by_name_and_size(tmp_path):
    fill(tmp_path, "HE/a.png", "HE/b.png", "HE/c.png", "IHC/a.png", "IHC/d.png")
    write_image(tmp_path / "IHC" / "b.png", tissue(9, (64, 48)))
    report = check_dataset(tmp_path)
    errors = messages(report, "error")
    assert errors["b.png"] == "48 x 64 pixels, expected 64 x 64 as its H&E partner"
    assert "expected an IHC image of its name" in errors["c.png"]
    assert "expected an H&E image of its name" in errors["d.png"]
    assert report.unpaired == ("HE/c.png", "IHC/d.png")


def test_a_set_without_any_pair_is_unpaired_and_not_wrong(tmp_path):
    report = check_dataset(fill(tmp_path, "trainA/a.png", "trainB/b.png"))
    assert "an unpaired set" in messages(report, "note")["."]
    assert report.exit_code == 0


def test_slides_in_two_splits_are_warned_of(tmp_path):
    names = ["trainA/1M1_0_0.png", "trainB/1M1_0_0.png", "valA/1M1_0_1.png", "valB/1M1_0_1.png"]
    report = check_dataset(fill(tmp_path, *names))
    assert report.layout == "mist"
    assert report.shared_slides == ("1M1",)
    assert "slides in train and val" in messages(report, "warning")["."]
    assert report.exit_code == 0


def test_equal_files_are_told_by_where_they_are(tmp_path):
    for name in ("HE/train/a.png", "IHC/train/a.png", "IHC/train/b.png", "IHC/test/c.png"):
        write_image(tmp_path / name, tissue(1 if "b" in name or "c" in name else 0))
    report = check_dataset(tmp_path)
    assert "expected another stain" in messages(report, "error")["a.png"]
    assert "leaks into" in "".join(messages(report, "warning").values())


def test_a_name_that_contradicts_its_folder_is_warned_of(tmp_path):
    report = check_dataset(fill(tmp_path, "HE/train/00001_test_0.png", "IHC/train/00001_test_0.png"))
    assert messages(report, "warning")["00001_test_0.png"] == "its name says test, its folder train"


def test_stated_scales_are_counted_with_where_they_were_read(tmp_path):
    for name, mpp in (("a", 0.25), ("b", 0.5)):
        path = tmp_path / "IHC" / f"{name}.ome.tif"
        path.parent.mkdir(exist_ok=True)
        metadata = {"axes": "YXS", "PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm"}
        tifffile.imwrite(path, tissue(len(name)), photometric="rgb", metadata=metadata)
    write_image(tmp_path / "IHC" / "c.png", tissue(3))
    report = check_dataset(tmp_path)
    assert dict(report.scales) == {
        "0.25 um/px from OME PhysicalSizeX": 1,
        "0.5 um/px from OME PhysicalSizeX": 1,
        "not stated": 1,
    }
    assert "states 0.5 um/px" in messages(report, "note")["b.ome.tif"]


def test_jpeg_named_png_is_told_once_and_is_fine(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / "IHC").mkdir(exist_ok=True)
        Image.fromarray(tissue(ord(name))).save(tmp_path / "IHC" / f"{name}.png", "JPEG")
    report = check_dataset(tmp_path)
    assert messages(report, "note") == {"a.png": "holds JPEG, ends in .png: read by its content (and 2 more)"}
    assert report.exit_code == 0


def test_no_dataset_at_all_is_exit_code_2(tmp_path):
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "missing"):
        report = check_dataset(root)
        assert report.exit_code == 2
        assert report.lines() == [str(report.findings[0])]
        assert str(report.findings[0]).count(str(root)) == 1


def test_no_dataset_is_one_line_on_stderr_and_a_pattern_that_is_none_too(tmp_path, capsys):
    fill(tmp_path, "HE/a.png", "IHC/a.png")
    for words in ((str(tmp_path / "missing"),), (str(tmp_path), "--slide-pattern", "a{99999999999}")):
        with pytest.raises(SystemExit) as left:
            main(["data", "check", *words])
        assert left.value.code == 2
        printed = capsys.readouterr()
        assert not printed.out
        (line,) = printed.err.splitlines()
        assert line.startswith("miudiff: ")


def test_the_json_holds_the_whole_report(tmp_path):
    fill(tmp_path, "HE/a.png", "IHC/b.png", "IHC/a.png")
    content = json.loads(check_dataset(tmp_path).to_json())
    assert (content["layout"], content["exit_code"], content["pairs"]) == ("plain", 3, 1)
    assert content["images"] == [
        {"stain": "HE", "marker": None, "split": None, "count": 1},
        {"stain": "IHC", "marker": None, "split": None, "count": 2},
    ]
    assert content["findings"][0]["level"] == "error"
    assert content["findings"][0]["path"].endswith("IHC/b.png")


def test_real_folders_are_recognised_and_sound(shared):
    restricted = shared / "data" / "restricted"
    bci, mist = check_dataset(restricted / "bci_her2"), check_dataset(restricted / "mist_her2")
    assert (bci.layout, bci.pairs, bci.unpaired, bci.exit_code) == ("bci", 9, (), 0)
    assert any("holds JPEG, ends in .png" in message for message in messages(bci, "note").values())
    assert (mist.layout, mist.pairs, mist.exit_code) == ("mist", 6, 0)
    assert mist.slides == {"all": 3}
    assert mist.findings == ()


def test_real_traps_are_told_file_by_file(shared):
    report = check_dataset(shared / "data" / "formats")
    assert messages(report, "error").keys() == {"diagnostic_slide_thumb_grey.png"}
    assert messages(report, "warning").keys() == {"boxes_single_level.tiff", "broken.svs"}
    empty = {"histolab_almost-white-1.png", "histolab_no-tissue.png"}
    assert messages(report, "note").keys() == {".", *empty}
