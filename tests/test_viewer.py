"""The viewer without a browser: what belongs together, where it lies, its tiles, and who may ask for what."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from miudiff.errors import ConfigError, DataError
from miudiff.images import beside, write_image
from miudiff.pages.page import STYLE
from miudiff.slide_report.plane import Plane
from miudiff.slide_report.uncertainty import write_uncertainty
from miudiff.slides import sight
from miudiff.slides.reader import open_slide, read_scaled
from miudiff.slides.regions import Feature, write_features
from miudiff.slides.result import UNCERTAINTY
from miudiff.stains import combine_stains, rgb_from_hdab
from miudiff.viewer import Case, create_app, find_cases
from miudiff.viewer.sheets import Sheet, lay_out
from miudiff.viewer.tiles import (
    OVERLAP,
    SIDE,
    STRONGEST,
    Place,
    Slides,
    dab,
    doubt,
    encode,
    halvings,
    read_tile,
)
from viewer_server import ask, serving


def noise(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(90, 250, (height // 4 + 1, width // 4 + 1, 3), np.uint8)
    return np.ascontiguousarray(coarse.repeat(4, 0).repeat(4, 1)[:height, :width])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of two slides (one whose source is gone) and of a small image, with all that may lie beside them."""
    root = tmp_path_factory.mktemp("viewer")
    results = root / "results"
    write_image(root / "a.ome.tif", noise(700, 900), 0.25)
    write_image(results / "a.ome.tif", noise(350, 450, 1), 0.5)
    write_image(results / "a.uncertainty.png", noise(35, 45, 2))
    record = {"miudiff": "0.1.0", "source": str(root / "a.ome.tif"), "mpp": 0.25, "method": "sdedit"}
    record |= {"model": {"name": "small", "marker": "Ki67"}, "seed": 3, "width": 900, "height": 700}
    (results / "a.json").write_text(json.dumps(record))
    (results / "a.report.html").write_text("<script>alert(1)</script><p>fine</p>")
    write_image(results / "b.ome.tif", noise(64, 64, 3), 0.5)
    (results / "b.json").write_text(json.dumps(record | {"source": "/gone/b.svs"}))
    write_image(root / "c.png", noise(80, 60, 4))
    write_image(results / "c.png", noise(80, 60, 5))
    run = {"method": "cut", "marker": "HER2", "seed": 1, "miudiff": "0.1.0"}
    entries = {"c.png": {"source": str(root / "c.png"), "mpp": None, "run": 0}, "d.png": {"run": 0}}
    (results / "translation.json").write_text(json.dumps({"runs": [run], "images": entries}))
    write_image(results / "sheet.png", noise(10, 10))  # no result: no record has it
    (results / "failures.csv").write_text('slide,reason\n"<b>x</b>.svs",damaged\n')
    return results


@pytest.fixture(scope="module")
def port(folder):
    with serving(create_app(find_cases(folder.parent, folder), folder)) as number:
        yield number


def test_two_files_are_a_case_with_the_record_that_lies_there(folder):
    (case,) = find_cases(folder.parent / "a.ome.tif", folder / "a.ome.tif")
    assert (case.name, case.record, case.real) == ("a", folder / "a.json", None)
    assert case.uncertainty == folder / "a.uncertainty.png"
    assert case.report == folder / "a.report.html"
    assert case.unreadable is None


def test_a_folder_is_the_results_whose_records_name_their_sources(folder):
    a, b, c = find_cases(folder.parent, folder)
    assert [case.name for case in (a, b, c)] == ["a", "b", "c"]
    assert a.he == folder.parent / "a.ome.tif"
    assert b.he is None
    assert "/gone/b.svs, which is not there" in b.missing
    assert c.he == folder.parent / "c.png"
    assert c.record == folder / "translation.json"
    assert c.facts["marker"] == "HER2"


def test_sources_that_have_moved_are_found_by_name_in_a_folder_of_them(folder, tmp_path):
    write_image(tmp_path / "b.tif", noise(64, 64), 0.5)
    cases = {case.name: case.he for case in find_cases(tmp_path, folder)}
    assert cases["b"] == tmp_path / "b.tif"


def test_a_result_is_not_its_own_source(tmp_path):
    write_image(tmp_path / "x.ome.tif", noise(16, 16), 0.5)
    (tmp_path / "x.json").write_text(json.dumps({"miudiff": "0.1.0", "source": "elsewhere/x.ome.tif"}))
    (case,) = find_cases(None, tmp_path)
    assert case.he is None


def test_a_result_whose_name_speaks_of_uncertainty_is_shown(tmp_path):
    for name in ("x.uncertainty-study.ome.tif", "x.uncertainty-study.uncertainty.png"):
        write_image(tmp_path / name, noise(16, 16), 0.5 if name.endswith("tif") else None)
    (tmp_path / "x.uncertainty-study.json").write_text(json.dumps({"miudiff": "0.1.0"}))
    assert [case.name for case in find_cases(None, tmp_path)] == ["x.uncertainty-study"]


def test_a_record_that_cannot_be_read_is_told_and_the_result_shown(tmp_path):
    write_image(tmp_path / "x.ome.tif", noise(16, 16), 0.5)
    (tmp_path / "x.json").write_text("{")
    (case,) = find_cases(None, tmp_path)
    assert "x.json: is not JSON" in case.missing


@pytest.mark.parametrize(
    ("he", "ihc", "said"),
    [
        (None, "nothing.tif", "no such file or folder"),
        ("nothing.svs", "results/a.ome.tif", "no such file or folder"),
        ("a.ome.tif", "results", "is a folder, expected the virtual IHC of"),
        ("a.ome.tif", "a.ome.tif", "expected two files"),
        (None, "empty", "no images"),
        (None, ".", "2 images, none with a record"),
    ],
)
def test_what_shows_nothing_is_refused_in_one_line(folder, he, ihc, said):
    root = folder.parent
    (root / "empty").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=said) as refused:
        find_cases(he and root / he, root / ihc)
    assert "\n" not in str(refused.value)


def lay(**sheets):
    placed = lay_out({role: Sheet(role, *values) for role, values in sheets.items()})
    field, by_role, notes = placed
    return field, {role: sheet.share for role, sheet in by_role.items()}, notes


def test_one_field_in_other_pixels_lies_over_it():
    field, shares, notes = lay(he=(1001, 801, 0.25), ihc=(501, 401, 0.5))
    assert shares == {"he": 1.0, "ihc": 1.0}
    assert (field.width, field.mpp, notes) == (1001, 0.25, [])


def test_slides_of_different_size_are_placed_by_their_size_and_it_is_said():
    _, shares, notes = lay(he=(1000, 800, 0.25), ihc=(1000, 800, 0.5))
    assert shares["ihc"] == pytest.approx(2.0)
    assert len(notes) == 1
    assert "500 x 400 µm and 250 x 200 µm" in notes[0]


def test_a_slide_without_a_scale_takes_that_of_its_field():
    field, shares, notes = lay(he=(1000, 800, None), ihc=(500, 400, 0.5))
    assert (field.mpp, shares["ihc"], notes) == (0.25, 1.0, [])


def test_without_any_scale_lengths_are_pixels_and_it_is_said():
    field, shares, notes = lay(he=(1000, 800, None), ihc=(300, 400, None))
    assert field.mpp is None
    assert shares["ihc"] == pytest.approx(0.3)
    assert ["pixel by pixel" in notes[0], "lengths are in pixels" in notes[1]] == [True, True]


def test_a_scale_given_by_hand_is_that_of_the_source(tmp_path):
    from miudiff.viewer.sheets import page_data

    write_image(tmp_path / "he.png", noise(40, 60))
    write_image(tmp_path / "x.ome.tif", noise(40, 60), 0.4)
    (tmp_path / "x.json").write_text(json.dumps({"miudiff": "0", "source": "he.png", "mpp": 0.4}))
    data = page_data(find_cases(None, tmp_path)[0], Slides())
    assert data["field"] == {"width": 60, "height": 40, "mpp": 0.4, "of": "H&E"}


@pytest.mark.parametrize("times", [0, 1])
def test_tiles_together_are_the_slide(folder, times):
    with open_slide(folder.parent / "a.ome.tif") as slide:
        width, height = slide.width >> times, slide.height >> times
        together = np.zeros((height, width, 3), np.uint8)
        for y in range(0, height, SIDE):
            for x in range(0, width, SIDE):
                left, top = max(x - OVERLAP, 0), max(y - OVERLAP, 0)
                tile = read_tile(slide, Place(times, x // SIDE, y // SIDE))
                assert tile.shape[1] == min(x + SIDE + OVERLAP, width) - left
                together[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
        whole = read_scaled(slide, (0, 0, slide.width, slide.height), width, height)
    np.testing.assert_array_equal(together, whole)


def test_each_tile_is_read_from_the_level_of_the_pyramid_that_fits(tmp_path):
    sides, greys = (2048, 1024, 512), (60, 120, 180)  # each level has a grey of its own, to be told by
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate"}
    with tifffile.TiffWriter(tmp_path / "x.ome.tif", ome=True) as tiff:
        for number, (side, grey) in enumerate(zip(sides, greys)):
            kind = {"subfiletype": 1} if number else {"subifds": 2, "metadata": {"axes": "YXS"}}
            tiff.write(np.full((side, side, 3), grey, np.uint8), **kind, **options)
    with open_slide(tmp_path / "x.ome.tif") as slide:
        assert [read_tile(slide, Place(times, 0, 0)).max() for times in range(3)] == list(greys)


def test_the_coarsest_tile_is_the_whole_slide(folder):
    assert [halvings(*size) for size in ((512, 512), (513, 10), (10, 1025), (1, 1))] == [0, 1, 2, 0]
    with open_slide(folder.parent / "a.ome.tif") as slide:
        assert read_tile(slide, Place(1, 0, 0)).shape == (350, 450, 3)
        for place in (Place(1, 1, 0), Place(1, 0, 1), Place(2, 0, 0), Place(0, 2, 0)):
            with pytest.raises(ValueError, match="no tile"):
                read_tile(slide, place)


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content))).astype(int)


def test_the_dab_layer_shows_the_dab_that_was_put_in_and_no_hematoxylin():
    amounts = np.zeros((64, 64, 2))
    amounts[:, :32, 0], amounts[:32, :, 1] = 0.5, 0.6
    shown = decoded(encode(dab(combine_stains(amounts, rgb_from_hdab)))[0])
    expected = combine_stains(amounts[..., 1:], rgb_from_hdab[1:2]).astype(int)
    inside = np.abs(shown - expected)[4:28, 4:28], np.abs(shown - expected)[36:60, 36:60]
    assert max(part.max() for part in inside) <= 4  # of JPEG and of 8 bits


def test_the_uncertainty_layer_lets_certain_places_through():
    level = np.array([[[0] * 3, [100] * 3, [255] * 3]], np.uint8)
    alpha = decoded(encode(doubt(level))[0])[0, :, 3]
    assert alpha[0] == 0
    assert alpha[1] / alpha[2] == pytest.approx(100 / 255, abs=0.01)


def write_spread(path, spread, most):
    """The uncertainty of squares as the report writes it, beside a result of `path`'s name."""
    rows, columns = spread.shape
    plane = Plane(columns * 16, rows * 16, 1, 0.5, 16)
    write_uncertainty(beside(path, UNCERTAINTY), spread, plane, most)
    write_image(path, noise(plane.height, plane.width), 0.5)
    return Case("x", None, path)


def test_uncertainty_is_as_opaque_on_the_page_as_the_report_found_it(tmp_path):
    spread = np.array([[np.nan, 0.0, 0.05, 0.1], [0.2, 0.4, 0.02, np.nan]])
    case = write_spread(tmp_path / "x.ome.tif", spread, 0.2)
    with serving(create_app([case])) as number:
        sheet = json.loads(ask(number, "/case/0/data")[2])["sheets"]["uncertainty"]
        status, headers, body = ask(number, "/case/0/tile/uncertainty/0/0_0")
    assert (status, headers["content-type"], sheet["error"]) == (200, "image/png", "")
    side = sheet["width"] // 4
    alpha = decoded(body)[side // 2 :: side, side // 2 :: side, 3]
    shares = np.array([[0, 0, 0.25, 0.5], [1, 1, 0.1, 0]])
    np.testing.assert_allclose(alpha, 255 * STRONGEST * shares, atol=1)


def with_regions(folder, name, rings, **more):
    """A result of a square and what is around it, with its regions in a file of this name."""
    write_image(folder / "x.ome.tif", np.full((600, 900, 3), 90, np.uint8), 0.5)
    features = [Feature("tumour", [[np.array(ring, float) for ring in rings]])]
    write_features(folder / name, features)
    content = {"miudiff": "0.1.0", "source": None, "regions": "/gone/drawn.geojson"}
    (folder / "x.json").write_text(json.dumps(content | more))
    return find_cases(None, folder / "x.ome.tif")


SQUARE = [(100, 100), (400, 100), (400, 300), (100, 300)]
HOLE = [(200, 150), (250, 150), (250, 200), (200, 200)]


def test_what_lies_outside_of_the_translated_regions_is_transparent(tmp_path):
    cases = with_regions(tmp_path, "x.roi.geojson", [SQUARE, HOLE])
    expected = np.zeros((600, 900), bool)
    expected[100:300, 100:400] = True
    expected[150:200, 200:250] = False
    with serving(create_app(cases)) as number:
        assert json.loads(ask(number, "/case/0/data")[2])["sheets"]["ihc"]["clipped"] is True
        for layer in ("ihc", "ihc-dab"):
            status, headers, body = ask(number, f"/case/0/tile/{layer}/0/0_0")
            assert (status, headers["content-type"]) == (200, "image/png")
            np.testing.assert_array_equal(decoded(body)[..., 3] == 255, expected[:513, :513])
            assert set(np.unique(decoded(body)[..., 3])) == {0, 255}
        assert (decoded(ask(number, "/case/0/tile/ihc/0/1_1")[2])[..., 3] == 0).all()
        small = decoded(ask(number, "/case/0/thumbnail/ihc")[2])[..., 3] == 255
        np.testing.assert_array_equal(small, expected[::2, ::2])


def test_a_card_shows_what_was_stained_and_the_same_of_the_he(tmp_path):
    ihc = np.full((600, 900, 3), sight.OUTSIDE, np.uint8)
    ihc[100:300, 100:400] = (120, 60, 40)
    he = np.full((1200, 1800, 3), (200, 90, 150), np.uint8)
    he[200:600, 200:800] = (90, 40, 120)
    write_image(tmp_path / "x.ome.tif", ihc, 0.5)
    write_image(tmp_path / "he.png", he)
    both = Case("x", tmp_path / "he.png", tmp_path / "x.ome.tif")
    with serving(create_app([both], tmp_path)) as number:
        page = ask(number, "/")[2].decode()
        assert 'src="case/0/closeup/he"' in page
        shown = {role: decoded(ask(number, f"/case/0/closeup/{role}")[2])[..., :3] for role in ("he", "ihc")}
        assert ask(number, "/case/0/closeup/real")[0] == 404
    for role, colour in (("ihc", (120, 60, 40)), ("he", (90, 40, 120))):
        height, width = shown[role].shape[:2]
        inside = np.abs(shown[role].astype(int) - colour).max(-1) < 12
        assert inside[: height // 2, : width // 2].mean() > 0.6, role
        assert max(height, width) <= 512
        # the square of 300 x 200 with a margin
        assert 300 / 200 > width / height > 1.25, role
        assert inside.mean() > 0.4, role
    assert shown["he"].shape == pytest.approx((512 * 264 / 364, 512, 3), abs=4)


def test_the_viewer_serves_the_style_of_all_pages(port):
    status, headers, body = ask(port, "/static/style.css")
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/css")
    assert body.decode() == STYLE
    for page in ("/", "/case/0/"):
        assert b"static/style.css" in ask(port, page)[2]


def test_regions_that_change_are_shown_as_they_are_now(tmp_path):
    cases = with_regions(tmp_path, "x.roi.geojson", [SQUARE])
    with serving(create_app(cases)) as number:
        before = [json.loads(ask(number, "/case/0/data")[2])["sheets"]["ihc"]["version"]]
        before.append(ask(number, "/case/0/tile/ihc/0/0_0")[1]["etag"])
        write_features(tmp_path / "x.roi.geojson", [Feature("other", [[np.array(HOLE, float)]])])
        after = [json.loads(ask(number, "/case/0/data")[2])["sheets"]["ihc"]["version"]]
        after.append(ask(number, "/case/0/tile/ihc/0/0_0")[1]["etag"])
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_regions_that_are_gone_leave_the_result_as_it_is_and_it_is_said(tmp_path):
    cases = with_regions(tmp_path, "another.geojson", [SQUARE])
    with serving(create_app(cases)) as number:
        data = json.loads(ask(number, "/case/0/data")[2])
        assert ask(number, "/case/0/tile/ihc/0/0_0")[1]["content-type"] == "image/jpeg"
    assert data["sheets"]["ihc"]["clipped"] is False
    assert any("their file is not here (/gone/drawn.geojson)" in note for note in data["notes"])


@pytest.mark.parametrize("same", [True, False])
def test_the_file_that_the_record_names_counts_while_it_is_the_same(tmp_path, same):
    digest = "0" * 16
    if same:
        with_regions(tmp_path, "drawn.geojson", [SQUARE])
        digest = hashlib.sha256((tmp_path / "drawn.geojson").read_bytes()).hexdigest()[:16]
    (case,) = with_regions(tmp_path, "drawn.geojson", [SQUARE], regions_sha256=digest)
    assert case.regions == (tmp_path / "drawn.geojson" if same else None)


def test_every_kind_of_slide_shows(shared, tmp_path):
    files = ["wsi/CMU-1-Small-Region.svs", "ihc/os2_ki67_olympus.ome.tif", "he/histolab_tcga_lung_rgb.png"]
    cases = [Case(name, shared / "data" / name, shared / "data" / name) for name in files]
    with serving(create_app(cases)) as number:
        for index, case in enumerate(cases):
            status, headers, body = ask(number, f"/case/{index}/tile/he/0/0_0")
            assert (status, headers["content-type"]) == (200, "image/jpeg"), case.name
            with open_slide(case.ihc) as slide:
                expected = slide.read(0, 0, *decoded(body).shape[1::-1])
            assert np.abs(decoded(body) - expected).mean() < 3, case.name


def test_each_answer_forbids_the_browser_to_fetch_from_elsewhere(port):
    for path in ("/", "/case/0/", "/case/0/data", "/case/0/tile/he/0/0_0", "/static/viewer.js", "/nothing"):
        headers = ask(port, path)[1]
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "http" not in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["cross-origin-resource-policy"] == "same-origin", path


OUTSIDE = [
    "/..%2f..%2f..%2fetc/passwd", "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/etc/passwd",
    "/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e%2f%2e%2e%2fapp.py", "/static//etc/passwd",
    "/static/openseadragon/../../app.py", "/static/viewer.js%00.css", "/static/",
    "/case/0/..%2f..%2f..%2fa.json", "/case/0/a.json", "/case/%2fetc%2fpasswd/", "/case/3/", "/case/-1/", "/case/1e0/",
    "/case/%D9%A3/", "/case/" + "9" * 5000 + "/", "/case/0/tile/..%2f..%2fhe/0/0_0", "/case/0/tile/record/0/0_0",
    "/case/0/tile/he/0/2_0", "/case/0/tile/he/99/0_0", "/case/0/tile/he/999999999/0_0", "/case/0/tile/he/0/-1_0",
    "/case/0/tile/he/0/0", "/case/0/tile/he/0/0_0.jpg", "/case/1/tile/he/0/0_0", "/case/1/tile/uncertainty/0/0_0",
    "/case/0/tile/real/0/0_0", "/case/1/report", "/case/0/thumbnail/..%2f..%2fa.ome.tif",
]  # fmt: skip


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: path[:40])
def test_what_is_not_served_is_not_found(port, path):
    status, _, body = ask(port, path)
    assert status == 404
    assert b"root:" not in body


@pytest.mark.parametrize(
    ("hosts", "status"),
    [
        (["127.0.0.1:1"], 200),
        (["localhost"], 200),
        (["LOCALHOST:9000"], 200),
        (["[::1]:80"], 200),
        (["evil.example"], 403),
        (["evil.example:80"], 403),
        (["127.0.0.1.evil.example"], 403),
        (["localhost.evil.example"], 403),
        (["0.0.0.0"], 403),
        (["127.0.0.1:x"], 403),
        (["localhost", "evil.example"], 400),
        ([""], 403),
        ([], 400),
    ],
)
def test_only_names_of_this_machine_are_answered(port, hosts, status):
    found, _, body = ask(port, "/case/0/data", headers=[("Host", host) for host in hosts])
    assert found in (
        {status, 403} if status == 400 else {status}
    )  # the server may refuse it before the viewer does
    assert (b"sheets" in body) == (status == 200)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_can_be_sent(port, method):
    assert {ask(port, path, method)[0] for path in ("/", "/case/0/", "/static/viewer.js")} == {405}


def test_a_tile_that_the_browser_has_is_not_sent_again(port, folder):
    status, headers, _ = ask(port, "/case/0/tile/ihc-dab/0/0_0")
    assert (status, headers["cache-control"]) == (200, "private, max-age=86400")
    tag = [("Host", "localhost"), ("If-None-Match", headers["etag"])]
    assert ask(port, "/case/0/tile/ihc-dab/0/0_0", headers=tag)[::2] == (304, b"")
    assert ask(port, "/case/0/tile/ihc/0/0_0", headers=tag)[0] == 200


def test_a_file_that_changes_is_shown_as_it_is_now(tmp_path):
    write_image(tmp_path / "x.png", np.full((8, 8, 3), 200, np.uint8))
    slides = Slides()
    assert slides.get(tmp_path / "x.png").read(0, 0, 1, 1)[0, 0, 0] == 200
    write_image(tmp_path / "x.png", np.full((8, 9, 3), 100, np.uint8))
    assert slides.get(tmp_path / "x.png").read(0, 0, 1, 1)[0, 0, 0] == 100


def damage(path, tile):
    """Overwrite the bytes of one tile of a TIFF."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, length = page.dataoffsets[tile], page.databytecounts[tile]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x00" * length)


def test_a_damaged_tile_is_an_error_with_its_reason_and_others_are_still_served(tmp_path):
    path = tmp_path / "x.tif"
    tifffile.imwrite(path, noise(1024, 1024), tile=(512, 512), photometric="rgb", compression="deflate")
    damage(path, 3)
    with serving(create_app([Case("x", None, path)])) as number:
        status, headers, body = ask(number, "/case/0/tile/ihc/0/1_1")
        assert (status, headers["cache-control"]) == (500, "no-store")
        assert headers["content-type"].startswith("text/plain")
        assert body.decode().count("\n") == 1
        assert "x.tif: the region" in body.decode()
        status, _, body = ask(number, "/case/0/tile/ihc/0/0_1")
        assert (status, decoded(body).shape) == (200, (513, 513, 3))  # with the overlap that every tile has


def test_a_slide_that_cannot_be_opened_is_told_where_it_would_be(tmp_path):
    (tmp_path / "x.tif").write_bytes(b"II*\0 and no more")
    write_image(tmp_path / "he.png", noise(20, 20))
    with serving(create_app([Case("x", tmp_path / "he.png", tmp_path / "x.tif")])) as number:
        status, _, body = ask(number, "/case/0/data")
        sheets = json.loads(body)["sheets"]
        assert (status, sheets["he"]["error"]) == (200, "")
        assert "x.tif: " in sheets["ihc"]["error"]
        assert ask(number, "/case/0/thumbnail/ihc")[0] == 500


def test_regions_that_could_not_be_read_are_told_in_shares_of_the_field(tmp_path):
    write_image(tmp_path / "he.png", noise(100, 200))
    write_image(tmp_path / "x.png", noise(100, 200))
    square = [[50, 20], [100, 20], [100, 60], [50, 60], [50, 20]]
    geometry = {"type": "Polygon", "coordinates": [square]}
    (tmp_path / "x.unreadable.geojson").write_text(json.dumps(geometry))
    case = Case("x", tmp_path / "he.png", tmp_path / "x.png")
    with serving(create_app([case])) as number:
        ((ring,),) = json.loads(ask(number, "/case/0/data")[2])["regions"]
    assert sorted(ring) == [[0.25, 0.1], [0.25, 0.3], [0.5, 0.1], [0.5, 0.3]]


def test_the_record_is_served_and_that_of_a_folder_for_one_image_alone(port, folder):
    assert ask(port, "/case/0/record")[2] == (folder / "a.json").read_bytes()
    told = json.loads(ask(port, "/case/2/record")[2])
    assert (told["image"], told["method"], "images" in told) == ("c.png", "cut", False)


def test_a_report_runs_no_scripts(port):
    status, headers, body = ask(port, "/case/0/report")
    assert (status, b"<p>fine</p>" in body) == (200, True)
    assert headers["content-security-policy"].endswith("; sandbox")
    assert "script-src" not in headers["content-security-policy"]


def test_the_gallery_shows_results_failures_and_what_is_missing(port):
    page = ask(port, "/")[2].decode()
    assert "Virtual stain: for research use only, not for diagnosis." in page
    assert "3 results, 1 failed" in page
    assert "which is not there" in page
    assert "&lt;b&gt;x&lt;/b&gt;.svs" in page
    assert "<b>x</b>" not in page


def test_a_lone_case_is_shown_at_once(folder):
    with serving(create_app(find_cases(None, folder / "a.ome.tif"))) as number:
        status, headers, _ = ask(number, "/")
        assert (status, headers["location"]) == (307, "case/0/")
        assert b"All results" not in ask(number, "/case/0/")[2]


def test_a_name_that_is_no_text_is_shown(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    try:
        path.write_bytes(b"not an image")
    except OSError:
        pytest.skip("this file system takes no such names")
    with serving(create_app([Case(path.stem, None, path)])) as number:
        for address in ("/case/0/", "/case/0/data"):
            status, _, body = ask(number, address)
            assert (status, b"caf\\udce9" in body) == (200, True), address
        assert ask(number, "/case/0/thumbnail/ihc")[0] == 500


SERVE = "import sys; from pathlib import Path; from miudiff.viewer import serve; serve(None, Path(sys.argv[1]), None, False)"


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent otherwise there")
def test_the_server_says_where_it_is_and_ends_well_with_ctrl_c(folder):
    run = subprocess.Popen(
        [sys.executable, "-u", "-c", SERVE, folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        line = run.stdout.readline()
        url = next(word for word in line.split() if word.startswith("http"))
        assert url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.status == 200
        time.sleep(0.2)
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=20)
    finally:
        run.kill()
    assert (run.returncode, out, err) == (0, "closed\n", "")


def test_a_port_that_is_taken_is_refused_in_one_line(folder):
    from miudiff.viewer import serve

    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {number}: cannot be had"):
            serve(None, folder, number, False)
    with pytest.raises(ConfigError, match="--port 70000"):
        serve(None, folder, 70000, False)


def test_the_licence_of_the_drawing_library_lies_beside_it():
    folder = Path(__file__).parent.parent / "src" / "miudiff" / "viewer" / "static" / "openseadragon"
    assert "Redistribution and use" in (folder / "LICENSE.txt").read_text()
    assert "openseadragon 6.1.1" in (folder / "openseadragon.min.js").read_text(encoding="utf-8")[:100]
