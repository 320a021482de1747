"""The official and the paper's split: counts, disjoint parts, whole slides, no trace of file order; leaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from miudiff.data.layouts import Dataset, Field, Layout, open_dataset
from miudiff.data.splits import PARTS, Split, leaks, official_split, paper_split, part_sizes
from miudiff.errors import DataError

ROOT = Path("set")


def dataset(
    patches: list[tuple[str, str | None, str | None]], layout: Layout = "mist", marker: str | None = "HER2"
) -> Dataset:
    """Pairs of (name, slide, official part), without files."""
    fields = [
        Field(ROOT / f"{marker}/{split}{side}/{name}.jpg", name, stain, split, marker, slide)
        for name, slide, split in patches
        for side, stain in (("A", "HE"), ("B", "IHC"))
    ]
    return Dataset(ROOT, layout, tuple(fields))


def mist(count: int, slides: int = 64) -> Dataset:
    """`count` pairs, some slides larger than others; the last thousand or fifth are official val."""
    on = [f"{i % slides if i % 3 else i % (slides // 4)}M21" for i in range(count)]
    names = [(f"{slide}_{i // 100}_{i % 100}", slide) for i, slide in enumerate(on)]
    train = count - min(1000, count // 5)
    return dataset([(name, slide, "train" if i < train else "val") for i, (name, slide) in enumerate(names)])


def part_of(split: Split) -> dict[Path, str | None]:
    """The part of each file."""
    return {field.path: field.split for field in split.dataset.fields}


@pytest.mark.parametrize(
    ("patches", "printed"),
    [(5640, (4513, 564, 563)), (5361, (4288, 536, 537)), (4373, (3498, 437, 438)), (10, (8, 1, 1))],
)
def test_part_sizes_are_those_that_the_paper_prints(patches, printed):
    assert part_sizes(patches) == printed
    assert sum(part_sizes(patches)) == patches


def test_by_patch_meets_the_papers_counts_and_warns():
    split = paper_split(mist(5640), seed=0, by="patch")
    assert split.counts() == {"train": 4513, "val": 564, "test": 563}
    assert len(split.dataset.pairs("train")) == 4513
    assert len(split.dataset.files("IHC", "test")) == 563
    assert "a slide may be in train and in test" in split.warnings[0]


def test_each_marker_is_divided_by_itself():
    first = mist(5640)
    second = replace(dataset([(f"7M3_{i}_0", "7M3", "train") for i in range(100)], marker="Ki67"))
    split = paper_split(replace(first, fields=first.fields + second.fields), seed=0, by="patch")
    sizes = [len(split.dataset.select("IHC", part, "Ki67")) for part in PARTS]
    assert sizes == [80, 10, 10]
    assert len(split.dataset.select("IHC", "train", "HER2")) == 4513


@pytest.mark.parametrize("by", ["slide", "patch"])
def test_every_file_is_in_one_part_and_partners_in_the_same(by):
    whole = mist(300, slides=12)
    split = paper_split(whole, seed=3, by=by)
    assert sorted(part_of(split)) == sorted(field.path for field in whole.fields)
    assert set(part_of(split).values()) == set(PARTS)
    assert sum(len(split.dataset.pairs(part)) for part in PARTS) == 300


@pytest.mark.parametrize("by", ["slide", "patch"])
def test_the_order_of_files_does_not_matter_and_the_seed_does(by):
    whole = mist(300, slides=12)
    backwards = replace(whole, fields=tuple(reversed(whole.fields)))
    assert part_of(paper_split(whole, 1, by)) == part_of(paper_split(backwards, 1, by))
    assert part_of(paper_split(whole, 1, by)) != part_of(paper_split(whole, 2, by))


def test_where_slides_are_known_they_stay_whole_and_the_sizes_are_close():
    whole = mist(5640)
    assert leaks(whole, digests={})
    split = paper_split(whole, seed=0)
    assert (split.by, split.warnings) == ("slide", ())
    assert leaks(split, digests={}) == []
    for part, wanted in zip(PARTS, part_sizes(5640), strict=True):
        assert abs(split.counts()[part] - wanted) < 0.02 * 5640


def test_a_slide_with_several_markers_stays_in_one_part():
    her2, ki67 = mist(200, slides=9), mist(200, slides=9)
    other = tuple(replace(f, marker="Ki67", path=Path("Ki67") / f.path) for f in ki67.fields)
    split = paper_split(replace(her2, fields=her2.fields + other), seed=0)
    assert leaks(split, digests={}) == []


def test_three_slides_make_three_parts_and_two_are_refused():
    three = dataset([(f"{s}M1_{i}_0", f"{s}M1", "train") for s in range(3) for i in range(10)])
    assert sorted(paper_split(three, 0).counts().values()) == [10, 10, 10]
    two = replace(three, fields=tuple(f for f in three.fields if f.slide != "2M1"))
    with pytest.raises(DataError, match="2 slides are too few for 80/10/10"):
        paper_split(two, 0)


def test_unknown_slides_fall_back_to_patches_with_a_warning_and_by_slide_is_refused():
    bci = dataset([(f"{i:05}_train_0", None, "train") for i in range(100)], "bci")
    split = paper_split(bci, seed=0)
    assert split.by == "patch"
    assert "the slides are not known (200 of 200 names state none)" in split.warnings[0]
    with pytest.raises(DataError, match="its name states no slide"):
        paper_split(bci, seed=0, by="slide")


def test_equal_names_in_two_official_parts_are_two_patches_of_a_cut_folder():
    patches = [(str(i), None, split) for i in range(20) for split in ("train", "test")]
    split = paper_split(dataset(patches, "cut", None), seed=0)
    assert sum(split.counts().values()) == 40
    assert sum(len(split.dataset.pairs(part)) for part in PARTS) == 40


def test_he_that_serves_two_markers_stays_with_both():
    he = [Field(ROOT / f"HE/{i}.png", str(i), "HE") for i in range(50)]
    ihc = [
        Field(ROOT / f"{marker}/{i}.png", str(i), "IHC", marker=marker)
        for marker in ("ER", "PR")
        for i in range(50)
    ]
    split = paper_split(Dataset(ROOT, "plain", (*he, *ihc)), seed=0)
    assert split.counts() == {"train": 40, "val": 5, "test": 5}
    assert sum(len(split.dataset.pairs(part)) for part in PARTS) == 100


def test_the_official_split_is_that_of_the_folders_and_warns_of_mist():
    split = official_split(mist(5000))
    assert split.counts() == {"train": 4000, "val": 1000, "test": 0}
    assert "train and val share slides" in split.warnings[0]
    assert leaks(split, digests={})[0].parts == ("train", "val")


def test_parts_that_somebody_made_by_slide_are_not_warned_of():
    fields = [(f"{i}M21_0_{i}", f"{i}M21", "train" if i < 4 else "val") for i in range(6)]
    assert official_split(dataset(fields)).warnings == ()
    assert official_split(dataset([*fields, ("nameless", None, "val")])).warnings
    assert official_split(dataset([*fields, ("0M21_0_9", "0M21", "val")])).warnings


def test_no_official_split_is_told():
    with pytest.raises(DataError, match="no official split"):
        official_split(dataset([("a", None, None)], "plain", None))


def test_leaks_name_the_slide_and_the_equal_file(tmp_path):
    files = {
        "trainB/1M1_0_0.jpg": b"one",
        "trainB/2M1_0_0.jpg": b"two",
        "valB/1M1_0_1.jpg": b"six",
        "valB/3M1_0_0.jpg": b"two",
        "valB/4M1_0_0.jpg": b"two",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    slide, content = leaks(official_split(open_dataset(tmp_path)))
    assert (slide.kind, slide.name, slide.parts) == ("slide", "1M1", ("train", "val"))
    assert str(slide) == "slide 1M1 is in train and val (2 files)"
    assert content.kind == "content"
    assert [path.name for path in content.paths] == ["2M1_0_0.jpg", "3M1_0_0.jpg", "4M1_0_0.jpg"]


def test_equal_files_in_one_part_are_no_leak(tmp_path):
    for name in ("trainB/1M1_0_0.jpg", "trainB/2M1_0_0.jpg", "valB/3M1_0_0.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"val" if name.startswith("val") else b"one")
    assert leaks(open_dataset(tmp_path)) == []


def test_real_mist_files_divide_by_slide(shared):
    whole = open_dataset(shared / "data" / "restricted" / "mist_her2")
    split = paper_split(whole, seed=0)
    assert split.by == "slide"
    assert sorted(split.counts().values()) == [1, 2, 3]
    assert leaks(split) == []


@pytest.mark.parametrize("pairs", [3, 4, 9])
def test_of_fewer_than_ten_patches_each_part_takes_one(tmp_path, pairs):
    for i in range(pairs):
        for stain in ("HE", "IHC"):
            (tmp_path / stain).mkdir(exist_ok=True)
            (tmp_path / stain / f"{i}.png").touch()
    split = paper_split(open_dataset(tmp_path), seed=0)
    sizes = [len(split.dataset.pairs(part)) for part in ("train", "val", "test")]
    assert sizes == [pairs - 2, 1, 1]
