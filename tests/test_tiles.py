"""Training tiles: a function of seed and index, at a stated scale, from the part of the split that was asked for."""

import numpy as np
import pytest
import torch

from miudiff.config import parse
from miudiff.data.tiles import DataConfig, Tiles, dihedral, find_images
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
