"""The viewer in a real browser: Chromium without a window, driven over DevTools.

The slides are dots of known places on plain grounds, so a screenshot says where each pane is and how large it draws.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from urllib.parse import urlsplit

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy import ndimage

from miudiff.images import write_image
from miudiff.slide_report.plane import Plane
from miudiff.slide_report.uncertainty import write_uncertainty
from miudiff.slides.regions import Feature, write_features
from miudiff.stains import combine_stains, rgb_from_hdab
from miudiff.viewer import Case, create_app, find_cases
from miudiff.viewer.tiles import DOUBT, STRONGEST
from viewer_server import serving

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: it drives the browser")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium in the path: apt-get install chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

FIELD = (420.0, 300.0)  # micrometres
RADIUS = 6.0
DOTS = [(60, 50), (130, 210), (200, 110), (255, 190), (330, 70), (380, 250)]  # micrometres
POSITIVE = DOTS[::2]
PURPLE, PINK = (95, 40, 130), (244, 214, 228)
BROWN = tuple(int(v) for v in combine_stains(np.array([0.0, 0.9]), rgb_from_hdab))
BLUE = tuple(int(v) for v in combine_stains(np.array([0.6, 0.0]), rgb_from_hdab))
GROUND = (236, 236, 243)
HE_MPP, IHC_MPP = 0.25, 0.5


def dotted(mpp, ground, colours):
    """A slide of the field at this scale: (dots, colour) pairs on a plain ground."""
    width, height = (round(side / mpp) for side in FIELD)
    y, x = (np.mgrid[:height, :width] + 0.5) * mpp
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = ground
    for dots, colour in colours:
        for dot in dots:
            pixels[np.hypot(x - dot[0], y - dot[1]) < RADIUS] = colour
    return pixels


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("browser")
    folder = root / "results"
    he = dotted(HE_MPP, PINK, [(DOTS, PURPLE)])
    ihc = dotted(IHC_MPP, GROUND, [(DOTS, BLUE), (POSITIVE, BROWN)])
    write_image(root / "a.ome.tif", he, HE_MPP)
    write_image(folder / "a.ome.tif", ihc, IHC_MPP)
    record = {"miudiff": "0.1.0", "source": str(root / "a.ome.tif"), "mpp": HE_MPP, "method": "sdedit"}
    record |= {"width": he.shape[1], "height": he.shape[0]}
    (folder / "a.json").write_text(json.dumps(record | {"model": {"name": "small", "marker": "Ki67"}}))
    # level-0 pixels of the H&E: 300 to 340 across, 100 to 130 down in micrometres
    square = [[1200, 400], [1360, 400], [1360, 520], [1200, 520]]
    (folder / "a.unreadable.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
    # of no scale, and one of its tiles has no end
    write_image(root / "b.png", he)
    tifffile.imwrite(folder / "b.tif", he, tile=(512, 512), photometric="rgb", compression="deflate")
    with tifffile.TiffFile(folder / "b.tif") as tiff:
        offset = tiff.pages[0].dataoffsets[0]
    with (folder / "b.tif").open("r+b") as file:
        file.seek(offset)
        file.write(bytes(2000))
    (folder / "b.json").write_text(json.dumps({"miudiff": "0.1.0", "source": str(root / "b.png")}))
    return folder


@pytest.fixture(scope="module")
def origin(results):
    with serving(create_app(find_cases(results.parent, results), results)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)  # in a new profile of its own
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def windows(browser):
    """Where pages open, by the density of the screen; they keep the tiles that they have seen."""
    return {
        scale: browser.new_context(device_scale_factor=scale, reduced_motion="reduce") for scale in (1.0, 2.0)
    }


@pytest.fixture
def open_page(windows, origin):
    """Opens an address in a page of its own, and sees to it that the page is content and stays at home."""
    pages, complaints, elsewhere = [], [], []

    def open_page(path="/case/0/", width=1001, height=640, scale=1.0, allowed=""):
        page = windows[scale].new_page()
        pages.append(page)
        page.set_viewport_size({"width": width, "height": height})
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda line: (
                line.type in ("error", "warning")
                and not (allowed and re.search(allowed, line.text))
                and complaints.append(line.text)
            ),
        )
        page.on("request", lambda request: elsewhere.append(request.url))
        page.goto(origin + path)
        if "/case/" in path:
            settle(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    home = urlsplit(origin).netloc
    assert complaints == []
    assert [url for url in elsewhere if urlsplit(url).netloc != home] == []


def settle(page):
    """Wait until all tiles are there and the view rests in the address."""
    page.wait_for_selector("html[data-ready]")
    last, since = None, time.monotonic()
    while time.monotonic() - since < 0.3:
        now = page.evaluate("[location.hash, document.querySelectorAll('[aria-busy=true]').length]")
        if now != last or now[1] or not now[0]:
            last, since = now, time.monotonic()
        time.sleep(0.03)


def view(page):
    """(x, y, zoom, mode, flags) of the address: centre in level-0 pixels of the H&E, screen pixels to one."""
    x, y, zoom, mode, *flags = page.evaluate("location.hash").lstrip("#").split(",")
    return float(x), float(y), float(zoom), mode, flags


def shot(page, selector):
    """The pixels of an element as they stand on the screen without what lies over it, [H, W, 3]."""
    page.evaluate(
        "document.querySelectorAll('.label, .scale, .trouble').forEach((it) => { it.style.visibility = 'hidden' })"
    )
    return np.asarray(Image.open(io.BytesIO(page.locator(selector).screenshot())).convert("RGB")).astype(int)


def dots(pixels, colour, tolerance=60):
    """Places (x, y) of the middles of whole dots of a colour, in pixels of the shot, from left to right."""
    mask = np.abs(pixels - colour).sum(-1) < tolerance
    labels, _ = ndimage.label(mask)
    found = []
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        height, width = (side.stop - side.start for side in box)
        whole = (
            box[0].start > 0
            and box[0].stop < mask.shape[0]
            and box[1].start > 0
            and box[1].stop < mask.shape[1]
        )
        if whole and abs(height - width) <= 2 and width > 5:
            y, x = ndimage.center_of_mass(mask, labels, number)
            found.append((x + 0.5, y + 0.5))
    return np.array(sorted(found)).reshape(-1, 2)


def expected_dots(page, pixels, places, scale=1.0):
    """Where dots at `places` must be in a shot of a pane, by the view that the address says."""
    x, y, zoom, *_ = view(page)
    middle = np.array(pixels.shape[1::-1]) / 2
    at = (np.array(sorted(places)) / HE_MPP - (x, y)) * zoom + middle
    margin = RADIUS / HE_MPP * zoom + 2
    inside = ((at > margin) & (at < np.array(pixels.shape[1::-1]) - margin)).all(1)
    return at[inside]


def check_panes(page, scale=1.0):
    """Both panes draw their dots where the address says that they are."""
    for pane, places, colours in (("#left", DOTS, [PURPLE]), ("#right", DOTS, [BLUE, BROWN])):
        pixels = shot(page, f"{pane} .view")
        found = np.array(sorted(np.vstack([dots(pixels, colour) for colour in colours]).tolist()))
        wanted = expected_dots(page, pixels, places, scale)
        assert found.shape == wanted.shape, pane
        assert len(found) >= 1, pane
        np.testing.assert_allclose(found, wanted, atol=1.0, err_msg=pane)


def test_tiles_of_both_slides_appear_in_their_own_colours(open_page):
    page = open_page()
    for pane, colours in (("#left", (PINK, PURPLE)), ("#right", (GROUND, BLUE, BROWN))):
        pixels = shot(page, f"{pane} .view")
        for colour in colours:
            assert (np.abs(pixels - colour).max(-1) <= 4).sum() > 100, (pane, colour)
    check_panes(page)
    assert page.inner_text(".banner") == "Virtual stain: for research use only, not for diagnosis."
    assert page.text_content("#right .label") == "Virtual IHC · Ki67"


def test_both_panes_move_together(open_page):
    page = open_page()
    before = view(page)
    box = page.locator("#right .view").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 60, y + 25, steps=4)
    page.mouse.up()
    settle(page)
    moved = view(page)
    assert (moved[0] - before[0]) * before[2] == pytest.approx(60, abs=1.5)
    assert (moved[1] - before[1]) * before[2] == pytest.approx(-25, abs=1.5)
    check_panes(page)
    page.mouse.move(box["x"] / 2, y)  # over the other pane
    page.mouse.wheel(0, -300)
    settle(page)
    assert view(page)[2] > 1.1 * before[2]
    check_panes(page)
    page.keyboard.press("ArrowRight")
    settle(page)
    check_panes(page)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_magnification_is_true_to_the_micrometre(open_page, scale):
    page = open_page(scale=scale)
    for power in (10, 20):
        page.click(f"[data-power='{power}']")
        settle(page)
        # 10 / power micrometres to a pixel of the screen, whose H&E has HE_MPP to a pixel
        assert view(page)[2] == pytest.approx(HE_MPP / (10 / power), rel=1e-4)
        assert f"{power}×" in page.inner_text("#magnification")
        check_panes(page, scale)
        width = page.locator("#left .scale .line").bounding_box()["width"]
        length, unit = page.text_content("#left .scale .length").split()
        assert unit == "µm"
        assert width * scale == pytest.approx(float(length) / (10 / power), rel=0.01)


def test_the_pointer_is_told_in_micrometres_and_level_0_pixels(open_page):
    page = open_page()
    page.click("[data-power='20']")
    settle(page)
    x, y, zoom, *_ = view(page)
    box = page.locator("#left .view").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 100, box["y"] + box["height"] / 2 - 40)
    told = page.inner_text("#position")
    numbers = [float(n.replace(",", "")) for n in re.findall(r"-?[\d,]*\d(?:\.\d+)?", told)]
    wanted = np.array([x + 100 / zoom, y - 40 / zoom])
    np.testing.assert_allclose(numbers[2:], wanted, atol=3)
    np.testing.assert_allclose(numbers[:2], wanted * HE_MPP, atol=1)
    assert page.locator("#right .marks .cursor").count() == 1


def test_the_curtain_shows_h_and_e_before_and_ihc_behind_it(open_page):
    page = open_page()
    page.keyboard.press("2")
    settle(page)
    assert view(page)[3] == "swipe"

    def grounds():
        row = shot(page, "#stage")[20::40]
        at = [np.abs(row - colour).max(-1) <= 4 for colour in (PINK, GROUND)]
        return [np.nonzero(mask)[1] for mask in at]

    width = page.locator("#stage").bounding_box()["width"]
    he, ihc = grounds()
    assert he.max() < width / 2 < ihc.min()
    handle = page.locator("#curtain").bounding_box()
    page.mouse.move(handle["x"] + handle["width"] / 2, 400)
    page.mouse.down()
    page.mouse.move(0.3 * width, 400, steps=4)
    page.mouse.up()
    he, ihc = grounds()
    assert he.max() == pytest.approx(0.3 * width, abs=8)  # the line and its shadow lie between
    assert ihc.min() == pytest.approx(0.3 * width, abs=8)  # the line and its shadow lie between
    page.focus("#curtain")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#curtain", "aria-valuenow") == "32"


def test_opacity_mixes_both_slides(open_page):
    page = open_page()
    page.click("[data-mode='opacity']")
    settle(page)
    for share in (0.5, 0.3):
        page.fill("#opacity input", str(round(share * 100)))
        pixels = shot(page, "#stage")
        mixed = np.array(PINK) * (1 - share) + np.array(GROUND) * share
        assert (np.abs(pixels - mixed).max(-1) <= 4).mean() > 0.2
        # of one field, the dots of both slides lie over each other
        both = np.array(PURPLE) * (1 - share) + np.array(BROWN) * share
        found = dots(pixels, both, 20)
        np.testing.assert_allclose(found, expected_dots(page, pixels, POSITIVE), atol=1.0)


def test_the_dab_layer_shows_positive_dots_alone(open_page):
    page = open_page()
    page.keyboard.press("d")
    settle(page)
    pixels = shot(page, "#right .view")
    brown = dots(pixels, BROWN)
    np.testing.assert_allclose(brown, expected_dots(page, pixels, POSITIVE), atol=1.0)
    dark = (pixels.sum(-1) < 500) & (np.abs(pixels - BROWN).sum(-1) > 60) & (pixels.sum(-1) > 100)
    assert dark.mean() < 0.02  # rims, label and scale bar: no blue dots
    assert page.get_attribute("[data-layer='dab']", "aria-pressed") == "true"
    assert view(page)[4] == ["dab"]
    assert page.text_content("#right .label") == "Virtual IHC · Ki67, DAB"


def test_an_address_brings_its_view_back_in_a_window_of_another_size(open_page):
    first = open_page()
    first.click("[data-power='20']")
    first.keyboard.press("ArrowDown")
    first.keyboard.press("d")
    first.keyboard.press("3")
    settle(first)
    saved = view(first)
    page = open_page("/case/0/" + first.evaluate("location.hash"), 720, 500)
    assert view(page) == saved
    assert page.get_attribute("#stage", "data-mode") == "opacity"
    page.evaluate("location.hash = '#840,600,0.5,side'")
    settle(page)
    assert view(page) == (840, 600, 0.5, "side", [])
    check_panes(page)


@pytest.mark.parametrize(
    "address", ["#", "#1,2", "#a,b,c,side", "#1,2,0,side", "#1,2,1,nothing", "#%E0%A4%A,1,1,side"]
)
def test_an_address_that_says_no_view_shows_the_whole_field(open_page, address):
    page = open_page("/case/0/" + address)
    x, y, _, mode, flags = view(page)
    assert (x * HE_MPP, y * HE_MPP, mode, flags) == (FIELD[0] / 2, FIELD[1] / 2, "side", [])


def test_regions_that_could_not_be_read_are_hatched_at_their_place(open_page):
    page = open_page("/case/0/#1280,460,1,side")
    for pane in ("#left", "#right"):
        box = page.evaluate(
            "(it) => { const b = it.getBBox(); return [b.x, b.y, b.width, b.height] }",
            page.query_selector(f"{pane} .marks .region"),
        )
        view_box = page.locator(f"{pane} .view").bounding_box()
        middle = box[0] + box[2] / 2, box[1] + box[3] / 2
        np.testing.assert_allclose(middle, (view_box["width"] / 2, view_box["height"] / 2), atol=1.0)
        assert box[2:] == pytest.approx([160, 120], abs=0.5)


def test_a_tile_that_cannot_be_read_is_told_and_never_white(open_page):
    page = open_page("/case/1/#256,256,1,side", allowed="500|failed to load")
    trouble = page.locator("#right .trouble")
    trouble.wait_for()
    playwright.expect(trouble).to_contain_text("b.tif: the region 0, 0")
    playwright.expect(trouble).to_contain_text("cannot be read")
    pixels = shot(page, "#right .view")  # its middle is that of the damaged tile, at full size
    y, x = (side // 2 for side in pixels.shape[:2])
    assert pixels[y - 100 : y + 100, x - 100 : x + 100].min(-1).max() < 200
    assert page.get_attribute("#left .trouble", "hidden") is not None


def test_without_a_scale_there_is_no_magnification(open_page):
    page = open_page("/case/1/", allowed="500|failed to load")
    assert page.locator("[data-power]:enabled").count() == 0
    assert page.text_content("#left .scale .length").endswith(" px")
    assert "µm" not in page.inner_text("#magnification") + page.inner_text("#position")
    assert "lengths are in pixels" in page.inner_text("#notes")
    width, (length, _) = (
        page.locator("#left .scale .line").bounding_box()["width"],
        page.text_content("#left .scale .length").split(),
    )
    assert width == pytest.approx(float(length) * view(page)[2], rel=0.01)


def test_the_gallery_leads_to_each_result_and_back(open_page):
    page = open_page("/", allowed="500")
    page.wait_for_selector(".thumb .none")  # the damaged one, by its reason
    assert "b.tif: the region" in page.inner_text(".thumb .none")
    pixels = shot(page, ".card >> nth=0 >> .thumb >> nth=0")
    assert (np.abs(pixels - PINK).max(-1) <= 4).mean() > 0.4
    page.click(".card h2 a >> nth=0")
    settle(page)
    page.keyboard.press("n")
    page.wait_for_url("**/case/1/**")
    page.go_back()
    with page.expect_popup() as opened:
        page.click("#record")
    assert json.loads(opened.value.inner_text("body"))["method"] == "sdedit"


def test_every_control_has_a_name_and_can_be_reached_by_keys(open_page):
    page = open_page()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, a, input, [tabindex="0"]')]
            .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label')))
            .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    page.keyboard.press("?")
    assert page.locator("#keysbox").is_visible()
    page.keyboard.press("Escape")
    page.focus("#modes button >> nth=0")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    settle(page)
    assert view(page)[3] == "swipe"


@pytest.mark.parametrize("path", ["/..%2f..%2f..%2fetc/passwd", "/case/0/..%2fa.json", "/static/..%2fapp.py"])
def test_a_path_outside_the_served_files_is_refused(open_page, path):
    page = open_page("/", allowed="404|500")
    status = page.evaluate("(path) => fetch(path).then((answer) => answer.status)", path)
    assert status == 404


def test_the_page_may_not_ask_another_origin(open_page):
    page = open_page(allowed="Content Security Policy|Fetch API|Refused")
    refused = page.evaluate(
        """() => new Promise((resolve) => {
            document.addEventListener('securitypolicyviolation', (event) => resolve(event.effectiveDirective));
            fetch('http://127.0.0.1:9/').catch(() => setTimeout(resolve, 2000, 'asked'));
        })"""
    )
    assert refused == "connect-src"


def test_the_real_stain_and_the_uncertainty_are_shown_on_demand(browser, results, tmp_path):
    for name in ("x.png", "real.png"):
        write_image(tmp_path / name, dotted(IHC_MPP, GROUND, [(POSITIVE, BROWN)]))
    doubtful = np.zeros((30, 42, 3), np.uint8)
    doubtful[:, 21:] = 255  # the right half
    write_image(tmp_path / "x.uncertainty.png", doubtful)
    case = Case("x", results.parent / "a.ome.tif", tmp_path / "x.png", real=tmp_path / "real.png")
    with serving(create_app([case])) as port:
        page = browser.new_page(viewport={"width": 1000, "height": 600}, reduced_motion="reduce")
        page.goto(f"http://127.0.0.1:{port}/")
        settle(page)
        page.keyboard.press("r")
        page.keyboard.press("u")
        settle(page)
        assert view(page)[4] == ["real", "uncertainty"]
        assert page.text_content("#left .label") == "Real IHC"
        left, right = shot(page, "#left .view"), shot(page, "#right .view")
        np.testing.assert_allclose(dots(left, BROWN), expected_dots(page, left, POSITIVE), atol=1.0)
        certain = np.nonzero((np.abs(right - GROUND).max(-1) <= 4).any(0))[0]
        green = np.nonzero(((right[..., 1] - right[..., 0]) > 100).any(0))[0]
        middle = right.shape[1] / 2
        assert certain.max() <= middle + 15  # the map is coarse: a pixel of it is 20 of the screen
        assert green.min() >= middle - 15
        page.close()


def test_the_most_uncertain_square_of_a_report_is_the_greenest_on_the_screen(browser, tmp_path):
    spread = np.linspace(0, 0.2, 24).reshape(4, 6)
    spread[:, 0] = np.nan  # no tissue
    plane = Plane(6 * 64, 4 * 64, 1, 0.5, 64)
    write_uncertainty(tmp_path / "x.uncertainty.ome.tif", spread, plane, 0.2)
    write_image(tmp_path / "x.ome.tif", np.full((256, 384, 3), GROUND, np.uint8), 0.5)
    with serving(create_app([Case("x", None, tmp_path / "x.ome.tif")])) as port:
        page = browser.new_page(viewport={"width": 1000, "height": 600}, reduced_motion="reduce")
        page.goto(f"http://127.0.0.1:{port}/#192,128,1,side,uncertainty")
        settle(page)
        pixels = shot(page, "#right .view")
        page.close()
    top, left = pixels.shape[0] / 2 - 128, pixels.shape[1] / 2 - 192
    middles = np.array(
        [[pixels[int(top + 64 * r + 32), int(left + 64 * c + 32)] for c in range(6)] for r in range(4)]
    )
    np.testing.assert_allclose(middles[:, 0], np.broadcast_to(GROUND, (4, 3)), atol=3)
    share = np.nan_to_num(spread / 0.2)[..., None] * STRONGEST
    np.testing.assert_allclose(middles, (1 - share) * GROUND + share * DOUBT, atol=4)


def test_what_lies_outside_of_the_regions_shows_the_page_or_the_h_and_e(browser, results, tmp_path):
    ihc = np.full((600, 840, 3), 204, np.uint8)
    ihc[200:400, 300:600] = BROWN
    write_image(tmp_path / "x.ome.tif", ihc, IHC_MPP)
    ring = np.array([(300, 200), (600, 200), (600, 400), (300, 400)], float)
    write_features(tmp_path / "x.roi.geojson", [Feature("tumour", [[ring]])])
    facts = {"regions": "drawn.geojson"}
    case = Case("x", results.parent / "a.ome.tif", tmp_path / "x.ome.tif", facts=facts)
    with serving(create_app([case])) as port:
        page = browser.new_page(viewport={"width": 1000, "height": 600}, reduced_motion="reduce")
        page.goto(f"http://127.0.0.1:{port}/")
        settle(page)
        right = shot(page, "#right .view")
        page.goto(f"http://127.0.0.1:{port}/case/0/#840,600,0.4,opacity")
        page.reload()
        settle(page)
        page.keyboard.press("]")
        over = shot(page, "#stage")
        page.close()
    grey, brown = ((np.abs(right - colour).max(-1) <= 6).mean() for colour in ((204,) * 3, BROWN))
    assert grey < 0.002
    assert brown > 0.02
    assert (np.abs(over - PINK).max(-1) <= 6).mean() > 0.2  # the H&E, with nothing grey over it


def test_a_result_without_its_source_is_shown_alone(browser, results):
    facts = json.loads((results / "a.json").read_text())
    case = Case("a", None, results / "a.ome.tif", missing="its source is gone", facts=facts)
    with serving(create_app([case])) as port:
        page = browser.new_page(viewport={"width": 1000, "height": 600}, reduced_motion="reduce")
        page.goto(f"http://127.0.0.1:{port}/")
        settle(page)
        assert page.inner_text("#left .trouble") == "No H&E: its source is gone"
        assert (np.abs(shot(page, "#right .view") - GROUND).max(-1) <= 4).mean() > 0.3
        assert page.locator("#left .scale").is_hidden()
        assert [page.locator(f"{pane} .region").count() for pane in ("#left", "#right")] == [0, 1]
        page.close()
