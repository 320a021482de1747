"""Table 1 beside its baseline: the darkness of the H&E has the columns of stain truth and no others."""

import html
import re

import numpy as np
import pytest

from miudiff.evaluation.truth import SPANS
from miudiff.images import write_image
from miudiff.reproduce.cases import Case
from miudiff.reproduce.tables import BASELINE, COLUMNS, Finished, Result, write_table

SCORES = {
    "psnr_real": 15.0,
    "dab_dice_real": 0.5,
    "dab_r_8um_real": 0.4,
    "ki67_index_mae": 0.1,
    "darkness_dab_dice_real": 0.25,
    "darkness_dab_r_8um_real": 0.3,
}


def table(folder, marker, scores):
    """{row: {heading: cell}} of a table of one row, "ours", of two seeds."""
    tile = np.full((48, 48, 3), 200, np.uint8)
    for stain in ("HE", "IHC"):
        write_image(folder / "images" / "test" / stain / "a.png", tile)
    case = Case("set", folder, marker, 0.5, True, (), (1, 1), ("a",))
    found = Finished(case, {"ours": Result((tile,), (scores, scores))})
    path = write_table(folder / "out", "table1", "Table 1", [found], "")
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    head, *body = ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:1] + lines[2:])
    return {
        cells[0]: dict(zip(head[1:], cells[1:], strict=True)) for cells in body if len(cells) == len(head)
    }


def test_the_baseline_is_the_first_row_and_has_stain_truth_alone(tmp_path):
    rows = table(tmp_path, "HER2", SCORES)
    assert list(rows)[:2] == [BASELINE, "ours"]
    assert rows[BASELINE] == {"PSNR ↑": "–", "DAB Dice ↑": "0.25", "at 8 µm ↑": "0.3"}
    assert rows["ours"] == {
        "PSNR ↑": "15 [15, 15]",
        "DAB Dice ↑": "0.5 [0.5, 0.5]",
        "at 8 µm ↑": "0.4 [0.4, 0.4]",
    }
    assert 8 in SPANS


def on_page(folder):
    """Headings of the open and of the folded table of each case on the page."""
    page = (folder / "out" / "table1.html").read_text()
    tables = re.findall(r'aria-label="(set.*?)".*?<thead>(.*?)</thead>', page, re.S)
    return {title: re.findall(r'<th scope="col">(.*?)</th>', head)[1:] for title, head in tables}


@pytest.mark.parametrize(
    ("marker", "cells"), [("HER2", "nuclei Dice (H&amp;E) ↑"), ("Ki-67", "positive share off by ↓")]
)
def test_the_page_shows_the_foremost_columns_and_folds_the_others(tmp_path, marker, cells):
    rows = table(tmp_path, marker, dict.fromkeys(COLUMNS, 0.5))
    found = on_page(tmp_path)
    assert list(found) == ["set", "set: more measures"]
    assert found["set"][:6] == [
        "PSNR ↑",
        "VIF (H&amp;E) ↑",
        "Hist ↑",
        "DAB Dice ↑",
        "DAB r ↑",
        "IOD of each field, % off ↓",
    ]
    assert found["set"][6:] == [cells, "gradient r at 2 µm (H&amp;E) ↑", "sharpness → 1"]
    both = [html.unescape(name) for name in (*found["set"], *found["set: more measures"])]
    assert sorted(both) == sorted(rows["ours"])  # Markdown has them all, and none is lost
    page = (tmp_path / "out" / "table1.html").read_text()
    order = [page.index(mark) for mark in ("<table>", "<img", "<summary>set: more measures", "at 8 µm ↑")]
    assert order == sorted(order)  # pictures come before all that is folded
    assert '<span class="small">[0.5, 0.5]</span>' in page


def test_a_page_folds_nothing_where_all_columns_are_foremost(tmp_path):
    table(tmp_path, "HER2", {"psnr_real": 15.0, "dab_r_real": 0.5})
    assert on_page(tmp_path) == {"set": ["PSNR ↑", "DAB r ↑"]}


def test_without_the_darkness_there_is_no_baseline(tmp_path):
    assert BASELINE not in table(tmp_path, "HER2", {"psnr_real": 15.0})


@pytest.mark.parametrize(("marker", "shown"), [("Ki-67", True), ("ER", True), ("HER2", False), (None, False)])
def test_the_share_of_positive_cells_is_a_column_for_nuclear_markers(tmp_path, marker, shown):
    assert ("positive share off by ↓" in table(tmp_path, marker, SCORES)["ours"]) == shown
