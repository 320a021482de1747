"""The comparison: datasets made ready, rows, and a whole run that trains, translates, scores and goes on."""

import json
import math
import shutil

import numpy as np
import pytest

from miudiff.config import to_yaml
from miudiff.data.twin import at_scale, twin_region
from miudiff.errors import ConfigError, DataError
from miudiff.evaluation.statistics import interval
from miudiff.images import list_images, read_image, write_image
from miudiff.methods.presets import ABLATIONS
from miudiff.reproduce import reproduce
from miudiff.reproduce.budget import load_budget
from miudiff.reproduce.cases import prepare
from miudiff.reproduce.prepare import Settings
from miudiff.reproduce.published import DATASETS, REPORTED, reported_for
from miudiff.reproduce.rows import COMPARED, TABLES, chosen, rows_of
from miudiff.reproduce.scoring import score_once
from miudiff.reproduce.sources import Source, parse_sources
from miudiff.reproduce.tables import BASELINE, _cell
from miudiff.reproduce.training import run_config
from miudiff.reproduce.translating import Translated
from miudiff.runs import RunConfig
from small_set import bci, budget_file, options, tissue


@pytest.fixture
def budget(tmp_path):
    return budget_file(tmp_path / "tiny.yaml")


def ready(root, out, mpp=0.5, side=64, most=None, split="auto"):
    return prepare(Source("set", root, mpp), out, Settings(side, most, split), lambda line: None)


# Cases


def test_a_dataset_is_shrunk_divided_as_its_folders_say_and_its_scale_follows(tmp_path):
    case = ready(bci(tmp_path / "bci", size=(256, 200)), tmp_path / "out", side=128)
    assert (case.train, case.test, case.paired) == ((2, 2), ("00000_test_2+", "00001_test_2+"), True)
    assert case.mpp == pytest.approx(1.0)  # 256 pixels of 0.5 um became 128
    shapes = [image.shape for image in case.read("HE")]
    assert shapes == [(128, 96, 3)] * 2  # 200 became 100, cut to a multiple of 32
    assert any("official split" in note for note in case.notes)


def test_a_dataset_that_is_ready_is_not_made_again(tmp_path):
    root = bci(tmp_path / "bci")
    first = ready(root, tmp_path / "out")
    times = {p: p.stat().st_mtime_ns for p in first.images.rglob("*.png")}
    assert ready(root, tmp_path / "out") == first
    assert times == {p: p.stat().st_mtime_ns for p in first.images.rglob("*.png")}
    with pytest.raises(DataError, match="another 'side'"):
        ready(root, tmp_path / "out", side=96)


def test_training_images_without_a_partner_are_told_and_asp_leaves_them_out(tmp_path):
    root = bci(tmp_path / "bci")
    write_image(root / "IHC" / "train" / "00009_train_2+.png", tissue(96, 96, 3))
    case = ready(root, tmp_path / "out")
    assert (case.paired, case.train, case.alone()) == (True, (2, 3), ["00009_train_2+"])
    assert any("ASP trains on 2 pairs, all others on 3 images" in note for note in case.notes)
    budget = load_budget("smoke")
    kept = {
        task: run_config(case, task, budget, 0, "cpu", "fp32").data.sources[0].exclude
        for task in ("asp", "cut")
    }
    assert kept == {"asp": ("00009_train_2+.png",), "cut": ()}


def test_training_images_of_which_none_has_a_partner_are_no_pairs(tmp_path):
    root = bci(tmp_path / "bci")
    for path in list_images(root / "HE" / "train"):
        path.rename(path.with_name(path.name.replace("0000", "0005")))
    assert not ready(root, tmp_path / "out").paired


def test_a_scale_that_nobody_states_stays_unknown_and_is_told(tmp_path):
    case = ready(bci(tmp_path / "bci"), tmp_path / "out", mpp=None)
    assert case.mpp is None
    assert any("Scale unknown" in note for note in case.notes)


def test_images_of_two_scales_are_refused(tmp_path):
    root = bci(tmp_path / "bci")
    write_image(root / "IHC" / "train" / "00009_train_2+.png", tissue(192, 192, 3))
    with pytest.raises(DataError, match="a case has one scale"):
        ready(root, tmp_path / "out")


def test_a_test_pair_of_two_shapes_is_refused(tmp_path):
    root = bci(tmp_path / "bci")
    write_image(root / "IHC" / "test" / "00000_test_2+.png", tissue(64, 96, 3))
    with pytest.raises(DataError, match="a test pair has one size"):
        ready(root, tmp_path / "out", side=96, mpp=None)


def test_a_dataset_without_test_pairs_is_refused(tmp_path):
    root = bci(tmp_path / "bci")
    for path in list_images(root / "IHC" / "test"):
        path.unlink()
    with pytest.raises(DataError, match="no H&E/IHC pairs"):
        ready(root, tmp_path / "out")


def test_names_that_carry_the_slide_in_their_own_way_divide_by_slide(tmp_path):
    for slide in range(5):
        for field in range(2):
            for k, stain in enumerate(("HE", "IHC")):
                name = f"case{slide}-{field}.png"
                write_image(tmp_path / "set" / stain / name, tissue(96, 96, seed=10 * slide + field + 5 * k))
    source = Source("set", tmp_path / "set", 0.5)
    pattern = "^(?P<slide>case[0-9])-"

    def slides(settings, out):
        case = prepare(source, tmp_path / out, settings, lambda line: None)
        train = {path.stem.partition("-")[0] for path in list_images(case.images / "train" / "HE")}
        return case, train, {name.partition("-")[0] for name in case.test}

    case, train, test = slides(Settings(64, slide_pattern=pattern), "by-slide")
    assert not train & test
    assert any("divided by slide" in note for note in case.notes)
    case, train, test = slides(Settings(64), "by-patch")
    assert any("divided by patch" in note for note in case.notes)
    with pytest.raises(DataError, match="another 'slide_pattern'"):
        slides(Settings(64), "by-slide")
    with pytest.raises(DataError, match="no group 'slide'"):
        slides(Settings(64, slide_pattern="case"), "other")


def test_two_markers_are_two_cases(tmp_path):
    for marker in ("HER2", "Ki67"):
        for part in ("trainA", "trainB", "valA", "valB"):
            write_image(tmp_path / "mist" / marker / "TrainValAB" / part / "1A1_1_1.jpg", tissue(96, 96, 1))
    with pytest.raises(DataError, match="HER2, Ki67; one case has one marker"):
        ready(tmp_path / "mist", tmp_path / "out")


def test_the_twin_sets_tiles_cover_its_held_out_half(tmp_path):
    case = prepare(parse_sources(["twin"])[0], tmp_path, Settings(256), lambda line: None)
    for stain, image in zip(("HE", "IHC"), twin_region("test"), strict=True):
        assert np.array_equal(np.vstack(case.read(stain)), at_scale(image, 0.5))
    assert (case.mpp, case.marker, case.paired) == (0.5, "FHL2", True)


# Rows and what the paper says


def test_table_1_has_every_system_and_every_ablation_once():
    rows = rows_of("table1", "fast", None)
    names = [row.name for row in rows]
    assert names[:5] == list(COMPARED)
    assert len({row.slug for row in rows}) == len(rows)
    assert sorted({*TABLES["table1"], *TABLES["table2"]}) == sorted(ABLATIONS)


@pytest.mark.parametrize("table", list(TABLES))
@pytest.mark.parametrize("base", ["fast", "thorough", "paper"])
def test_every_row_of_every_table_is_valid_and_the_steps_are_the_budgets(table, base):
    for row in rows_of(table, base, 5):
        if row.config is not None:
            steps = getattr(row.config, "steps", None) or row.config.reverse.steps
            assert steps == 5


@pytest.mark.parametrize("table", list(TABLES))
@pytest.mark.parametrize("base", ["fast", "thorough", "paper"])
def test_no_two_rows_of_a_table_have_the_same_settings(table, base):
    ours = [row.config for row in rows_of(table, base, None) if row.method == "miu-diff"]
    assert all(ours.index(config) == i for i, config in enumerate(ours))
    names = [row.name for row in rows_of(table, base, None)]
    assert ("w/ PCL" in names) == (base == "fast" and table != "figure3")


def test_rows_are_chosen_by_name_and_an_unknown_name_is_told():
    rows = rows_of("table1", "fast", None)
    assert [row.name for row in chosen(rows, ("w/o MI", "CUT"))] == ["CUT", "w/o MI"]
    assert chosen(rows, ()) == rows
    with pytest.raises(ConfigError, match="--only 'GAN': no such row, expected one of CUT; ASP"):
        chosen(rows, ("GAN",))


def test_a_budget_of_more_steps_does_not_lengthen_a_presets_walk():
    fast = next(row for row in rows_of("table2", "fast", 200) if row.name == "MIU-Diff, fast")
    assert fast.config.reverse.steps == 8


def test_the_paper_reports_its_own_system_first_in_hist_and_iod():
    for dataset in DATASETS:
        rows = {name: REPORTED[dataset][name] for name in (*COMPARED, "MIU-Diff")}
        assert max(rows, key=lambda name: rows[name].hist) == "MIU-Diff"
        assert min(rows, key=lambda name: abs(rows[name].iod)) == "MIU-Diff"


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("bci", "BCI HER2"),
        ("MIST-HER2", "MIST HER2"),
        ("mist_ki67", "MIST Ki67"),
        ("twin", None),
        ("mist HER2", "MIST HER2"),
        ("mist ", None),
    ],
)
def test_a_cases_name_tells_which_of_the_papers_sets_it_is(name, dataset):
    assert reported_for(name) == dataset


# Budgets


@pytest.mark.parametrize("name", ["smoke", "mini", "paper"])
def test_every_budget_gives_every_learner_a_run(name, tmp_path):
    budget = load_budget(name)
    case = ready(bci(tmp_path / "bci", size=(256, 256)), tmp_path / "out", side=256)
    for task in ("score", "mi", "classifier", "cut", "asp"):
        config = run_config(case, task, budget, 0, "cpu", "fp32")
        assert isinstance(config, RunConfig)
        assert config.data.size == budget.training(task).tile
        assert to_yaml(config)


def test_the_paper_budget_is_the_papers():
    budget = load_budget("paper")
    assert (budget.side, budget.reverse_steps, budget.score.steps, budget.score.batch_size) == (
        256,
        None,
        40_000,
        4,
    )


def test_an_unknown_budget_is_told():
    with pytest.raises(ConfigError, match="mini, paper, smoke"):
        load_budget("huge")


# Whole runs


def rows_in(path):
    return [line.split("|")[1].strip() for line in path.read_text().splitlines() if line.startswith("|")]


def test_a_table_is_made_from_nothing_and_made_again_from_what_is_there(tmp_path, budget):
    said = []
    asked = options("table1", bci(tmp_path / "bci"), tmp_path / "out", budget)
    path = reproduce(asked, False, said.append)
    names = [row.name for row in rows_of("table1", "fast", 3)]
    assert rows_in(path)[2 : 3 + len(names)] == [BASELINE, *names]
    values = json.loads(path.with_suffix(".json").read_text())["cases"]["set"]
    assert all(len(seeds) == 2 for seeds in values.values())
    assert all(math.isfinite(seeds[0]["vif_source"]) for seeds in values.values())
    assert path.with_suffix(".html").exists()

    before = path.read_bytes()
    made = {
        p: p.stat().st_mtime_ns
        for p in (tmp_path / "out").rglob("*")
        if p.suffix in (".png", ".pt") and "images" not in p.parts
    }
    lost = tmp_path / "out" / "set" / "results" / "egsde" / "seed1" / "00000_test_2+.png"
    pixels = read_image(lost)
    lost.unlink()
    reproduce(asked, False, said.append)
    assert np.array_equal(read_image(lost), pixels)
    kept = [p for p in made if p != lost and p.parent != tmp_path / "out"]
    assert all(p.stat().st_mtime_ns == made[p] for p in kept)
    _same_but_for_seconds(before.decode(), path.read_text())


def _same_but_for_seconds(first, second):
    cut = lambda text: [line.rsplit("|", 2)[0] for line in text.splitlines()]  # noqa: E731
    assert cut(first) == cut(second)


def test_a_dataset_without_training_pairs_has_no_row_of_asp(tmp_path, budget):
    root = bci(tmp_path / "bci")
    for path in list_images(root / "HE" / "train"):
        path.rename(path.with_name(path.name.replace("0000", "0005")))
    said = []
    path = reproduce(options("figure3", root, tmp_path / "out", budget), False, said.append)
    assert any("no row ASP" in line for line in said)
    assert path.name == "figure3.png"
    assert not (tmp_path / "out" / "set" / "runs" / "asp-seed0").exists()


def test_a_plan_tells_every_run_and_row_and_trains_nothing(tmp_path, budget):
    said = []
    asked = options("table2", bci(tmp_path / "bci"), tmp_path / "out", budget)
    assert reproduce(asked, True, said.append) is None
    text = "\n".join(said)
    assert all(row.name in text for row in rows_of("table2", "fast", 3))
    assert "train score" in text
    assert "train mi" in text
    assert "in all about" in said[-1]
    assert not (tmp_path / "out" / "set" / "runs").exists()


def test_a_score_of_real_images_is_the_best_and_is_measured_once(tmp_path):
    case = ready(bci(tmp_path / "bci"), tmp_path / "out")
    shutil.copytree(case.images / "test" / "IHC", tmp_path / "made")
    made = Translated(tmp_path / "made", tuple(tmp_path / "made" / f"{n}.png" for n in case.test), 1.5)
    found = score_once(made, case)
    assert math.isnan(found["psnr_real"])  # infinite, which JSON does not know
    assert (found["vif_real"], found["hist_rgb256"]) == pytest.approx((1, 1))
    assert (found["iod_sum_1e7"], found["iod_percent"], found["seconds"]) == (0, 0, 1.5)
    scores = tmp_path / "made" / "scores.json"
    json.loads(scores.read_text(), parse_constant=pytest.fail)
    written = scores.stat().st_mtime_ns
    assert score_once(made, case)["vif_real"] == found["vif_real"]
    assert scores.stat().st_mtime_ns == written


def test_scores_of_other_images_or_of_other_measures_are_not_taken(tmp_path):
    case = ready(bci(tmp_path / "bci"), tmp_path / "out")
    shutil.copytree(case.images / "test" / "IHC", tmp_path / "made")
    made = Translated(tmp_path / "made", tuple(tmp_path / "made" / f"{n}.png" for n in case.test), 1.5)
    score_once(made, case)
    write_image(made.files[0], tissue(64, 64, 9))
    assert score_once(made, case)["vif_real"] < 0.99
    scores = json.loads((tmp_path / "made" / "scores.json").read_text())
    scores["of"]["measures"].remove("vif_real")
    scores["mean"]["vif_real"] = 7.0
    (tmp_path / "made" / "scores.json").write_text(json.dumps(scores))
    assert score_once(made, case)["vif_real"] < 0.99


def test_no_seed_is_refused(tmp_path, budget):
    with pytest.raises(ConfigError, match="--seeds: found 0"):
        reproduce(options("table1", bci(tmp_path / "bci"), tmp_path / "out", budget, seeds=0), False, print)


def cell(values):
    return _cell(interval(values), False).line


def test_a_cell_is_a_mean_with_its_interval_and_of_one_seed_a_mean():
    assert cell([0.5]) == "0.5"
    assert cell([2.0, 2.0, 2.0]) == "2 [2, 2]"
    assert cell([1.0, 3.0]).startswith("2 [")


def test_a_seed_without_a_value_is_counted_and_no_value_is_a_dash():
    assert cell([1.0, float("nan"), 3.0]).endswith("] (2 of 3 seeds)")
    assert cell([float("nan")]) == "–"
