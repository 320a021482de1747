"""The one look of all pages, their order from above to below, and the curtain, in a browser where there is one."""

import io
import json
import re
import shutil
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from miudiff.demo import _page as demo_page
from miudiff.evaluation.panel import FOREMOST, MEASURES
from miudiff.evaluation.plot import AXES, BESIDE, dots
from miudiff.evaluation.statistics import Interval, interval
from miudiff.images import write_image
from miudiff.pages.page import BANNER, CURTAIN, STYLE, write_page
from miudiff.pages.parts import Cell, Commands, Dot, Figure, Folded, Notes, Plot, Rows, Table, markdown_table
from miudiff.pages.pictures import data_uri
from miudiff.reproduce.tables import best
from miudiff.slide_report.make import make_report
from miudiff.viewer.app import STATIC

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
RED, GREEN, BLUE = (200, 30, 30), (30, 200, 30), (30, 30, 200)


def flat(colour, height=40, width=60):
    return np.full((height, width, 3), colour, np.uint8)


@pytest.fixture
def path(tmp_path):
    """A page with a part of each kind."""
    pictures = [Figure(name, "", flat(c)) for name, c in (("H&E", RED), ("Virtual", GREEN), ("Real", BLUE))]
    dot = Dot("Sharpness", "0.8", "0.7 to 0.9", 0.8, 0.7, 0.9, 0.0, 2.0, 1.0, "as the real stain")
    write_page(
        tmp_path / "page.html",
        "A page",
        "A lead.",
        [
            Rows("Rows", [("first", pictures), ("second", pictures)], "Drag."),
            Rows("Tiles", [("", pictures)], curtain=False),
            Plot("Plot", "", [dot]),
            Commands("Next", [("miudiff demo", "does it")]),
            Table("Table", ["a", "b"], [["x", Cell("1.5", True, True)], ["a long name of a row", 2.0]]),
            Folded("More", [Notes("Notes", ["a note"]), Table("More", ["a"], [["inner"]])]),
        ],
    )
    return tmp_path / "page.html"


@pytest.fixture
def page(path):
    return path.read_text(encoding="utf-8")


def order(page, *texts):
    """Whether texts follow each other in the body."""
    places = [page.index(text, page.index("<body>")) for text in texts]
    assert places == sorted(places), dict(zip(texts, places, strict=True))


# The look


def colours(scheme):
    """The variables of the light or the dark scheme, as hexadecimal colours."""
    light, dark = re.findall(r":root \{(.*?)\}", STYLE, re.S)
    found = dict(re.findall(r"--([\w-]+): (#\w{6})", light))
    return found | (dict(re.findall(r"--([\w-]+): (#\w{6})", dark)) if scheme == "dark" else {})


def luminance(colour):
    levels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "paper"),
    [(ink, paper) for ink in ("ink", "soft", "mark") for paper in ("ground", "panel", "raised")]
    + [("warn", paper) for paper in ("warn-ground", "ground", "panel")]
    + [("ink", "pressed")],
)
def test_text_has_the_contrast_of_wcag_aa(scheme, ink, paper):
    found = colours(scheme)
    dark, bright = sorted(luminance(found[name]) for name in (ink, paper))
    assert (bright + 0.05) / (dark + 0.05) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_surrounds_a_picture_is_grey(scheme):
    for name in ("ground", "panel", "raised", "line"):
        assert len({colours(scheme)[name][i : i + 2] for i in (1, 3, 5)}) == 1, name


def test_a_page_holds_one_style_and_it_is_the_viewers(page):
    assert re.findall(r"<style>\n(.*?)</style>", page, re.S) == [STYLE]
    assert "viewer.css" not in STATIC
    stage = (resources.files("miudiff.viewer") / "static" / "stage.css").read_text()
    assert "--ground:" not in stage


# What a page is made of


def test_parts_stand_in_the_order_given_below_the_one_banner(page):
    order(page, "<h1>", "A lead.", BANNER, "Rows", "Tiles", "Plot", "Next", ">Table<", "<details>", "a note")
    assert page.count(BANNER) == 1


def test_folded_parts_are_closed_and_their_title_is_said_once(page):
    assert "<details>\n<summary>More</summary>" in page
    assert page.index("inner") > page.index("<details>")
    assert "<h2>More</h2>" not in page
    assert "<h2>Notes</h2>" in page


def test_the_best_cell_is_bold_on_the_page_and_in_markdown(page):
    assert page.count("<strong>1.5</strong>") == 1
    assert "| x | **1.5** |" in markdown_table(["a", "b"], [["x", Cell("1.5", True, True)]])


def test_a_page_without_rows_runs_no_script_and_one_with_rows_this_one_alone(page, tmp_path):
    assert re.findall(r"<script>(.*?)</script>", page, re.S) == [CURTAIN]
    write_page(tmp_path / "plain.html", "t", "l", [Notes("Notes", ["a"])])
    plain = (tmp_path / "plain.html").read_text()
    assert "script" not in re.sub(r"<style>.*?</style>", "", plain, flags=re.S)


def test_every_picture_has_a_text_that_tells_it_from_the_others(page):
    alts = re.findall(r'<img [^>]*alt="([^"]*)"', page)
    assert alts[:3] == ["H&amp;E, first", "Virtual, first", "Real, first"]
    assert all(alts)


def test_a_photo_is_a_jpeg_and_smaller():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert data_uri(noise, photo=True).startswith("data:image/jpeg;")
    assert len(data_uri(noise, photo=True)) < len(data_uri(noise))


# Plots


def test_a_dot_and_its_interval_lie_at_their_values_on_the_axis(page):
    assert 'cx="40.0%"' in page
    assert '<line class="whisker" x1="35.0%" x2="45.0%"' in page
    assert '<line class="target" x1="50.0%"' in page
    assert ">1: as the real stain</text>" in page


def test_the_foremost_five_are_drawn_and_others_stand_in_for_what_is_missing():
    assert tuple(AXES)[:5] == FOREMOST
    assert set(AXES) <= set(MEASURES)
    titles = [axis.title for axis in AXES.values()]
    summary = {key: interval([0.2, 0.4]) for key in AXES}
    assert [dot.title for dot in dots(summary)] == titles[:5]
    del summary["dab_dice_real"]
    assert [dot.title for dot in dots(summary)] == titles[1:6]
    summary["iod_field_error"] = Interval(np.inf, None, None, 0, 2)
    assert [dot.title for dot in dots(summary)] == [titles[1], *titles[3:7]]
    assert dots({"vif_source": interval([0.3])}) == []


def test_an_axis_holds_all_that_is_drawn_on_it():
    (dot,) = dots({"hist_rgb256": Interval(-0.2, -0.31, 0.1, 9)})
    assert dot.start == pytest.approx(-0.4)
    assert dot.share(-0.31) > 0
    (dot,) = dots({"iod_field_error": Interval(130.0, 80.0, 240.0, 9)})
    assert dot.end == 300
    assert (dot.target, dot.share(0)) == (0, 0)
    (dot,) = dots({"psnr_real": Interval(16.0, None, None, 1)})
    assert (dot.low, dot.target, dot.value) == (None, None, "16 dB")


def test_the_darkness_of_the_he_is_a_hollow_mark_beside_the_measures_of_dab(tmp_path):
    summary = {key: interval([0.2, 0.4]) for key in FOREMOST}
    assert {dot.beside for dot in dots(summary)} == {None}
    summary |= {"darkness_dab_dice_real": interval([0.5]), "darkness_dab_r_real": interval([-0.15])}
    drawn = dots(summary)
    assert [dot.beside for dot in drawn] == [0.5, -0.15, None, None, None]
    assert drawn[1].share(-0.15) > 0
    undefined = summary | {"darkness_dab_dice_real": interval([np.nan])}
    assert [dot.beside for dot in dots(undefined)] == [None, -0.15, None, None, None]
    write_page(tmp_path / "both.html", "t", "l", [Plot("Plot", "", drawn, BESIDE)])
    write_page(tmp_path / "none.html", "t", "l", [Plot("Plot", "", drawn[2:], BESIDE)])
    both, none = ((tmp_path / name).read_text() for name in ("both.html", "none.html"))
    assert re.findall(r'<circle class="beside" cx="([\d.]+)%"', both) == [
        "50.0",
        f"{drawn[1].share(-0.15):.2f}".rstrip("0"),
    ]
    assert both.count('<span class="hollow">') == 1
    assert 'class="hollow"' not in none
    assert 'class="beside"' not in none


def test_no_text_of_an_axis_lies_on_another():
    def dot(end, target):
        return Dot("", "", "", 0.5, None, None, 0.0, end, target, "as the real stain")

    assert dot(2.0, 1.0).ticks == [
        (0, "start", "0"),
        (100, "end", "2"),
        (50, "middle", "1: as the real stain"),
    ]
    assert dot(20.0, 1.0).ticks == [(100, "end", "20"), (5, "start", "1: as the real stain")]
    assert dot(1.0, 1.0).ticks == [(0, "start", "0"), (100, "end", "1: as the real stain")]
    assert dot(30.0, None).ticks == [(0, "start", "0"), (100, "end", "30")]


# The best of a column


def of(mean, low=None, high=None):
    return Interval(mean, low, high, 1 if low is None else 3)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("psnr_real", [False, False, True]),
        ("iod_sum_1e7", [False, True, False]),
        ("iod_percent", [False, True, False]),
        ("sharpness_real", [False, True, False]),
        ("seconds", [False, False, False]),
        ("psnr_source", [False, False, False]),
    ],
)
def test_the_best_of_a_column_is_on_its_measures_better_side(key, expected):
    assert best(key, [of(-3.0), of(1.0), of(2.0)]) == expected


def test_what_the_interval_does_not_tell_from_the_best_is_the_best_too():
    column = [of(3.0, 2.5, 3.5), of(2.6, 2.2, 2.7), of(2.0, 1.5, 2.4), of(np.nan)]
    assert best("psnr_real", column) == [True, True, False, False]
    assert best("psnr_real", [of(2.0), of(2.0), of(1.0)]) == [True, True, False]
    assert best("psnr_real", [of(np.nan), of(2.0)]) == [False, False]  # nothing to be better than


# The demo's page


def test_the_demo_begins_with_its_row_and_numbers_come_last(tmp_path):
    names = ["he", "virtual_ihc", "real_ihc", "dab_virtual", "dab_real", "trajectory"]
    scores = {"dab_dice_real": 0.75, "dab_r_8um_real": 0.5, "darkness_dab_r_8um_real": 0.25}
    demo_page(tmp_path / "report.html", {name: flat(GREEN) for name in names}, scores, "fast", 0, 1.0)
    page = (tmp_path / "report.html").read_text()
    order(
        page,
        "a Dice of 0.75",
        BANNER,
        ">H&amp;E<",
        ">Virtual IHC<",
        ">Real IHC<",
        "<code>miudiff",
        "<table>",
    )


# In a browser


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: it drives the browser")
    if CHROMIUM is None:
        pytest.skip("no chromium in the path: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    contexts = []

    def open_page(path, width=1200, height=900, **more):
        contexts.append(browser.new_context(viewport={"width": width, "height": height}, **more))
        page = contexts[-1].new_page()
        complaints = []
        page.on("console", lambda line: complaints.append(line.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri())
        assert complaints == []
        return page

    yield open_page
    for context in contexts:
        context.close()


def seen(page, x, y):
    """The colour of a place of the first frame, given in shares of its width and height."""
    shot = np.asarray(Image.open(io.BytesIO(page.locator(".frame").first.screenshot())).convert("RGB"))
    return shot[int(y * shot.shape[0]), int(x * shot.shape[1])].astype(int)


def is_colour(found, colour):
    return np.abs(found - colour).max() < 8


def test_dragging_a_curtain_uncovers_the_next_picture(open_page, path):
    page = open_page(path)
    assert is_colour(seen(page, 0.8, 0.2), RED)
    box = page.locator(".frame").first.bounding_box()
    middle = box["y"] + 0.8 * box["height"]
    page.mouse.move(box["x"] + 0.9 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.4 * box["width"], middle)
    page.mouse.up()
    assert is_colour(seen(page, 0.2, 0.2), RED)
    assert is_colour(seen(page, 0.8, 0.2), GREEN)
    page.mouse.move(box["x"] + 0.9 * box["width"], middle)  # without a button it stays
    assert is_colour(seen(page, 0.8, 0.2), GREEN)
    assert float(page.locator("input[type=range]").first.input_value()) == pytest.approx(40, abs=0.1)


def test_a_curtain_is_moved_by_keys_and_named(open_page, path):
    page = open_page(path)
    slider = page.get_by_role("slider", name="Curtain: how much is H&E, first, the rest is Virtual, first")
    slider.focus()
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    assert is_colour(seen(page, 0.8, 0.2), GREEN)
    page.keyboard.press("End")
    assert is_colour(seen(page, 0.8, 0.2), RED)


def test_a_finger_moves_a_curtain(open_page, path):
    page = open_page(path, 390, 844, has_touch=True, is_mobile=True)
    box = page.locator(".frame").first.bounding_box()
    page.touchscreen.tap(box["x"] + 0.3 * box["width"], box["y"] + 0.8 * box["height"])
    assert is_colour(seen(page, 0.6, 0.2), GREEN)


def test_only_rows_have_curtains_and_the_last_picture_has_none(open_page, path):
    page = open_page(path)
    assert page.locator(".row .curtain").count() == 4
    assert page.locator(".tiles .curtain").count() == 0


def test_without_scripts_pictures_stand_side_by_side(open_page, path):
    page = open_page(path, java_script_enabled=False)
    assert page.locator("input").count() == 0
    boxes = [page.locator(".row img").nth(number).bounding_box() for number in range(3)]
    assert len({box["y"] for box in boxes}) == 1
    assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_the_page_in_its_scheme_and_scrolls_tables_alone(open_page, path, scheme):
    page = open_page(path, 390, 844, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(int(level) for level in re.findall(r"\d+", ground)) > 384) == (scheme == "light")


def test_a_reports_index_is_as_large_as_its_caveat_and_stands_beside_it(open_page, tmp_path):
    place = (slice(40, 300), slice(40, 400))
    ihc = np.full((400, 600, 3), 240, np.uint8)
    ihc[place] = np.random.default_rng(0).integers(60, 200, (*ihc[place].shape[:2], 3))
    write_image(tmp_path / "a.ome.tif", ihc, 0.5)
    record = {"miudiff": "0", "source": "gone.tif", "mpp": 0.5, "width": 600, "height": 400}
    (tmp_path / "a.json").write_text(json.dumps(record | {"model": {"marker": "Ki67"}}))
    page = open_page(make_report(tmp_path / "a.ome.tif", print))
    number, caveat = (page.locator(".index strong").nth(index) for index in (0, 1))
    assert "Ki-67 index" in page.locator(".index p").first.inner_text()
    assert caveat.inner_text() == "Not a measurement"
    sizes = [each.evaluate("(it) => getComputedStyle(it).fontSize") for each in (number, caveat)]
    assert sizes[0] == sizes[1]
    assert number.bounding_box()["y"] == caveat.bounding_box()["y"]
    page.emulate_media(media="print")
    assert page.locator("details dd").first.is_visible()  # a page on paper cannot be unfolded


def test_a_table_of_nine_measures_fits_a_screen_and_its_names_stay_while_a_small_one_scrolls(
    tmp_path, open_page
):
    header = ["row", "PSNR ↑", *["a measure of some words ↑"] * 8]
    rows = [["MIU-Diff without refinement", *[Cell("0.475", True, True, "[0.403, 0.545]")] * 9]]
    write_page(tmp_path / "wide.html", "t", "l", [Table("Wide", header, rows)])
    size = "() => { const e = document.querySelector('.wide'); return e.scrollWidth - e.clientWidth; }"
    assert open_page(tmp_path / "wide.html", width=1440).evaluate(size) == 0
    page = open_page(tmp_path / "wide.html", width=390)
    assert page.evaluate(size) > 0
    page.locator(".wide").evaluate("e => e.scrollLeft = 300")
    name, box = page.locator("td").first.bounding_box(), page.locator(".wide").bounding_box()
    assert name["x"] == pytest.approx(box["x"], abs=1)
    assert name["width"] < box["width"] / 2
    assert (
        page.evaluate(
            "document.elementFromPoint(40, document.querySelector('td').getBoundingClientRect().y + 9).textContent"
        )
        == rows[0][0]
    )
