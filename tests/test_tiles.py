"""Training tiles: a function of seed and index, at a stated scale, from the part of the split that was asked for."""

import numpy as np
import pytest
import torch

from miudiff.config import parse
from miudiff.data.memory import Memory, Scaled
from miudiff.data.pairs import PairedTiles, UnpairedTiles, find_pairs
from miudiff.data.tiles import DataConfig, Tiles, _resampled, collate, dihedral, find_images
from miudiff.errors import DataError
from miudiff.images import write_image


def field(folder, name, size=64, level=200):
    image = np.full((size, size, 3), level, np.uint8)
    image[: size // 2, : size // 4] = (level, 30, 20)
    write_image(folder / name, image)


def config(folder, **changes):
    source = {"files": "ihc", "mpp": 1.0} | changes.pop("source", {})
    return parse(DataConfig, {"root": folder, "size": 16, "mpp": 1.0, "sources": [source]} | changes, "test")


def test_a_tile_is_a_function_of_seed_and_index(tmp_path):
    field(tmp_path / "ihc", "a.png")
    settings = config(tmp_path, scale_jitter=0.2)
    first, second = (Tiles(find_images(settings, ()), settings, 3) for _ in range(2))
    for index in (5, 0, 5):
        assert torch.equal(first[index]["ihc"], second[index]["ihc"])
    assert first[5]["ihc"].shape == (3, 16, 16)
    other = Tiles(find_images(settings, ()), settings, 4)
    assert any(not torch.equal(first[i]["ihc"], other[i]["ihc"]) for i in range(4))


def test_tiles_have_the_runs_scale(tmp_path):
    field(tmp_path / "ihc", "a.png", size=64)  # a quarter of its width is red: 16 pixels
    settings = config(tmp_path, size=32, mpp=2.0, dihedral=False)
    tile = Tiles(find_images(settings, ()), settings, 0)[0]["ihc"]
    assert tile.shape == (3, 32, 32)
    assert int((tile[1] < 0).sum()) == 8 * 16  # half of each side


def test_fit_shrinks_whole_images(tmp_path):
    field(tmp_path / "ihc", "a.png", size=64)
    settings = config(tmp_path, size=16, mpp=None, fit=True, dihedral=False, source={"mpp": None})
    tiles = Tiles(find_images(settings, ()), settings, 0)
    assert torch.equal(tiles[0]["ihc"], tiles[1]["ihc"])
    assert int((tiles[0]["ihc"][1] < 0).sum()) == 4 * 8


def test_whole_images_that_shrink_to_several_scales_are_refused(tmp_path):
    field(tmp_path / "a", "a.png", size=64)
    field(tmp_path / "b", "b.png", size=32)

    def found(mpps, **changes):
        sources = [{"files": name, "mpp": mpp} for name, mpp in zip("ab", mpps, strict=True)]
        values = {"root": tmp_path, "size": 16, "fit": True, "sources": sources} | changes
        return len(find_images(parse(DataConfig, values, "test"), ()))

    assert (
        found((0.5, 1.0))
        == found((0.5, 1.0), mpp=2.0)
        == found((0.5, None))
        == found((None, None), mpp=3)
        == 2
    )
    with pytest.raises(
        DataError, match=r"data.fit: .*a.png shrunk to 16 pixels has 2 um/px, .*b.png 1; .* one scale"
    ):
        found((0.5, 0.5))
    with pytest.raises(DataError, match=r"data.mpp: found 0.5, but .*b.png shrunk to 16 pixels has 2 um/px"):
        found((0.5, 1.0), mpp=0.5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"source": {"mpp": None}}, "a.png: states no micrometres per pixel"),
        ({"mpp": None}, "data.mpp: missing"),
        ({"source": {"files": "nothing*"}}, "finds no images"),
        ({"source": {"files": "twin:middle"}}, "no such region"),
        ({"source": {"files": "["}}, "finds no images"),
        ({"source": {"files": ""}}, "no images in it"),
        ({"source": {"files": "ihc/**.png"}}, "sources 'ihc/..\\.png': cannot be used as a pattern"),
        ({"source": {"files": "**/" * 500 + "*.png"}}, "cannot be used as a pattern"),
        ({"source": {"files": "a" * 300}}, "cannot be used as a pattern"),
        ({"source": {"files": "a\0b"}}, "cannot be used as a pattern|finds no images"),
        ({"source": {"files": "ihc", "exclude": ("",)}}, "exclude '': cannot be used as a pattern"),
        ({"source": {"files": "/ihc/*.png"}}, "an absolute path"),
    ],
)
def test_what_is_missing_is_told(tmp_path, changes, told):
    field(tmp_path / "ihc", "a.png")
    with pytest.raises(DataError, match=told):
        find_images(config(tmp_path, **changes), ())


def test_an_image_smaller_than_a_tile_is_refused(tmp_path):
    field(tmp_path / "ihc", "a.png", size=20)
    settings = config(tmp_path, mpp=2.0)
    with pytest.raises(DataError, match="10 x 10 pixels at 2 um/px, expected at least 16"):
        Tiles(find_images(settings, ()), settings, 0)[0]


def test_a_marker_that_the_model_does_not_have_is_refused(tmp_path):
    field(tmp_path / "ihc", "a.png")
    with pytest.raises(DataError, match="marker None, expected one of Ki67"):
        find_images(config(tmp_path), ("Ki67",))


def test_a_part_of_a_published_split_is_taken_and_its_warning_told(tmp_path):
    for part in ("train", "val"):
        for stain in "AB":
            for name in ("15M2102762_1_1.png", "28M2101987_1_1.png"):
                field(tmp_path / "HER2" / f"{part}{stain}", name.replace("_1.", f"_{len(part)}."))
    told = []
    settings = config(tmp_path, source={"files": "HER2", "split": "official", "part": "train"})
    found = find_images(settings, (), told.append)
    assert {image.path.parent.name for image in found} == {"trainB"}
    assert len(found) == 2
    assert any("share slides" in line for line in told)


def test_weights_decide_how_often_a_source_is_drawn(tmp_path):
    field(tmp_path / "a", "a.png")
    field(tmp_path / "b", "b.png")
    sources = [{"files": "a", "mpp": 1.0, "weight": 3.0}, {"files": "b", "mpp": 1.0}]
    settings = parse(DataConfig, {"root": tmp_path, "size": 16, "mpp": 1.0, "sources": sources}, "test")
    tiles = Tiles(find_images(settings, ()), settings, 0)
    share = np.mean([tiles[i]["name"] == "a.png" for i in range(400)])
    assert share == pytest.approx(0.75, abs=0.06)


def test_the_eight_turns_are_all_different():
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert len({dihedral(image, i).tobytes() for i in range(8)}) == 8


def two_stains(folder, names=("a.png", "b.png"), size=64):
    """H&E fields and IHC fields of the same places: the same ramp, in another channel."""
    ramp = np.add.outer(2 * np.arange(size), np.arange(size)).astype(np.uint8)
    for i, name in enumerate(names):
        for stain, channel in (("he", 0), ("ihc", 2)):
            image = np.full((size, size, 3), 10, np.uint8)
            image[..., channel] = ramp + i
            write_image(folder / stain / name, image)


def both(folder, he=None, **changes):
    if changes.get("fit"):
        changes |= {"mpp": None}
    return config(folder, **changes), config(folder, source={"files": "he"} | (he or {}))


@pytest.mark.parametrize("fit", [False, True])
def test_a_pair_is_one_crop_one_scale_and_one_turn(tmp_path, fit):
    two_stains(tmp_path)
    data, he = both(tmp_path, scale_jitter=0.2, fit=fit)
    tiles = PairedTiles(find_pairs(data, he, ()), data, 3)
    for index in range(12):
        item = tiles[index]
        assert item["he"].shape == item["ihc"].shape == (3, 16, 16)
        assert torch.equal(item["he"][0], item["ihc"][2])
    assert {tiles[i]["name"] for i in range(12)} == {"a.png", "b.png"}
    assert torch.equal(tiles[5]["he"], PairedTiles(find_pairs(data, he, ()), data, 3)[5]["he"])


def test_images_beyond_the_memory_are_read_again_and_are_the_same(tmp_path):
    two_stains(tmp_path)
    settings = config(tmp_path)
    first, second = ((image.path, image.mpp, settings) for image in find_images(settings, ()))
    memory = Memory(_resampled, limit=64 * 64 * 3)
    kept, read = memory.get(first), memory.get(second)
    assert memory.get(first) is kept
    assert memory.get(second) is not read
    assert np.array_equal(memory.get(second).pixels, read.pixels)


def test_images_are_read_ahead_until_the_memory_is_full_and_a_damaged_one_waits_for_its_turn():
    asked = []

    def read(key):
        asked.append(key)
        if key == 1:
            raise DataError("damaged")
        return Scaled(np.zeros((10, 10, 3), np.uint8), (10, 10))

    memory = Memory(read, limit=3 * 300)
    memory.fill(range(50), threads=2)
    assert memory.used == 900
    assert len(asked) <= 8  # a few were under way
    asked.clear()
    for key in (0, 2, 3):
        memory.get(key)
    assert not asked
    with pytest.raises(DataError, match="damaged"):
        memory.get(1)


def test_unpaired_tiles_are_drawn_apart(tmp_path):
    two_stains(tmp_path)
    data, he = both(tmp_path)
    ihc = Tiles(find_images(data, ()), data, 3)
    tiles = UnpairedTiles(Tiles(find_images(he, (), stain="HE"), he, 3, "he"), ihc)
    assert all(torch.equal(tiles[i]["ihc"], ihc[i]["ihc"]) for i in range(4))
    assert not any(torch.equal(tiles[i]["he"][0], tiles[i]["ihc"][2]) for i in range(4))
    batch, names = collate([tiles[0], tiles[1]])
    assert batch["he"].shape == batch["ihc"].shape == (2, 3, 16, 16)
    assert all(", " in name for name in names)


def test_the_twin_set_and_published_splits_pair_themselves(tmp_path):
    data = parse(
        DataConfig, {"size": 16, "mpp": 1.0, "sources": [{"files": "twin:train", "mpp": 0.5}]}, "test"
    )
    assert [pair.he.path.parent.name for pair in find_pairs(data, None, ())] == ["HE"]
    for part in ("train", "val"):
        for stain in "AB":
            for place in range(2):
                field(tmp_path / "HER2" / f"{part}{stain}", f"15M2102762_{place}_{len(part)}.png")
    field(tmp_path / "HER2" / "trainB", "15M2102762_9_9.png")
    data = config(tmp_path, source={"files": "HER2", "split": "official", "part": "train"})
    told = []
    pairs = find_pairs(data, None, (), told.append)
    assert [(p.he.path.parent.name, p.ihc.path.parent.name) for p in pairs] == [("trainA", "trainB")] * 2
    assert all(p.he.path.name == p.ihc.path.name for p in pairs)
    assert any("1 IHC images have no partner" in line for line in told)
    assert {i.path.parent.name for i in find_images(data, (), stain="HE")} == {"trainA"}


@pytest.mark.parametrize(
    ("he", "changes", "told"),
    [
        ({"mpp": None}, {}, r"a\.png: states no micrometres per pixel; give he\.sources 'mpp'"),
        ({"mpp": 0.5}, {}, "0.5 um/px, but its partner .* has 1; expected one scale"),
        ({"exclude": ["b*"]}, {}, r"b\.png: no partner, expected an H&E image of its name"),
        ({"files": "*e/*"}, {}, "has the same name"),
    ],
)
def test_what_does_not_pair_is_told(tmp_path, he, changes, told):
    two_stains(tmp_path)
    field(tmp_path / "we", "a.png")
    data, sources = both(tmp_path, he, **changes)
    with pytest.raises(DataError, match=told):
        find_pairs(data, sources, ())


def test_a_scale_of_one_side_alone_is_told_even_where_whole_images_are_fitted(tmp_path):
    two_stains(tmp_path)
    data = config(tmp_path, fit=True, mpp=None)
    he = config(tmp_path, fit=True, mpp=None, source={"files": "he", "mpp": None})
    with pytest.raises(DataError, match=r"its partner a.png has 1; give he\.sources 'mpp'"):
        find_pairs(data, he, ())


@pytest.mark.parametrize("fit", [False, True])
def test_partners_of_two_sizes_are_refused(tmp_path, fit):
    two_stains(tmp_path, ("a.png",))
    field(tmp_path / "he", "a.png", size=80)
    data, he = both(tmp_path, fit=fit)
    with pytest.raises(DataError, match="80 x 80 and 64 x 64 pixels, expected one size"):
        PairedTiles(find_pairs(data, he, ()), data, 0)[0]
