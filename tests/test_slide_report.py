"""The report beside a virtual slide: numbers of slides that are known, files that others open, mistakes in one line."""

import base64
import csv
import html
import io
import json
import re
import tracemalloc

import numpy as np
import pytest
import tifffile
from PIL import Image

from miudiff.cells import WEAK, cell_mask, find_bars
from miudiff.errors import SlideError
from miudiff.images import write_image
from miudiff.slide_report import measure as measuring
from miudiff.slide_report.area import Area
from miudiff.slide_report.make import make_report
from miudiff.slide_report.measure import measure
from miudiff.slide_report.parts import Drawn, Squares
from miudiff.slide_report.plane import COARSEST, Plane, plane_of
from miudiff.slides.overview import TissueMap
from miudiff.slides.reader import open_slide
from miudiff.slides.regions import Feature, Polygon, Regions, read_regions, write_features
from miudiff.slides.slide import Level, Scale, Slide
from miudiff.slides.stained import stained_box
from miudiff.stains import combine_stains, dab_map, rgb_from_hdab

GROUND = (238, 238, 240)
BROWN = tuple(int(c) for c in combine_stains(np.array([0.1, 0.9]), rgb_from_hdab))
BLUE = tuple(int(c) for c in combine_stains(np.array([0.6, 0.0]), rgb_from_hdab))


def tissue(height, width):
    """An H&E that is tissue everywhere."""
    y, x = np.mgrid[:height, :width] / 4
    wave = np.sin(x)[..., None] * np.cos(y)[..., None]
    return np.round(np.array([190, 120, 180]) + np.array([40, 60, 30]) * wave).astype(np.uint8)


def flat(height, width, colour=GROUND):
    return np.full((height, width, 3), colour, np.uint8)


def case(folder, virtual, he=None, mpp=0.5, samples=(), more=None, **record):
    """A result with its H&E, record and samples on disk; the path of the result."""
    folder.mkdir(exist_ok=True, parents=True)
    height, width = virtual.shape[:2]
    write_image(folder / "he.tif", tissue(height, width) if he is None else he, mpp)
    result = folder / "case.ome.tif"
    write_image(result, virtual, mpp)
    for seed, sample in enumerate(samples, 1):
        (folder / "case.samples").mkdir(exist_ok=True)
        write_image(folder / "case.samples" / f"seed{seed}.ome.tif", sample, mpp)
    content = {
        "miudiff": "0.1.0",
        "source": str(folder / "he.tif"),
        "mpp": mpp,
        "mpp_source": "a test",
        "width": width,
        "height": height,
        "method": "miu-diff",
        "model": {"name": "toy", "identity": "0123abcd", "marker": "Ki67", "mpp": 0.5},
        "seed": 7,
        "regions": None,
        "unreadable": [],
    }
    (folder / "case.json").write_text(json.dumps(content | record | (more or {})))
    return result


def report(result, **options):
    """What was said, the numbers, and the page of a report."""
    said = []
    page = make_report(result, said.append, **options)
    stem = str(result).removesuffix(".ome.tif")
    with open(f"{stem}.measures.json", encoding="utf-8") as file:
        return said, json.load(file), page.read_text(encoding="utf-8")


def area(plane, drawn=None, lost=None):
    """All tissue, and what is given."""
    nowhere = TissueMap(np.zeros((1, 1), np.uint8), plane.width * plane.step, plane.height * plane.step)
    return Area(plane, nowhere, drawn, lost)


def square(name, left, top, right, bottom):
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return Polygon(name, (np.array(corners, np.float64),))


def discs(height, width, centres, colours, radius=4.0):
    image = flat(height, width)
    y, x = np.mgrid[:height, :width] + 0.5
    for (cx, cy), colour in zip(centres, colours, strict=True):
        image[(x - cx) ** 2 + (y - cy) ** 2 < radius**2] = colour
    return image


def grid(width, height, step=32):
    """Centres, right on the borders of blocks of 64 and beside them."""
    return [(x, y) for y in range(step, height, step) for x in range(step, width, step)]


class Drawing(Slide):
    """A slide without a file: a function of the place, and how much of it was ever read at once."""

    def __init__(self, path, width, height, draw):
        path.write_bytes(b"a slide")
        super().__init__(path, "drawing", [Level(width, height, 1.0)], Scale(1.0, "a test"))
        self._draw, self.largest = draw, 0

    def _read(self, x, y, width, height, level):
        self.largest = max(self.largest, width * height)
        return self._draw(x, y, width, height)

    def close(self):
        pass


@pytest.mark.parametrize("mpp", [0.1, 0.25, 0.2526, 0.35, 0.46, 0.499, 0.55, 1.0, 1.1])
def test_a_slide_is_measured_at_about_a_micrometre_in_whole_pixels_of_its_own(mpp):
    plane = plane_of(5000, 3000, mpp)
    assert plane.mpp == pytest.approx(plane.step * mpp)
    assert COARSEST / 2 < plane.mpp <= COARSEST + 1e-9
    assert plane.step & (plane.step - 1) == 0


def test_maps_stay_small_however_large_the_slide_is():
    for side in (500, 20_000, 200_000, 1_000_000):
        rows, columns = plane_of(side, side, 0.25).grid
        assert rows * columns <= 210_000


def test_every_pixel_of_the_plane_is_in_one_block():
    plane = plane_of(5003, 2741, 0.5)
    seen = np.zeros((plane.height, plane.width), int)
    for block in plane.blocks(256):
        seen[block.y : block.y + block.height, block.x : block.x + block.width] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("size", [64, 128, 1024])
def test_each_disc_counts_once_where_blocks_meet(tmp_path, size):
    centres = grid(400, 304)
    brown = [(x // 32 + y // 32) % 3 == 0 for x, y in centres]
    image = discs(304, 400, centres, [BROWN if each else BLUE for each in brown])
    slide = Drawing(tmp_path / "a", 400, 304, lambda x, y, w, h: image[y : y + h, x : x + w])
    plane = Plane(400, 304, 1, 1.0, 16)
    found = measure([slide], area(plane), Squares(plane), print, size)
    np.testing.assert_allclose(sorted(zip(found.cells.x, found.cells.y)), sorted(centres))
    of_brown = {(x, y) for (x, y), each in zip(centres, brown) if each}
    positive = found.cells.dab > WEAK
    assert {
        (round(x), round(y)) for x, y in zip(found.cells.x[positive], found.cells.y[positive])
    } == of_brown
    assert found.sums.cells[0, 0] == len(centres)
    assert found.sums.above[0, 0, 0] == len(of_brown)
    assert found.sums.cells[1:, 0].sum() == len(centres)  # the squares share nothing


def test_blocks_change_no_number(tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.uniform(8, 292, (150, 2)).tolist()
    image = discs(300, 300, centres, [BROWN if rng.random() < 0.4 else BLUE for _ in centres])
    slide = Drawing(tmp_path / "a", 300, 300, lambda x, y, w, h: image[y : y + h, x : x + w])
    plane = Plane(300, 300, 1, 1.0, 16)
    whole, parts = (measure([slide], area(plane), Squares(plane), print, size) for size in (1024, 64))
    for name in ("pixels", "positive", "cells", "above"):
        np.testing.assert_array_equal(getattr(whole.sums, name), getattr(parts.sums, name))
    np.testing.assert_allclose(whole.sums.dab, parts.sums.dab)
    np.testing.assert_allclose(whole.maps.dab, parts.maps.dab)
    np.testing.assert_array_equal(whole.histogram, parts.histogram)


def test_outlines_hold_the_area_of_their_cells(tmp_path):
    image = discs(200, 200, [(64, 64), (120, 40)], [BROWN, BLUE], 8)
    slide = Drawing(tmp_path / "a", 200, 200, lambda x, y, w, h: image[y : y + h, x : x + w])
    plane = Plane(200, 200, 1, 1.0, 16)
    cells = measure([slide], area(plane), Squares(plane), print, 64).cells
    for ring, x, y, pixels in zip(cells.outlines, cells.x, cells.y, cells.pixels, strict=True):
        assert (ring[0] == ring[-1]).all()
        polygon = Polygon("cell", (ring[:-1].astype(np.float64),))
        assert polygon.area == pytest.approx(pixels, rel=0.1)
        assert (ring[:-1].min(0) + ring[:-1].max(0)) / 2 == pytest.approx([x, y], abs=0.5)


def test_bars_of_one_image_are_its_own():
    rng = np.random.default_rng(1)
    image = discs(160, 160, rng.uniform(0, 160, (40, 2)), [BROWN, BLUE] * 20)
    bars = find_bars([(image, np.ones(image.shape[:2], bool))], 8)
    assert (cell_mask(image, 8, bars) == cell_mask(image, 8)).all()
    with pytest.raises(ValueError):
        find_bars([(image, np.zeros(image.shape[:2], bool))], 8)


def test_memory_does_not_grow_with_the_slide(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "LOOK", 128)  # so that both slides have as many squares to look at
    colours = np.array([GROUND, BLUE, BROWN], np.uint8)

    def draw(x, y, width, height):
        rows, columns = (y + np.arange(height)) // 8, (x + np.arange(width)) // 8
        spots = (rows[:, None] * 7 + columns[None] * 3) % 499
        return colours[np.where(spots == 0, 1, np.where(spots == 5, 2, 0))]

    peaks = []
    for side in (512, 1280):
        plane = Plane(side, side, 1, 1.0, 128)
        slide = Drawing(tmp_path / str(side), side, side, draw)
        tracemalloc.start()
        measure([slide], area(plane), Squares(plane), print, 128)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert slide.largest < 300**2
    assert peaks[1] < 1.5 * peaks[0], peaks


def test_numbers_of_a_half_stained_slide_are_the_closed_form(tmp_path):
    virtual = flat(512, 1024)
    virtual[:, 512:] = BROWN
    _, found, _ = report(case(tmp_path, virtual))
    light = np.array(found["measured_at"]["light"])
    assert light == pytest.approx(GROUND)
    values = found["all"]
    assert values["tissue_mm2"] == pytest.approx(0.512 * 0.256)
    assert values["positive_area_share"] == pytest.approx(0.5)
    dab = dab_map(virtual[:1], light).mean()
    assert values["mean_dab_od"] == pytest.approx(dab, rel=1e-6)
    with open(tmp_path / "case.measures.csv", encoding="utf-8", newline="") as file:
        rows = {row["region"]: row for row in csv.DictReader(file)}
    assert float(rows["A1"]["positive_area_share"]) == 0
    assert float(rows["C1"]["positive_area_share"]) == pytest.approx(0.024 / 0.125, abs=0.03) or "C1" in rows
    squares = [row for name, row in rows.items() if name != "All tissue"]
    assert sum(float(row["tissue_mm2"]) for row in squares) == pytest.approx(values["tissue_mm2"], rel=1e-5)


def test_glass_unreadable_places_and_what_is_outside_of_the_regions_do_not_count(tmp_path):
    he, virtual = tissue(1024, 1024), flat(1024, 1024)
    he[:, :400] = 244
    virtual[:, :350] = BROWN  # on glass
    virtual[600:700, 600:700] = BROWN  # unreadable
    virtual[:, 900:] = BROWN  # outside
    roi = {"type": "Polygon", "coordinates": [[[0, 0], [900, 0], [900, 1024], [0, 1024]]]}
    (tmp_path / "roi.geojson").write_text(json.dumps(roi))
    places = [[600, 600, 100, 100]]
    result = case(tmp_path, virtual, he, unreadable=places, regions="roi.geojson")
    _, found, page = report(result)
    assert found["all"]["positive_area_share"] == 0
    # glass begins where it is flat, some micrometres beside the tissue
    expected = (500 * 1024 - 100 * 100) * 0.25e-6
    assert found["all"]["tissue_mm2"] == pytest.approx(expected, rel=0.08)
    assert [row["region"] for row in found["regions"]] == ["region 1"]
    assert "1 place of the H&amp;E that could not be read" in page
    _, everywhere, _ = report(case(tmp_path, virtual, he))
    assert everywhere["all"]["positive_area_share"] > 0.1


def test_unreadable_places_are_found_in_the_file_beside_too(tmp_path):
    virtual = flat(512, 512)
    virtual[:256] = BROWN
    result = case(tmp_path, virtual)
    ring = [[0, 0], [512, 0], [512, 256], [0, 256]]
    lost = {"type": "Polygon", "coordinates": [ring]}
    (tmp_path / "case.unreadable.geojson").write_text(json.dumps(lost))
    _, found, _ = report(result)
    assert found["all"]["positive_area_share"] == 0
    assert found["all"]["tissue_mm2"] == pytest.approx(0.256 * 0.128)


def test_what_lies_in_two_regions_counts_for_both(tmp_path):
    image = discs(256, 256, [(64, 64), (128, 128), (200, 200)], [BROWN, BLUE, BROWN])
    slide = Drawing(tmp_path / "a", 256, 256, lambda x, y, w, h: image[y : y + h, x : x + w])
    plane = Plane(256, 256, 1, 1.0, 16)
    drawn = Regions((square("tumour", 0, 0, 160, 160), square("tumour", 96, 96, 256, 256)))
    parts = Drawn(drawn, plane)
    found = measure([slide], area(plane, drawn), parts, print, 64)
    assert parts.names == ["tumour", "tumour (2)"]
    assert found.sums.cells[:, 0].tolist() == [3, 2, 2]
    assert found.sums.above[:, 0, 0].tolist() == [2, 1, 1]
    assert found.sums.pixels.tolist() == [2 * 160**2 - 64**2, 160**2, 160**2]


def test_no_two_regions_have_one_name():
    names = ("tumour", "tumour", "tumour (2)", "tumour")
    drawn = Regions(tuple(square(name, 0, 0, 9, 9) for name in names))
    assert Drawn(drawn, Plane(9, 9, 1, 1.0, 1)).names == [
        "tumour",
        "tumour (2)",
        "tumour (2) (2)",
        "tumour (3)",
    ]


def test_identical_samples_have_no_spread_and_agree_everywhere(tmp_path):
    image = discs(512, 512, grid(512, 512, 64), [BROWN, BLUE] * 24 + [BROWN], 8)
    _, found, page = report(case(tmp_path, image, samples=[image, image]))
    assert found["uncertainty"].pop("agreement_share") == 1
    assert list(found["uncertainty"].values()) == pytest.approx([0, 0, 0], abs=1e-12)
    assert found["all"]["samples"]["positive_cell_share"]["sd"] == 0
    assert found["all"]["cells"] == 49
    assert "3 translations" in page


def test_the_spread_of_known_samples_is_the_closed_form(tmp_path):
    colours = [combine_stains(np.array([0.1, d]), rgb_from_hdab) for d in (0.1, 0.3, 0.7)]
    several = [flat(512, 512, tuple(int(c) for c in colour)) for colour in colours]
    several[0][:, :32] = GROUND  # gives the light
    result = case(tmp_path, several[0], samples=several[1:])
    _, found, _ = report(result)
    light = np.array(found["measured_at"]["light"])
    densities = [dab_map(each[:1, -1:], light).item() for each in several]
    assert densities[0] < WEAK < densities[1]
    expected = np.std(densities, ddof=1)
    assert found["uncertainty"]["median_sd_dab_od"] == pytest.approx(expected)
    assert found["all"]["agreement_share"] == 0
    assert found["all"]["samples"]["mean_dab_od"]["values"][1:] == pytest.approx(densities[1:])
    with tifffile.TiffFile(tmp_path / "case.uncertainty.ome.tif") as tiff:
        spread = tiff.series[1].asarray()
    assert spread[:, 2:] == pytest.approx(expected, rel=1e-5)


def test_the_uncertainty_opens_as_a_slide_and_covers_the_field(tmp_path):
    image = discs(700, 1100, grid(1100, 700, 50), [BROWN, BLUE] * 136 + [BROWN], 8)
    report(case(tmp_path, image, samples=[image[::-1] // 2]))
    with (
        open_slide(tmp_path / "case.uncertainty.ome.tif") as slide,
        open_slide(tmp_path / "case.ome.tif") as of,
    ):
        assert slide.mpp * slide.width == pytest.approx(of.mpp * of.width, rel=0.01)
        assert slide.mpp * slide.height == pytest.approx(of.mpp * of.height, rel=0.01)
    with tifffile.TiffFile(tmp_path / "case.uncertainty.ome.tif") as tiff:
        numbers = tiff.series[1].asarray()
        assert numbers.dtype == np.float32
        assert np.nanmax(numbers) > 0.01


def test_without_a_scale_there_are_no_areas_and_no_cells_and_the_page_says_so(tmp_path):
    virtual = flat(512, 512)
    virtual[:, 256:] = BROWN
    _, found, page = report(case(tmp_path, virtual, mpp=None))
    assert found["all"]["tissue_mm2"] is None
    assert found["all"]["cells"] is None
    assert found["all"]["positive_area_share"] == pytest.approx(0.5)
    assert not (tmp_path / "case.cells.geojson").exists()
    assert "nobody says how many micrometres" in page
    assert "Glass was found as if the scale were that of the weights." in page
    assert "mm²</dd>" not in page
    (tmp_path / "other").mkdir()
    _, _, page = report(case(tmp_path / "other", virtual, mpp=None, model={"name": "toy", "mpp": None}))
    assert "Glass was found as if the scale were 0.5 µm per pixel." in page


def test_a_coarse_slide_has_areas_and_no_cells(tmp_path):
    virtual = flat(256, 256)
    _, found, page = report(case(tmp_path, virtual, mpp=4.0))
    assert found["all"]["tissue_mm2"] == pytest.approx(1.024**2)
    assert found["all"]["cells"] is None
    assert "too coarse" in page


def test_a_slide_of_glass_has_a_report(tmp_path):
    glass = flat(512, 512, (244, 244, 244))
    _, found, page = report(case(tmp_path, glass, glass, samples=[glass]))
    assert found["all"]["tissue_mm2"] == 0
    assert found["all"]["positive_cell_share"] is None
    assert found["regions"] == []
    assert "No tissue was found" in page


def test_a_source_that_is_gone_is_said_and_tissue_found_on_the_stain(tmp_path):
    image = discs(512, 512, grid(512, 512, 40), [BROWN] * 144, 8)
    result = case(tmp_path, image)
    (tmp_path / "he.tif").unlink()
    said, found, page = report(result)
    assert "he.tif: the H&E is not there" in said[0]
    assert found["measured_at"]["tissue_from"] == "virtual stain"
    assert "<h3>H&amp;E</h3>" not in page


def test_a_case_that_moved_finds_its_source_beside_it(tmp_path):
    case(tmp_path / "old", flat(256, 256))
    (tmp_path / "old").rename(tmp_path / "new")
    said, found, _ = report(tmp_path / "new" / "case.ome.tif")
    assert found["missing"] == []
    assert len(said) == 5


def test_a_sample_of_the_record_that_is_gone_is_said(tmp_path):
    image = flat(256, 256)
    said, found, _ = report(
        case(tmp_path, image, samples=[image], more={"samples": ["seed1.ome.tif", "seed2.ome.tif"]})
    )
    assert "seed2.ome.tif" in said[0]
    assert found["samples"] == ["case.ome.tif", "seed1.ome.tif"]


def test_the_page_needs_nothing_else_and_shows_names_as_text(tmp_path):
    image = discs(256, 256, [(64, 64)], [BROWN], 8)
    result = case(tmp_path, image, method="<script>alert(1)</script>", seams={"ratio": 1.25, "lines": 3})
    _, _, page = report(result)
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "Virtual stain: for research use only, not for diagnosis." in page
    assert page.count("No intensity is calibrated") == 2
    assert "<dt>ratio</dt><dd>1.25</dd>" in page


def test_regions_and_cells_open_as_geojson(tmp_path):
    centres = grid(512, 512, 64)
    image = discs(512, 512, centres, [BROWN if x < 256 else BLUE for x, _ in centres], 8)
    report(case(tmp_path, image))
    squares = read_regions(tmp_path / "case.regions.geojson", 512, 512)
    assert sum(polygon.area for polygon in squares.polygons) == pytest.approx(512**2)
    cells = json.loads((tmp_path / "case.cells.geojson").read_text())["features"]
    assert len({cell["id"] for cell in cells}) == len(cells) == len(centres)
    classes = [cell["properties"]["classification"]["name"] for cell in cells]
    assert classes.count("Positive") == sum(x < 256 for x, _ in centres)
    outlines = read_regions(tmp_path / "case.cells.geojson", 512, 512)
    places = sorted(((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in (p.bounds for p in outlines.polygons))
    np.testing.assert_allclose(places, sorted(centres), atol=2)
    area_um2 = [cell["properties"]["measurements"]["Area µm^2"] for cell in cells]
    assert area_um2 == pytest.approx([np.pi * 16] * len(cells), rel=0.2)


def test_more_cells_than_can_be_drawn_are_points(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "OUTLINES", 10)
    centres = grid(512, 512, 64)
    image = discs(512, 512, centres, [BROWN if x < 256 else BLUE for x, _ in centres], 8)
    report(case(tmp_path, image))
    features = json.loads((tmp_path / "case.cells.geojson").read_text())["features"]
    assert [feature["geometry"]["type"] for feature in features] == ["MultiPoint", "MultiPoint"]
    points = np.concatenate([feature["geometry"]["coordinates"] for feature in features])
    np.testing.assert_allclose(sorted(points.tolist()), sorted(centres), atol=1)


def test_a_report_is_the_same_every_time_and_leaves_nothing_of_an_earlier_one(tmp_path):
    image = discs(512, 512, grid(512, 512, 64), [BROWN, BLUE] * 24 + [BROWN], 8)
    result = case(tmp_path, image, samples=[image[::-1]])
    report(result)
    made = sorted(p for p in tmp_path.iterdir() if p.is_file() and p.name not in ("case.ome.tif", "he.tif"))
    before = {path: path.read_bytes() for path in made}
    report(result)
    assert {path: path.read_bytes() for path in made} == before
    (tmp_path / "case.samples" / "seed1.ome.tif").unlink()
    report(result)
    assert not (tmp_path / "case.uncertainty.ome.tif").exists()


def pictures(page):
    """The pictures of a page by their titles, uint8 [H, W, 3]."""
    found = re.findall(r'<h3>([^<]*)</h3>\s*<img src="data:[^,]*,([^"]*)"', page)
    return {
        html.unescape(title): np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))
        for title, content in found
    }


def test_pictures_show_the_regions_and_nothing_else(tmp_path):
    virtual = flat(1024, 2048, (204, 204, 204))
    virtual[300:500, 200:600] = BLUE
    virtual[350:400, 250:300] = BROWN
    ring = np.array([(200, 300), (600, 300), (600, 500), (200, 500)], float)
    result = case(tmp_path, virtual, regions="/gone/drawn.geojson")
    write_features(tmp_path / "case.roi.geojson", [Feature("tumour", [[ring]])])
    _, found, page = report(result)
    assert [row["region"] for row in found["regions"]] == ["tumour"]
    shown = pictures(page)
    assert {"H&E", "Virtual Ki67", "Regions", "Mean DAB", "Positive area"} < set(shown)
    for title, picture in shown.items():
        height, width = picture.shape[:2]
        # 400 x 200 pixels in squares of 32
        assert width / height == pytest.approx(416 / 224, rel=0.02), title
        white = (picture > 250).all(-1).mean()
        assert white < 0.25 or title in ("Mean DAB", "Positive area", "Ki-67 index by region"), title
    virtual = shown["Virtual Ki67"].astype(int)
    assert (np.abs(virtual - 204).max(-1) < 6).mean() < 0.01
    assert (np.abs(virtual - BLUE).max(-1) < 12).mean() > 0.6
    factor = virtual.shape[1] / 416
    y, x = np.nonzero(np.abs(virtual - BROWN).max(-1) < 25)
    assert (x.mean() / factor + 192, y.mean() / factor + 288) == pytest.approx((275, 375), abs=2)
    y, x = np.nonzero(shown["Positive area"][..., 0] < 100)
    factor = shown["Positive area"].shape[1] / 416
    assert (x.mean() / factor + 192, y.mean() / factor + 288) == pytest.approx((275, 375), abs=20)


def islands(*boxes):
    """A virtual stain that is glass but for boxes of tissue: left, top, right, bottom."""
    virtual = flat(1024, 2048)
    for left, top, right, bottom in boxes:
        height, width = bottom - top, right - left
        virtual[top:bottom, left:right] = tissue(height, width)
    return virtual


def test_pictures_are_cropped_to_what_was_stained_and_say_where_that_lies(tmp_path):
    virtual = islands((200, 300, 600, 500))
    _, _, page = report(case(tmp_path, virtual, virtual))
    for title, picture in pictures(page).items():
        height, width = picture.shape[:2]
        # in squares of 32, with a margin
        assert 400 / 300 < width / height < 400 / 200, title
        assert width < 1000 or height < 1000, title
    assert "The part of the slide that was stained, without specks." in page
    (content,) = re.findall(r'class="inset" src="data:[^,]*,([^"]*)" alt="[^"]+"', page)
    small = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("L")).astype(int)
    assert small.shape == (80, 160)
    y, x = np.nonzero(small < 40)  # the frame
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((14, 49, 21, 40), abs=4)


def test_a_slide_that_was_stained_all_over_is_shown_whole(tmp_path):
    everywhere = tissue(512, 512)
    _, _, page = report(case(tmp_path, everywhere, everywhere))
    assert 'class="inset"' not in page
    assert "<figcaption>The slide." in page


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(200, 300, 600, 500)], (200, 300, 600, 500)),
        ([(200, 200, 900, 800), (1500, 150, 1512, 162)], (200, 200, 900, 800)),  # a speck
        ([(200, 300, 400, 500), (700, 400, 900, 600)], (200, 300, 900, 600)),
        ([], (0, 0, 2048, 1024)),
        ([(10, 10, 2040, 1010)], (0, 0, 2048, 1024)),
    ],
)
def test_the_box_of_what_was_stained_holds_every_piece_and_no_speck(tmp_path, boxes, expected):
    write_image(tmp_path / "a.tif", islands(*boxes), 0.5)
    with open_slide(tmp_path / "a.tif") as slide:
        found = stained_box(slide)
    if expected == (0, 0, 2048, 1024):
        assert found == expected
    else:
        left, top, right, bottom = expected
        assert found[0] < left
        assert found[1] < top
        assert found[2] > right
        assert found[3] > bottom
        assert found == pytest.approx(expected, abs=0.05 * (right - left) + 40)


def test_pictures_come_before_numbers_and_the_index_stands_beside_its_caveat(tmp_path):
    image = discs(512, 512, grid(512, 512, 64), [BROWN, BLUE] * 24 + [BROWN], 8)
    _, found, page = report(case(tmp_path, image))
    index = f"<strong>{100 * found['all']['positive_cell_share']:.1f} %</strong> Ki-67 index"
    marks = [
        "<h3>H&amp;E</h3>",
        index,
        "<strong>Not a measurement</strong>",
        '<dl class="keys">',
        "<details>",
    ]
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
    assert page.count("Virtual stain: for research use only, not for diagnosis.") == 1
    assert page.index("How it was made</summary>") > page.index("<details>")


def test_regions_that_have_changed_are_not_taken_for_those_that_were_translated(tmp_path):
    roi = {"type": "Polygon", "coordinates": [[[0, 0], [90, 0], [90, 99], [0, 99]]]}
    (tmp_path / "roi.geojson").write_text(json.dumps(roi))
    result = case(tmp_path, flat(256, 256), regions="roi.geojson", regions_sha256="0" * 16)
    with pytest.raises(SlideError, match=r"roi.geojson: no such file, or has changed"):
        make_report(result, print)


def test_a_name_that_is_no_text_is_shown_by_its_bytes(tmp_path):
    result = case(tmp_path, flat(256, 256), source=str(tmp_path / "caf\udce9.tif"))
    said, _, page = report(result)
    assert "the H&E is not there" in said[0]
    assert r"caf\udce9.tif" in page


def truncated(folder):
    result = case(folder, flat(256, 256))
    result.write_bytes(result.read_bytes()[:200])
    return result


def without(folder):
    result = case(folder, flat(256, 256))
    (folder / "case.json").unlink()
    return result


def with_record(text):
    def make(folder):
        result = case(folder, flat(256, 256))
        (folder / "case.json").write_text(text)
        return result

    return make


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: folder / "case.ome.tif", "cannot be read"),
        (lambda folder: folder / "case.png", "NAME.ome.tif"),
        (truncated, "case.ome.tif"),
        (without, "case.json: no such file"),
        (with_record("{"), "is not JSON"),
        (with_record("[]"), "expected a JSON object"),
        (with_record("{}"), "is no record"),
        (lambda folder: case(folder, flat(256, 256), width=999), "its record case.json says 999"),
        (lambda folder: case(folder, flat(256, 256), he=tissue(100, 256)), "256 x 100 pixels"),
        (lambda folder: case(folder, flat(256, 256), samples=[flat(128, 256)]), "expected 256 x 256"),
        (lambda folder: case(folder, flat(256, 256), regions="gone.geojson"), "gone.geojson: no such file"),
        (with_record('{"miudiff": "0", "source": "he.tif", "mpp": "half"}'), "mpp 'half'"),
        (with_record('{"miudiff": "0", "source": "he.tif", "unreadable": [[1, 2]]}'), "unreadable"),
        (
            with_record('{"miudiff": "0", "source": "he.tif", "mpp": 1e-300}'),
            "mpp 1e-300, expected 0.01 to 20",
        ),
        (
            with_record('{"miudiff": "0", "source": "he.tif", "mpp": 1' + 400 * "0" + "}"),
            "larger than a float",
        ),
        (with_record('{"miudiff": "0", "source": "he.tif", "mpp": NaN}'), "a number that is not finite"),
        (with_record('{"miudiff": "0", "source": "\\ud800.tif"}'), "half of a surrogate pair"),
        (with_record('{"miudiff": "0", "source": ["he.tif"]}'), "expected the name of a file"),
        (with_record('{"a":' * 100_000 + "1" + "}" * 100_000), "nested too deeply"),
        (with_record('{"a":' * 400 + "1" + "}" * 400), "nested too deeply"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path, make, expected):
    with pytest.raises(SlideError) as caught:
        make_report(make(tmp_path), print)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value) or "gone" in str(caught.value)


def test_a_real_slide_has_a_report(shared, tmp_path):
    he = shared / "data" / "wsi" / "CMU-1-Small-Region.svs"
    with open_slide(he) as slide:
        pixels, mpp = slide.read(600, 600, 1200, 900), slide.mpp
    _, found, page = report(case(tmp_path, pixels, pixels, mpp))
    assert 0.1 < found["all"]["tissue_mm2"] < 0.27
    assert len(page) > 50_000
