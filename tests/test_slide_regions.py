"""Regions drawn on a slide cover the pixels whose centres they hold; a slide's tissue is found in parts as in the whole."""

from __future__ import annotations

import json
import os
import time
import uuid

import numpy as np
import pytest
from PIL import Image
from skimage.draw import polygon2mask

from miudiff.errors import SlideError
from miudiff.slides import regions as regions_module
from miudiff.slides.marked import read_marked
from miudiff.slides.overview import describe, thumbnail, tissue_mask
from miudiff.slides.reader import RegionError, open_slide, read_scaled
from miudiff.slides.regions import Feature, Polygon, Regions, read_regions, write_features
from miudiff.tissue import glass
from slide_files import pyramid, spoil, tissue, write_ome, write_svs

SQUARE = [[10, 20], [50, 20], [50, 60], [10, 60], [10, 20]]
HOLE = [[20, 30], [30, 30], [30, 40], [20, 40], [20, 30]]


def feature(geometry, **properties):
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


@pytest.fixture
def saved(tmp_path):
    def save(content):
        path = tmp_path / "regions.geojson"
        path.write_text(json.dumps(content), encoding="utf-8")
        return path

    return save


# --- masks ---


def test_a_rectangle_with_a_hole_covers_its_area_at_any_downsample():
    regions = Regions((Polygon("a", (np.array(SQUARE[:-1], float), np.array(HOLE[:-1], float))),))
    assert regions.bounds == (10, 20, 50, 60)
    assert regions.polygons[0].area == 40 * 40 - 10 * 10
    full = regions.mask(0, 0, 100, 100)
    assert full[20:60, 10:50].sum() == full.sum() == 1500
    assert not full[30:40, 20:30].any()
    half = regions.mask(0, 0, 50, 50, 2)
    np.testing.assert_array_equal(half, full[::2, ::2])
    assert regions.mask(0, 0, 20, 20, 5).sum() == (8 * 8 - 2 * 2)
    assert regions.mask(0, 0, 200, 200, 0.5).sum() == 4 * 1500


def test_a_centre_on_an_edge_belongs_to_one_of_two_neighbours():
    left = Polygon("left", (np.array([[0, 0], [10.5, 0], [10.5, 20], [0, 20]]),))
    right = Polygon("right", (np.array([[10.5, 0], [20, 0], [20, 20], [10.5, 20]]),))
    one, other = (Regions((p,)).mask(0, 0, 20, 20) for p in (left, right))
    np.testing.assert_array_equal(one ^ other, True)
    np.testing.assert_array_equal(Regions((left, right)).mask(0, 0, 20, 20), True)


@pytest.mark.parametrize("seed", range(5))
def test_any_polygon_is_filled_as_scikit_image_fills_it(seed):
    corners = np.random.default_rng(seed).uniform(-30, 230, (9, 2))  # it crosses itself
    mask = Regions((Polygon("a", (corners,)),)).mask(0, 0, 200, 180)
    np.testing.assert_array_equal(mask, polygon2mask((180, 200), corners[:, ::-1] - 0.5))


def test_a_mask_in_parts_is_the_mask():
    corners = np.random.default_rng(3).uniform(-30, 830, (9, 2))
    regions = Regions((Polygon("a", (corners,)), Polygon("b", (corners[::2] / 2,))))
    whole = regions.mask(0, 0, 200, 180, 4)
    rows = [[regions.mask(4 * x, 4 * y, 50, 45, 4) for x in range(0, 200, 50)] for y in range(0, 180, 45)]
    np.testing.assert_array_equal(np.block(rows), whole)


def test_a_circle_has_its_area():
    angle = np.linspace(0, 2 * np.pi, 20_000, endpoint=False)
    circle = np.stack([500 + 400 * np.cos(angle), 500 + 400 * np.sin(angle)], axis=1)
    mask = Regions((Polygon("a", (circle,)),)).mask(0, 0, 1000, 1000)
    assert mask.sum() == pytest.approx(np.pi * 400**2, rel=1e-4)


# --- reading ---


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: {"type": "FeatureCollection", "features": [f]},
        lambda f: f,
        lambda f: [f],
        lambda f: f["geometry"],
    ],
    ids=["collection", "feature", "list", "geometry"],
)
def test_every_shape_of_geojson_is_read(saved, wrap):
    path = saved(wrap(feature(polygon(SQUARE, HOLE), name="tumour")))
    regions = read_regions(path, 100, 100)
    assert regions.mask(0, 0, 100, 100).sum() == 1500
    assert regions.polygons[0].name in ("tumour", "region 1")


def test_names_come_from_the_name_the_class_or_the_number(saved):
    content = [
        feature(polygon(SQUARE), name="A", classification={"name": "Tumor"}),
        feature(polygon(SQUARE), classification={"name": "Tumor", "color": [200, 0, 0]}),
        feature(polygon(SQUARE)),
    ]
    regions = read_regions(saved(content), 100, 100)
    assert [p.name for p in regions.polygons] == ["A", "Tumor", "region 3"]


def test_a_multipolygon_is_several_areas(saved):
    far = [[70, 70], [80, 70], [80, 80], [70, 80], [70, 70]]
    path = saved(feature({"type": "MultiPolygon", "coordinates": [[SQUARE, HOLE], [far]]}, name="two"))
    regions = read_regions(path, 100, 100)
    assert [p.area for p in regions.polygons] == [1500, 100]
    assert regions.mask(0, 0, 100, 100).sum() == 1600


def test_what_reaches_beyond_the_slide_is_cut_off(saved):
    star = [[50, -40], [60, 40], [140, 50], [60, 60], [50, 140], [40, 60], [-40, 50], [40, 40]]
    path = saved(feature(polygon([*star, star[0]]), name="star"))
    regions = read_regions(path, 100, 90)
    assert regions.bounds == (0, 0, 100, 90)
    whole = Regions((Polygon("star", (np.array(star, float),)),))
    mask = regions.mask(-50, -50, 200, 200)
    assert not mask[:50].any()
    assert not mask[140:].any()
    np.testing.assert_array_equal(mask[50:140, 50:150], whole.mask(0, 0, 100, 90))
    assert regions.polygons[0].area == pytest.approx(mask.sum(), rel=0.02)


def test_a_hole_outside_the_slide_is_forgotten(saved):
    big = [[-50, -50], [90, -50], [90, 90], [-50, 90], [-50, -50]]
    hole = [[-40, -40], [-30, -40], [-30, -30], [-40, -30], [-40, -40]]
    regions = read_regions(saved(polygon(big, hole)), 100, 100)
    assert regions.polygons[0].area == 90 * 90


NOT_AREAS = {
    "outside": ([[200, 0], [300, 0], [300, 50], [200, 0]], "'A' .*lies outside the slide, 100 x 100"),
    "line": ([[0, 0], [10, 10], [20, 20], [0, 0]], "'A' has no area"),
    "two points": ([[0, 0], [10, 10]], "'A' has no proper outline"),
    "words": ([["a", 0], [10, 10], [0, 10]], "'A' has no proper outline"),
    "not finite": ([[float("nan"), 0], [10, 10], [0, 10], [0, 0]], "'A' has no proper outline"),
}


@pytest.mark.parametrize("kind", NOT_AREAS)
def test_an_outline_that_is_no_area_of_this_slide_is_refused(saved, kind):
    ring, words = NOT_AREAS[kind]
    with pytest.raises(SlideError, match=words) as error:
        read_regions(saved(feature(polygon(ring), name="A")), 100, 100)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"type": "FeatureCollection", "features": []}, "holds no areas"),
        ([], "holds no areas"),
        ({"regions": []}, "no GeoJSON"),
        ([1, 2], "no GeoJSON"),
        (feature({"type": "Point", "coordinates": [1, 2]}, name="A"), "'A' is a Point, expected an area"),
        (feature(None, name="A"), "'A' is nothing"),
        (feature({"type": "Polygon"}, name="A"), "'A' has no proper outline"),
        (feature({"type": "Polygon", "coordinates": []}, name="A"), "'A' has no proper outline"),
    ],
)
def test_json_without_areas_is_refused(saved, content, words):
    with pytest.raises(SlideError, match=words) as error:
        read_regions(saved(content), 100, 100)
    assert "\n" not in str(error.value)


def test_a_file_that_is_no_json_or_not_there_is_refused(tmp_path):
    with pytest.raises(SlideError, match="cannot be read"):
        read_regions(tmp_path / "none.geojson", 100, 100)
    for content in (b"name,x,y\n", b"", b"\xff\xfe\x00"):
        (tmp_path / "a.geojson").write_bytes(content)
        with pytest.raises(SlideError, match="is not JSON") as error:
            read_regions(tmp_path / "a.geojson", 100, 100)
        assert "\n" not in str(error.value)


SHAPE = '{"type": "Feature", "properties": %s, "geometry": {"type": "Polygon", "coordinates": %s}}'
RING = "[[[0,0],[40,0],[40,40]]]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 5000 + "]" * 5000, "is nested too deeply"),
        ('{"type": "FeatureCollection", "features": ' * 300 + "[]" + "}" * 300, "holds no areas"),
        (SHAPE % ("{}", "[[[0,0],[%s,0],[40,40]]]" % ("9" * 400)), "no proper outline"),
        (SHAPE % ("{}", "[[[0,0],[%s,0],[40,40]]]" % ("9" * 5000)), "is not JSON"),
        (SHAPE % ("{}", "[[[0,0],[NaN,0],[40,40]]]"), "lies on no slide"),
        (SHAPE % ("{}", "[[[0,0],[Infinity,0],[40,40]]]"), "lies on no slide"),
        (SHAPE % ("{}", "[[[0,0],[1e300,0],[40,40]]]"), "lies on no slide"),
        (SHAPE % ("{}", '["12","34","56"]'), "no proper outline"),
        (SHAPE % ("{}", '[["12","34","56"]]'), "a point that is not"),
        (SHAPE % ("{}", '[[["1","2"],["3","4"],["5","9"]]]'), "a coordinate that is no number"),
        (SHAPE % ("{}", "[[[true,0],[40,0],[40,40]]]"), "a coordinate that is no number"),
        (SHAPE % ("{}", "null"), "no proper outline"),
        (SHAPE % ("{}", "5"), "no proper outline"),
        ('{"type": "FeatureCollection", "features": 5}', "no GeoJSON"),
        ('{"type": "Feature", "properties": [], "geometry": "x"}', "is nothing, expected an area"),
        ('{"type": ["Polygon"], "coordinates": ' + RING + "}", "expected an area"),
    ],
)
def test_hostile_geojson_is_one_line(tmp_path, text, words):
    path = tmp_path / "a.geojson"
    path.write_text(text)
    with pytest.raises(SlideError, match=words) as error:
        read_regions(path, 100, 100)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        (r'{"name": "\ud800 x"}', r"\ud800 x"),
        ('{"name": 7, "classification": null}', "7"),
        ('{"name": null, "classification": {"name": ["A"]}}', "['A']"),
        ("[]", "region 1"),
        ('{"name": "%s"}' % ("A" * 10**6), "A" * 80),
    ],
)
def test_any_name_becomes_text_that_a_file_can_hold(tmp_path, properties, name):
    (tmp_path / "a.geojson").write_text(SHAPE % (properties, RING))
    (polygon,) = read_regions(tmp_path / "a.geojson", 100, 100).polygons
    assert polygon.name == name
    polygon.name.encode()


def test_what_is_no_regular_file_or_too_large_is_not_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.geojson")
    with pytest.raises(SlideError, match="no regular file"):
        read_regions(tmp_path / "pipe.geojson", 100, 100)
    with pytest.raises(SlideError, match="is a folder"):
        read_regions(tmp_path, 100, 100)
    monkeypatch.setattr(regions_module, "LARGEST", 10)
    (tmp_path / "a.geojson").write_text(SHAPE % ("{}", RING))
    with pytest.raises(SlideError, match="export the annotations alone"):
        read_regions(tmp_path / "a.geojson", 100, 100)


def test_a_ring_that_crosses_itself_is_filled_though_its_lobes_cancel(saved):
    bow = [[10, 10], [50, 50], [50, 10], [10, 50]]
    mask = read_regions(saved(polygon(bow)), 100, 100).mask(0, 0, 100, 100)
    lobes = [[[[10, 10], [30, 30], [10, 50]]], [[[30, 30], [50, 50], [50, 10]]]]
    areas = read_regions(saved({"type": "MultiPolygon", "coordinates": lobes}), 100, 100)
    np.testing.assert_array_equal(mask, areas.mask(0, 0, 100, 100))
    assert mask.sum() == pytest.approx(800, abs=40)


def test_an_edge_more_or_less_at_a_time_fills_the_same(saved, monkeypatch):
    points = np.random.default_rng(3).uniform(-20, 120, (500, 2)).tolist()
    areas = read_regions(saved(polygon(points)), 100, 100)
    whole = areas.mask(0, 0, 100, 100)
    monkeypatch.setattr(regions_module, "FILLED", 100)
    np.testing.assert_array_equal(areas.mask(0, 0, 100, 100), whole)


def test_many_regions_and_many_points_take_seconds(saved):
    began = time.monotonic()
    squares = [
        [[[x, y], [x + 3, y], [x + 3, y + 3], [x, y + 3]]] for x in range(0, 400, 4) for y in range(0, 400, 4)
    ]
    areas = read_regions(saved({"type": "MultiPolygon", "coordinates": squares}), 800, 800)
    assert areas.mask(0, 0, 400, 400).mean() == 9 / 16
    zigzag = [[x % 800, 800 * (x % 2)] for x in range(20_000)]
    read_regions(saved(polygon(zigzag)), 800, 800).mask(0, 0, 800, 800)
    assert time.monotonic() - began < 30


# --- writing ---


def test_features_come_back_as_regions_and_say_what_qupath_reads(tmp_path):
    square, hole = np.array(SQUARE, float), np.array(HOLE[:-1], float)
    features = [
        Feature("core", [[square, hole]], "Tumor", (1, 2, 3), {"DAB mean": 0.25, "none": float("nan")}),
        Feature("two", [[square], [square + 30]], kind="detection"),
    ]
    path = tmp_path / "out.geojson"
    write_features(path, features)
    regions = read_regions(path, 200, 200)
    assert [(p.name, p.area) for p in regions.polygons] == [("core", 1500), ("two", 1600), ("two", 1600)]
    content = json.loads(path.read_text())
    first, second = content["features"]
    assert first["properties"] == {
        "objectType": "annotation",
        "name": "core",
        "classification": {"name": "Tumor", "color": [1, 2, 3]},
        "measurements": {"DAB mean": 0.25},
    }
    assert (second["geometry"]["type"], second["properties"]["objectType"]) == ("MultiPolygon", "detection")
    assert first["geometry"]["coordinates"][1][0] == first["geometry"]["coordinates"][1][-1]
    assert uuid.UUID(first["id"]) != uuid.UUID(second["id"])
    before = path.read_bytes()
    write_features(path, features)
    assert path.read_bytes() == before


# --- the slide as a whole ---


@pytest.fixture(scope="module")
def field(tmp_path_factory):
    """Tissue on glass, 1.2 x 1.1 mm at 2 um/px, with islands, holes and dust where parts will meet."""
    rng = np.random.default_rng(5)
    height, width = 560, 620
    noise = rng.normal(243, 1.5, (height, width, 1))
    picture = np.clip(noise + np.array([0, -1, 1]), 0, 255).astype(np.uint8)
    stained = tissue(height, width, seed=6)
    y, x = np.mgrid[:height, :width]
    inside = (x - 330) ** 2 + (y - 250) ** 2 < 190**2
    inside &= (x - 300) ** 2 + (y - 260) ** 2 > 60**2
    for cx, cy, r in rng.uniform([0, 0, 1], [width, height, 9], (60, 3)):
        inside |= (x - cx) ** 2 + (y - cy) ** 2 < r**2
    picture[inside] = stained[inside]
    path = tmp_path_factory.mktemp("field") / "a.png"
    Image.fromarray(picture).save(path)
    return path, picture


@pytest.mark.parametrize("block", [150, 256, 10_000])
def test_tissue_found_in_blocks_is_that_of_the_whole(field, block):
    path, picture = field
    with open_slide(path) as slide:
        found = tissue_mask(slide, 2.0, block=block)
    whole = glass(picture, 2.0)
    np.testing.assert_array_equal(found.glass, np.rint(whole * 255).astype(np.uint8))
    assert (found.step_x, found.step_y) == (1, 1)
    assert 0.2 < found.tissue_share() < 0.8


def test_a_map_of_a_huge_slide_is_made_of_means(field, monkeypatch):
    path, _ = field
    with open_slide(path) as slide:
        full = tissue_mask(slide, 2.0).glass
        monkeypatch.setattr("miudiff.slides.overview.HELD", 40_000)
        small = tissue_mask(slide, 2.0, block=200)
    assert small.glass.size <= 40_000
    assert (small.step_x, small.step_y) == (3, 3)
    means = full[:558, :618].reshape(186, 3, 206, 3).mean((1, 3))
    assert np.abs(small.glass[:186, :206] - means).max() <= 0.5 + 1e-9


def test_the_map_answers_for_boxes_of_the_slide(field):
    path, _ = field
    with open_slide(path) as slide:
        found = tissue_mask(slide, 0.5)  # four pixels of the slide to one of the map
    assert found.step_x == 4
    np.testing.assert_array_equal(found.in_box(41, 80, 79, 120), found.glass[20:30, 10:20])
    assert found.in_box(5000, 0, 5010, 10).size == 0
    whole = found.resampled((0, 0, 620, 560), 310, 280)
    part = found.resampled((100, 60, 300, 160), 100, 50)
    np.testing.assert_allclose(part, whole[30:80, 50:150], atol=1e-6)
    same = found.resampled((0, 0, 620, 560), 155, 140)
    np.testing.assert_allclose(same, found.glass / np.float32(255), atol=1e-6)


def test_tissue_of_a_damaged_slide_is_refused_or_read_around(tmp_path):
    path = write_ome(tmp_path / "a.ome.tif", [tissue(500, 700)], tile=256)
    spoil(path, 4, "zeros")
    with open_slide(path) as slide:
        with pytest.raises(RegionError):
            tissue_mask(slide, 1.0)
        found = tissue_mask(slide, 1.0, lambda *region: read_marked(slide, *region)[0])
        assert found.tissue_share() == 1  # what is not seen is not called glass


def test_a_real_slide_has_the_tissue_that_is_seen_at_one_micrometre(shared):
    with open_slide(shared / "data" / "wsi" / "CMU-1-Small-Region.svs") as slide:
        found = tissue_mask(slide, 0.499)
        box = (0, 0, slide.width, slide.height)
        width, height = slide.width // 2, slide.height // 2
        fine = glass(read_scaled(slide, box, width, height), 0.998)
    coarse = found.resampled(box, width, height)
    assert ((coarse > 0.5) & (fine < 0.5)).mean() < 0.02
    assert found.tissue_share() == pytest.approx(1 - fine.mean(), abs=0.06)


def test_a_thumbnail_shows_the_whole_slide_and_never_grows(tmp_path):
    picture = tissue(600, 900)
    with open_slide(write_svs(tmp_path / "a.svs", pyramid(picture, 2))) as slide:
        small = thumbnail(slide, 300)
        assert small.shape == (200, 300, 3)
        means = picture.reshape(200, 3, 300, 3, 3).mean((1, 3))
        assert np.abs(small.mean((0, 1)) - means.mean((0, 1))).max() < 2
        assert thumbnail(slide, 5000).shape == (600, 900, 3)


def test_a_description_says_size_levels_scale_and_where_it_was_read(tmp_path, field):
    with open_slide(write_svs(tmp_path / "a.svs", pyramid(tissue(600, 900), 2))) as slide:
        lines = "\n".join(describe(slide))
        assert "900 x 600 pixels, 0.45 x 0.30 mm" in lines
        assert "2: 900 x 600 (1:1), 450 x 300 (1:2)" in lines
        assert "0.5 um/px, from openslide.mpp-x; objective 20x, which is no scale" in lines
    with open_slide(field[0]) as slide:
        lines = "\n".join(describe(slide, tissue=tissue_mask(slide, 2.0)))
        assert "not stated in the file; give it with --mpp" in lines
        assert "% of the slide" in lines
        assert "2 um/px was given" in "\n".join(describe(slide, 2.0))
