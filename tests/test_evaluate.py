"""`miudiff evaluate` as a user meets it: files, numbers, and one line and exit code 2 for what is wrong."""

import base64
import csv
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sewar.full_ref import vifp
from skimage.data import immunohistochemistry
from skimage.metrics import peak_signal_noise_ratio

from miudiff.checkpoints import save_weights
from miudiff.cli import main
from miudiff.evaluation.evaluate import Settings, evaluate_folders
from miudiff.evaluation.panel import MEASURES
from miudiff.evaluation.stain import integrated_optical_density
from miudiff.images import resize, write_image
from miudiff.pages.page import BANNER

NAMES = ("s1_a", "s1_b", "s2_c")


def evaluate(*words):
    """The exit code of `miudiff evaluate` in one process."""
    with pytest.raises(SystemExit) as left:
        main(["evaluate", *[str(word) for word in words], "--workers", "1"])
    return left.value.code


@pytest.fixture
def images():
    """Pieces of scikit-image's IHC picture by folder and name, [64, 80, 3]."""
    picture = np.asarray(immunohistochemistry())
    return {
        folder: {
            name: np.ascontiguousarray(picture[90 * row : 90 * row + 64, 120 * column : 120 * column + 80])
            for row, name in enumerate(NAMES)
        }
        for column, folder in enumerate("GRS")
    }


@pytest.fixture
def folders(tmp_path, images, monkeypatch):
    """Folders G, R and S in the working folder; one image of R is a JPEG that is called .png."""
    monkeypatch.chdir(tmp_path)
    for folder, content in images.items():
        for name, image in content.items():
            write_image(tmp_path / folder / f"{name}.png", image)
    Image.fromarray(images["R"]["s1_b"]).save(tmp_path / "R" / "s1_b.png", "JPEG", quality=95)
    return tmp_path


def read(path):
    """Strict JSON: no NaN, no Infinity."""

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def test_the_means_are_those_of_independent_programs(folders):
    assert evaluate("G", "R", "--source", "S", "--json", "scores.json") == 0
    result = read(folders / "scores.json")
    files = [[pixels(folders / folder / f"{name}.png") for folder in "GRS"] for name in NAMES]
    expected = {
        "psnr_real": np.mean([peak_signal_noise_ratio(r, g, data_range=255) for g, r, _ in files]),
        "psnr_source": np.mean([peak_signal_noise_ratio(s, g, data_range=255) for g, _, s in files]),
        "vif_source": np.mean([vifp(s, g) for g, _, s in files]),
        "vif_real": np.mean([vifp(r, g) for g, r, _ in files]),
        "hist_rgb256": np.mean([hist(g, r) for g, r, _ in files]),
        "iod_sum_1e7": sum(iod(g) - iod(r) for g, r, _ in files) / 1e7,
    }
    for key, value in expected.items():
        assert result["mean"][key] == pytest.approx(value, rel=1e-6), key
    assert result["counts"] == {"generated": 3, "reference": 3, "source": 3, "scored": 3, "problems": 0}
    assert set(result["mean"]) == set(result["interval"]) == set(result["measures"])
    assert result["interval"]["vif_source"]["n"] == 3
    assert not (folders / "evaluation").exists()


def hist(image, reference):
    pairs = [
        [np.histogram(pixels[..., channel], 256, (0, 256))[0] for pixels in (image, reference)]
        for channel in range(3)
    ]
    return np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs])


def iod(image):
    return integrated_optical_density(resize(image, round(1024 * 64 / 80), 1024))


def test_every_file_is_written_and_agrees(folders, capsys):
    (folders / "G" / "translation.json").write_text("{}")
    assert evaluate("G", "R", "--source", "S", "--nucleus", "12", "--tissue-only", "--out", "o") == 0
    printed = capsys.readouterr()
    assert "\\n" not in printed.out  # the table is printed as lines
    assert not printed.err
    result = read(folders / "o" / "scores.json")
    with (folders / "o" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == list(NAMES)
    for key in ("vif_source", "ki67_index_real", "hist_lab256_tissue", "iod_generated_cells"):
        values = [float(row[key]) for row in rows]
        assert result["mean"][key] == pytest.approx(np.mean(values))
        assert [image[key] for image in result["images"]] == pytest.approx(values)
    markdown, page = ((folders / "o" / name).read_text() for name in ("scores.md", "report.html"))
    for text in (markdown, page):
        assert BANNER in text
        assert "3 images scored, all that the folders hold" in text
        assert "translation.json" in text
        assert all(key in text for key in result["mean"])
    assert f"{result['mean']['vif_source']:.4g}" in printed.out
    titles = re.findall(r"<h2>(Worst|Best) case</h2>", page)
    assert titles == ["Worst", "Best"]
    assert sum(name in page for name in NAMES) == 3


def test_the_page_begins_with_cases_and_a_plot_and_folds_the_numbers(folders):
    assert evaluate("G", "R", "--source", "S", "--nucleus", "12", "--out", "o") == 0
    page = (folders / "o" / "report.html").read_text()
    marks = ["Worst case</h2>", "Best case</h2>", "How near to the real stain", "<details>", "<table>"]
    places = [page.index(mark) for mark in marks]
    assert places == sorted(places)
    assert page.index("<img") < page.index("<table>")
    assert page[: page.index("<details>")].count("<svg") == 5
    open_parts = page[: page.index("<details>")]
    assert (
        re.findall(r"<h3>(H&amp;E|Generated|Real)</h3>", open_parts) == ["H&amp;E", "Generated", "Real"] * 2
    )
    assert page.count(BANNER) == 1
    assert open_parts.count('class="beside"') == 1  # without a scale there is no dab_r_real
    assert open_parts.count("The darkness of the H&amp;E alone") == 2  # the legend, and the mark's own text


def ranked(page):
    """The names of the worst and the best cases in their order, and the words and the value behind each."""
    return re.findall(r'<p class="name"><strong>(.*?): (.*?) ([-.\d]+)</strong>', page)


def test_cases_are_ranked_by_the_place_of_their_dab_in_plain_words(folders):
    assert evaluate("G", "R", "--out", "o") == 0
    page = (folders / "o" / "report.html").read_text()
    dice = {row["name"]: row["dab_dice_real"] for row in read(folders / "o" / "scores.json")["images"]}
    worst, *others = sorted(dice, key=dice.get)
    colours = {row["name"]: row["hist_rgb256"] for row in read(folders / "o" / "scores.json")["images"]}
    assert worst != min(colours, key=colours.get)  # else this could not tell the two rankings apart
    assert ranked(page)[0] == (worst, "DAB in the same places (Dice)", f"{dice[worst]:.3g}")
    assert "By DAB in the same places (Dice)." in page
    assert others[-1] == ranked(page)[1][0]


def test_without_any_dab_colours_rank_and_with_some_the_others_are_in_no_ranking(folders, capsys):
    greys = {"G": (200, 210, 220), "R": (205, 205, 225)}
    for folder, levels in greys.items():
        for name, level in zip(NAMES, levels, strict=True):
            grey = np.full((64, 80, 3), level, np.uint8)
            grey[:, : level // 10] -= 60
            write_image(folders / folder / f"{name}.png", grey)
    assert evaluate("G", "R", "--out", "o") == 0
    page = (folders / "o" / "report.html").read_text()
    assert read(folders / "o" / "scores.json")["mean"]["dab_dice_real"] is None
    assert {words for _, words, _ in ranked(page)} == {"Colours (histogram correlation)"}
    brown = np.full((64, 80, 3), 240, np.uint8)
    brown[:, :40] = (120, 80, 50)
    for folder in greys:
        write_image(folders / folder / "s1_a.png", brown)
    assert evaluate("G", "R", "--out", "o") == 0
    page = (folders / "o" / "report.html").read_text()
    assert ranked(page) == [("s1_a", "DAB in the same places (Dice)", "1")]
    assert "2 images are in no ranking" in page


def test_a_large_case_is_shown_at_512_pixels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wide = np.asarray(Image.fromarray(immunohistochemistry()).resize((800, 600)))
    for folder in "GR":
        write_image(tmp_path / folder / "a.png", wide)
    assert evaluate("G", "R", "--out", "o") == 0
    page = (tmp_path / "o" / "report.html").read_text()
    (first, *_) = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert Image.open(io.BytesIO(base64.b64decode(first))).size == (512, 384)


def test_names_match_whatever_the_endings(folders, images):
    (folders / "G" / "s1_a.png").unlink()
    write_image(folders / "G" / "s1_a.ome.tif", images["G"]["s1_a"])
    (folders / "R" / "s2_c.png").rename(folders / "R" / "s2_c.JPG")
    assert evaluate("G", "R", "--json", "scores.json") == 0
    assert [image["name"] for image in read(folders / "scores.json")["images"]] == list(NAMES)


def test_a_folder_beside_itself_has_no_infinity_in_its_json(folders):
    assert evaluate("R", "R", "--source", "R", "--json", "scores.json") == 0
    result = read(folders / "scores.json")
    assert result["mean"]["psnr_real"] is None
    assert result["interval"]["psnr_real"] == {"low": None, "high": None, "n": 0, "left_out": 3}
    assert result["mean"]["vif_source"] == result["mean"]["vif_real"] == pytest.approx(1)
    assert result["mean"]["iod_sum_1e7"] == 0
    assert result["mean"]["hist_rgb256"] == pytest.approx(1)


def test_without_a_scale_cells_are_left_out_and_that_is_said(folders, capsys):
    assert evaluate("G", "R", "--json", "scores.json") == 0
    assert not [key for key in read(folders / "scores.json")["mean"] if "cells" in key or "ki67" in key]
    assert "give --mpp" in capsys.readouterr().out


def test_micrometres_and_pixels_state_one_nucleus():
    assert Settings(mpp=0.5).diameter() == Settings(nucleus=16).diameter() == 16
    assert Settings().diameter() is None


def break_missing(root, images):
    (root / "R" / "s1_a.png").unlink()


def break_left_over(root, images):
    write_image(root / "S" / "more.png", images["S"]["s1_a"])


def break_size(root, images):
    write_image(root / "S" / "s1_a.png", images["S"]["s1_a"][:50])


def break_unreadable(root, images):
    whole = (root / "G" / "s1_a.png").read_bytes()
    (root / "G" / "s1_a.png").write_bytes(whole[: len(whole) // 2])


def break_text(root, images):
    (root / "G" / "s1_a.png").write_text("no image")


def break_grey(root, images):
    Image.fromarray(images["R"]["s1_a"][..., 0]).save(root / "R" / "s1_a.png")


def break_twice(root, images):
    write_image(root / "G" / "s1_a.jpg", images["G"]["s1_a"])


def break_small(root, images):
    for folder in "GRS":
        write_image(root / folder / "s1_a.png", images[folder]["s1_a"][:40])


@pytest.mark.parametrize(
    ("damage", "kind", "line"),
    [
        (break_missing, "unmatched", r"s1_a\.png: has no partner in R, expected s1_a with"),
        (break_left_over, "unmatched", r"more\.png: has no partner in G"),
        (break_size, "size", r"S.s1_a\.png: 80 x 50 pixels, but G.s1_a\.png has 80 x 64, expected one size"),
        (break_unreadable, "unreadable", r"G.s1_a\.png: damaged or cut off"),
        (break_text, "unreadable", r"G.s1_a\.png: is not an image"),
        (break_grey, "unreadable", r"R.s1_a\.png: a grey image \(L\), expected RGB"),
        (break_twice, "ambiguous", r"G: s1_a\.jpg and s1_a\.png share one name"),
        (break_small, "size", r"G.s1_a\.png: 80 x 40 pixels, expected at least 41 a side"),
    ],
)
def test_a_problem_is_named_and_counted_and_nothing_is_scored(folders, images, capsys, damage, kind, line):
    damage(folders, images)
    (folders / "scores.json").write_text('{"mean": {"vif_source": 1}}')  # an earlier run's
    assert evaluate("G", "R", "--source", "S", "--json", "scores.json", "--out", "o") == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(re.search(line, each) for each in lines), lines
    assert all(each.startswith("miudiff: ") for each in lines)
    assert "nothing was scored" in lines[-1]
    assert kind in lines[-1]
    result = read(folders / "scores.json")
    assert result["mean"] is None
    assert result["counts"]["problems"] == len(result["problems"]) == len(lines) - 1
    assert result["problems"][0]["kind"] == kind
    assert not (folders / "o").exists()


def test_all_problems_are_told_at_once(folders, images, capsys):
    break_text(folders, images)
    (folders / "R" / "s1_b.png").unlink()
    write_image(folders / "R" / "s2_c.png", images["R"]["s2_c"][:50])
    assert evaluate("G", "R", "--out", "o") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert "3 problems (1 unmatched, 1 unreadable, 1 size)" in lines[-1]


def test_the_rest_is_scored_on_request_and_never_as_if_it_were_all(folders, images, capsys):
    break_text(folders, images)
    assert evaluate("G", "R", "--skip-bad", "--json", "scores.json", "--out", "o") == 3
    assert "only the other 2 images were scored" in capsys.readouterr().err
    result = read(folders / "scores.json")
    assert result["counts"] == {"generated": 3, "reference": 3, "scored": 2, "problems": 1}
    assert [image["name"] for image in result["images"]] == ["s1_b", "s2_c"]
    for name in ("scores.md", "report.html"):
        text = (folders / "o" / name).read_text()
        assert "1 names NOT scored" in text
        assert "is not an image" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["empty", "R"], "empty: no images in it"),
        (["G", "nowhere"], "nowhere: no such folder"),
        (["G", "R", "--mpp", "0.5", "--nucleus", "16"], "give one"),
        (["G", "R", "--mpp", "0"], "--mpp 0: expected a number above 0"),
        (["G", "R", "--nucleus", "-3"], "--nucleus -3"),
        (["G", "R", "--encoder", "none.pth"], "none.pth: no such file"),
        (["G", "R", "--features", "none.npy", "none.npy"], "none.npy: cannot be read"),
        (["G", "R", "--features", "a.npy", "b.npy"], "a.npy (3) and b.npy (4): two lengths"),
        (["G", "R", "--slide-pattern", "("], "is not a regular expression"),
        (["G", "R", "--slide-pattern", "a{99999999999}"], "is not a regular expression"),
        (["G", "R", "--slide-pattern", "s1"], "has no group"),
        (["G", "R", "--slide-pattern", "(?P<slide>s1)"], "finds no slide in s2_c"),
    ],
)
def test_a_wrong_word_is_one_line(folders, capsys, words, message):
    (folders / "empty").mkdir()
    np.save(folders / "a.npy", np.zeros((3, 3)))
    np.save(folders / "b.npy", np.zeros((3, 4)))
    assert evaluate(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def record(folder, marker, images, source="he"):
    """What `miudiff translate` writes beside its results."""
    runs = [{"miudiff": "1", "marker": marker, "seed": 0}]
    entries = {f"{name}.png": {"source": f"{source}/{name}.png", "run": 0} for name in images}
    (folder / "translation.json").write_text(json.dumps({"notice": "x", "runs": runs, "images": entries}))


@pytest.mark.parametrize("reference", ["HER2", "HER2/TrainValAB/valB", "bci_her2/IHC"])
def test_a_reference_of_another_marker_is_warned_of_wherever_the_scores_stand(folders, capsys, reference):
    shutil.copytree("R", reference)
    record(folders / "G", "Ki-67", NAMES)
    assert evaluate("G", reference, "--out", "o") == 0
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(
        f"miudiff: warning: G: shows Ki67 (translation.json), but {reference} is of HER2 by"
    )
    warning = line.removeprefix("miudiff: warning: ")
    assert warning not in printed.out
    assert warning in read(folders / "o" / "scores.json")["notes"]
    for name in ("scores.md", "report.html"):
        assert warning in (folders / "o" / name).read_text()


def test_the_marker_of_file_names_is_compared_and_the_same_marker_in_any_spelling_is_silent(folders, capsys):
    for folder in "GR":
        for name in NAMES:
            (folders / folder / f"{name}.png").rename(folders / folder / f"{name}_her2.png")
    names = [f"{name}_her2" for name in NAMES]
    record(folders / "G", "Her-2", names)
    assert evaluate("G", "R", "--json", "scores.json") == 0
    assert not capsys.readouterr().err
    record(folders / "G", "Ki67", names)
    assert evaluate("G", "R", "--json", "scores.json") == 0
    assert "R is of HER2 by its name (s1_a_her2.png)" in capsys.readouterr().err


def test_records_of_two_markers_are_not_compared(folders, capsys):
    record(folders / "G", "Ki67", NAMES)
    record(folders / "R", "HER2", NAMES)
    assert evaluate("G", "R", "--json", "scores.json") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "G/s1_a.png: shows Ki67 (G/translation.json)" in line
    assert "R/s1_a.png shows HER2" in line
    record(folders / "R", "Ki67", NAMES)
    assert evaluate("G", "R", "--json", "scores.json") == 0
    assert "virtual stains themselves" in capsys.readouterr().err


def test_the_record_of_a_slide_states_its_marker_too(folders, images, capsys):
    (folders / "G" / "s1_a.png").unlink()
    write_image(folders / "G" / "s1_a.ome.tif", images["G"]["s1_a"])
    content = {"notice": "x", "source": "a.svs", "model": {"marker": "Ki67"}}
    (folders / "G" / "s1_a.json").write_text(json.dumps(content))
    (folders / "R").rename("ER")
    assert evaluate("G", "ER", "--json", "scores.json") == 0
    assert "shows Ki67 (s1_a.json), but ER is of ER" in capsys.readouterr().err


def test_the_images_own_he_is_no_true_ihc(folders, capsys):
    record(folders / "G", "Ki67", NAMES, source=folders / "S")
    assert evaluate("G", "S") == 2
    assert "S/s1_a.png: is the H&E that G/s1_a.png was made from" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[]",
        "\xff",
        '{"runs": 5}',
        '{"runs": [], "images": []}',
        '{"runs": [{}], "images": {"s1_a.png": {"run": 0.0}}}',
        '{"runs": [{}], "images": {"s1_a.png": {"run": 1}}}',
        '{"runs": [{}], "images": {"s1_a.png": {"run": -1}}}',
        '{"runs": [{}], "images": {"s1_a.png": {"run": true}}}',
        '{"runs": [5], "images": {"s1_a.png": {"run": 0}}}',
        '{"runs": [{}], "images": {"s1_a.png": []}}',
    ],
)
def test_a_record_that_is_none_is_one_warning_and_the_images_are_scored(folders, capsys, text):
    (folders / "G" / "translation.json").write_bytes(text.encode("latin-1"))
    assert evaluate("G", "R", "--json", "scores.json") == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("miudiff: warning: G/translation.json: ")


def test_odd_values_in_a_record_say_nothing(folders, capsys):
    for run in ({"marker": 5}, {"marker": ""}, {}):
        content = {"runs": [run], "images": {"s1_a.png": {"run": 0, "source": "a\0b"}, "other": {"run": 0}}}
        (folders / "G" / "translation.json").write_text(json.dumps(content))
        assert evaluate("G", "R", "--json", "scores.json") == 0
    assert not capsys.readouterr().err


def test_what_is_measured_at_a_length_needs_the_scale_and_not_the_size_of_a_nucleus(folders, capsys):
    assert evaluate("G", "R", "--source", "S", "--nucleus", "12", "--out", "o") == 0
    assert "no gradients at 2 um: they need --mpp" in capsys.readouterr().out
    without = read(folders / "o" / "scores.json")["mean"]
    assert evaluate("G", "R", "--source", "S", "--mpp", "0.5", "--out", "o") == 0
    printed = capsys.readouterr().out
    assert "they need --mpp" not in printed
    assert printed.index("dab_dice_real") < printed.index("psnr_real")  # in the order of the headlines
    found = read(folders / "o" / "scores.json")["mean"]
    at_a_length = {
        key
        for key in found
        if re.search(r"_\d+um_", key) or key in ("sharpness_real", "dab_r_real", "darkness_dab_r_real")
    }
    assert {
        "dab_r_8um_real",
        "darkness_dab_r_8um_real",
        "gradient_r_2um_source",
        "sharpness_real",
    } <= at_a_length
    assert set(found) - set(without) == at_a_length


def test_a_correlation_over_few_images_is_no_headline(folders, images, capsys):
    assert evaluate("G", "R", "--nucleus", "12", "--out", "o") == 0
    printed = capsys.readouterr().out
    assert "pearson" not in printed
    assert "Correlations over images are of n = 3: below 5 they say nothing" in printed
    result = read(folders / "o" / "scores.json")
    assert result["mean"]["iod_pearson"] is not None
    assert any("n = 3" in note for note in result["notes"])
    headlines = (folders / "o" / "scores.md").read_text().partition("## Every key")[0]
    assert "pearson" not in headlines
    for folder in "GR":
        for number in (1, 2):
            write_image(folders / folder / f"more{number}.png", images[folder]["s1_a"])
    assert evaluate("G", "R", "--out", "o") == 0
    printed = capsys.readouterr().out
    assert "iod_pearson" in printed
    assert "Correlations" not in printed


@pytest.mark.parametrize(
    "name", ["caf\udce9", "a\nb", "-x", "--help", "a|b<c>", "x" * 251, "\x1b[31m", "S1_A"]
)
def test_any_file_name_is_scored_and_written(folders, name):
    for folder in "GRS":
        shutil.copy(folders / folder / "s1_a.png", folders / folder / f"{name}.png")
    assert evaluate("G", "R", "--source", "S", "--out", "o") == 0
    told = [image["name"] for image in read(folders / "o" / "scores.json")["images"]]
    assert name in [*told, *(each.replace("\\udce9", "\udce9") for each in told)]
    for file in ("scores.csv", "scores.md", "report.html"):
        (folders / "o" / file).read_text(encoding="utf-8")


def test_what_is_no_file_is_listed_and_never_opened(folders, capsys):
    for folder in "GR":
        os.mkfifo(folders / folder / "pipe.png")
        (folders / folder / "folder.png").mkdir()
    os.mkfifo(folders / "G" / "translation.json")
    os.mkfifo(folders / "G" / "s1_a.json")
    assert evaluate("G", "R", "--json", "scores.json") == 0
    ignored = read(folders / "scores.json")["ignored"]
    assert {"G/pipe.png", "R/pipe.png", "G/folder.png", "G/translation.json"} <= set(ignored)
    assert len(ignored) == len(set(ignored))
    (folders / "R" / "s1_a.png").unlink()
    os.mkfifo(folders / "R" / "s1_a.png")
    assert evaluate("G", "R", "--json", "scores.json") == 2
    assert "G/s1_a.png: has no partner in R" in capsys.readouterr().err
    for words in (["--features", "G/pipe.png", "G/pipe.png"], ["--encoder", "G/pipe.png"]):
        assert evaluate("G", "R", *words) == 2


def test_a_slide_pattern_draws_slides(folders):
    assert evaluate("G", "R", "--slide-pattern", "(?P<slide>s[0-9])", "--json", "scores.json") == 0
    result = read(folders / "scores.json")
    values = [image["vif_real"] for image in result["images"]]
    found = result["interval"]["vif_real"]
    assert sorted([found["low"], found["high"]]) == pytest.approx(sorted([np.mean(values[:2]), values[2]]))
    assert "the 2 slides" in " ".join(result["notes"])


def test_features_give_distances_with_a_warning(folders):
    random = np.random.default_rng(0)
    np.save(folders / "g.npy", random.normal(size=(20, 4)))
    np.save(folders / "r.npy", random.normal(size=(20, 4)) + 3)
    assert evaluate("G", "R", "--features", "g.npy", "r.npy", "--json", "scores.json") == 0
    result = read(folders / "scores.json")
    assert result["mean"]["fid_features_real"] == pytest.approx(36, rel=0.3)
    assert result["mean"]["kid_features_real_1e3"] > 1000
    notes = " ".join(result["notes"])
    assert "below 500" in notes
    assert "20 generated and 20 true images, not of those scored" in notes


def test_an_encoder_gives_distances(folders):
    width = 64
    shapes = {
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "cls_token": (1, 1, width),
        "pos_embed": (1, 5, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    save_weights(folders / "vit.safetensors", {name: torch.randn(shape) for name, shape in shapes.items()})
    assert evaluate("G", "G", "--encoder", "vit.safetensors", "--device", "cpu", "--json", "scores.json") == 0
    assert read(folders / "scores.json")["mean"]["fid_vit_real"] == pytest.approx(0, abs=1e-6)


def test_several_processes_give_what_one_gives(folders):
    found = [
        evaluate_folders(folders / "G", folders / "R", settings=Settings(workers=workers)).scores
        for workers in (1, 2)
    ]
    assert repr(found[0]) == repr(found[1])  # NaN equals nothing


def test_the_documentation_explains_every_key():
    text = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    endings = ("", "_native", "_cells", "_real_cells", "_native_cells", "_native_real_cells", "_tissue")
    missing = [key for key in MEASURES if not any(f"`{key.removesuffix(end)}`" in text for end in endings)]
    assert not missing
