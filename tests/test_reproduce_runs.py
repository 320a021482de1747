"""Whole comparisons with tiny networks: layouts, given models, tables, and going on after a stop in each stage."""

import json
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import miudiff.reproduce.prepare as preparing
from miudiff.checkpoints import find_states
from miudiff.data.twin import twin_region
from miudiff.diffusion.score import ScoreModel, build_unet
from miudiff.errors import ConfigError, NonFiniteError
from miudiff.images import list_images, read_image, to_tensor, to_uint8
from miudiff.methods.miu_diff import MIUDiff, MIUDiffConfig
from miudiff.methods.model import load_model, save_model
from miudiff.methods.sdedit import SDEdit
from miudiff.noise import NoiseKey
from miudiff.normalisation import HEStains, Normaliser
from miudiff.reproduce import Options
from miudiff.reproduce.rows import rows_of
from miudiff.reproduce.tables import BASELINE
from small_set import TINY, bci, budget_file, make, mist, options, plain
from tiny import CPU, NETWORK, tiny_model, tiny_palette


@pytest.fixture
def budget(tmp_path):
    return budget_file(tmp_path / "tiny.yaml", seeds=1)


def settings(out, row, seed=0):
    return json.loads((out / "set" / "results" / row / f"seed{seed}" / "settings.json").read_text())[
        "settings"
    ]


def with_model(folder, budget, *only):
    """Rows of a BCI case that takes the model in `folder/model`."""
    models = (f"set={folder / 'model'}",)
    return options("table1", bci(folder / "bci"), folder / "out", budget, models=models, only=only)


# Layouts


def test_mists_layout_is_tested_on_its_val_part_and_never_trained_on_it(tmp_path, budget):
    root = mist(tmp_path / "mist")
    path, _ = make(options("table1", root, tmp_path / "out", budget, only=("CUT", "ASP", "SDEdit")))
    case = json.loads((tmp_path / "out" / "set" / "case.json").read_text())
    assert (case["marker"], case["paired"], case["train"]) == ("HER2", True, [2, 2])
    assert case["test"] == ["11M2100001_0_1"]  # one image, by the budget
    images = tmp_path / "out" / "set" / "images"
    held_out = {p.read_bytes() for p in (images / "test").rglob("*.png")}
    assert not held_out & {p.read_bytes() for p in (images / "train").rglob("*.png")}
    text = path.read_text()
    assert "test part 'val'" in text
    assert "train and val share slides" in text


def test_a_dataset_whose_marker_nobody_names_keeps_its_palette(tmp_path, budget):
    root = plain(tmp_path / "plain")
    make(options("table1", root, tmp_path / "out", budget, only=("MIU-Diff, fast",)))
    card = load_model(tmp_path / "out" / "set" / "model").card
    assert card.markers == ("IHC",)
    used = settings(tmp_path / "out", "miu-diff-fast-fast")
    assert used["marker"] == "IHC"
    assert used["palette"] == card.palette["IHC"].model_dump(mode="json")


def test_a_classifier_learns_from_images_smaller_than_the_budgets_tile(tmp_path):
    large = {**TINY["classifier"], "tile": 128}
    large["settings"] = {"network": {**large["settings"]["network"], "size": 128, "attention": [64]}}
    budget = budget_file(tmp_path / "tiny.yaml", classifier=large, seeds=1)
    make(options("table1", bci(tmp_path / "bci"), tmp_path / "out", budget, only=("EGSDE",)))
    network = json.loads((tmp_path / "out" / "set" / "model" / "classifier" / "config.json").read_text())
    assert (network["size"], network["attention"]) == (64, [32])


# Given models


def test_the_twin_set_takes_a_model_that_is_given_and_says_so(tmp_path, budget, monkeypatch):
    monkeypatch.setattr(preparing, "twin_region", lambda region: [i[:128, :128] for i in twin_region(region)])
    monkeypatch.setattr(preparing, "TWIN_TILE", 64)
    save_model(tmp_path / "model", tiny_model(markers=("FHL2",), mpp=1.0))
    asked = Options(
        "table1",
        ("twin",),
        tmp_path / "out",
        budget,
        models=(f"twin={tmp_path / 'model'}",),
        only=("SDEdit", "MIU-Diff, fast"),
        device="cpu",
        precision="fp32",
    )
    path, _ = make(asked)
    assert not (tmp_path / "out" / "twin" / "runs").exists()
    text = path.read_text()
    assert f"use the model {tmp_path / 'model'} as it is" in text
    assert "trained at 1 um/px, these images have 0.5" in text
    assert "4 test images" in text


def test_a_given_model_without_a_curve_gets_that_of_the_training_images(tmp_path, budget):
    save_model(tmp_path / "model", tiny_model(markers=("HER2",), mpp=None))
    asked = with_model(tmp_path, budget, "MIU-Diff, fast")
    make(asked)
    assert settings(tmp_path / "out", "miu-diff-fast-fast")["palette"] is not None
    assert not load_model(tmp_path / "model").card.palette  # the user's own folder is left alone


def test_another_curve_makes_the_rows_anew_that_use_it_and_no_other(tmp_path, budget):
    model = tiny_model(markers=("HER2",), mpp=None)
    asked = with_model(tmp_path, budget, "SDEdit", "MIU-Diff, fast")
    times = []
    for bright in (0.1, 0.5):
        curve = tiny_palette((bright, 0.3, 0.3))
        save_model(
            tmp_path / "model",
            replace(model, card=model.card.model_copy(update={"palette": {"HER2": curve}})),
        )
        make(asked)
        results = tmp_path / "out" / "set" / "results"
        times.append(
            [
                next((results / row / "seed0").glob("*.png")).stat().st_mtime_ns
                for row in ("sdedit", "miu-diff-fast-fast")
            ]
        )
    assert times[0][0] == times[1][0]
    assert times[0][1] < times[1][1]


def test_h_and_e_is_brought_to_the_dyes_of_a_given_palette_for_miu_diff_alone(tmp_path, budget):
    """The tiny palette's dyes are no dyes of the set, so the same model without normalisation makes another picture."""
    model = tiny_model(markers=("HER2",), mpp=None)
    given = replace(model, card=model.card.model_copy(update={"palette": {"HER2": tiny_palette()}}))
    save_model(tmp_path / "model", given)
    make(with_model(tmp_path, budget, "SDEdit", "MIU-Diff, fast"))
    results = tmp_path / "out" / "set" / "results"
    assert "dyes" not in json.loads((results / "sdedit" / "seed0" / "settings.json").read_text())["settings"]
    row = results / "miu-diff-fast-fast" / "seed0"
    recorded = json.loads((row / "settings.json").read_text())["settings"]
    own = HEStains.model_validate(recorded["dyes"])
    assert own != tiny_palette().dyes
    name = next(row.glob("*.png")).name
    he = read_image(tmp_path / "out" / "set" / "images" / "test" / "HE" / name)
    section = Normaliser(own, tiny_palette().dyes)
    model = load_model(tmp_path / "model")
    config = MIUDiffConfig.model_validate(recorded["config"])
    method = MIUDiff(model.for_marker("HER2"), model.estimator, config, CPU, tiny_palette())
    key = NoiseKey(0, f"set/{Path(name).stem}")
    made = to_uint8(method.translate(to_tensor(section.he(he)), [key]).detach())[0]
    assert np.abs(section.ihc(made).astype(int) - read_image(row / name)).max() <= 2


@pytest.mark.parametrize("given", [False, True])
def test_ilvr_on_a_network_that_learned_no_variance_takes_a_fixed_one_and_says_so(tmp_path, given):
    torch.manual_seed(0)
    unet = build_unet(NETWORK.model_copy(update={"learned_variance": False}))
    save_model(tmp_path / "model", replace(tiny_model(("HER2",)), score=ScoreModel(unet)))
    network = {**TINY["score"]["settings"]["network"], "learned_variance": False}
    changed = {**TINY["score"]["settings"], "network": network}
    budget = budget_file(tmp_path / "b.yaml", seeds=1, score={**TINY["score"], "settings": changed})
    models = (f"set={tmp_path / 'model'}",) if given else ()
    asked = options("table1", bci(tmp_path / "bci"), tmp_path / "out", budget, only=("ILVR",), models=models)
    told = "ILVR takes beta for its variance (fixed_large): the score network learned none"
    assert any(told in line for line in make(asked, plan=True)[1])
    path, _ = make(asked)
    assert told in path.read_text()
    assert settings(tmp_path / "out", "ilvr")["config"]["variance"] == "fixed_large"
    assert settings(tmp_path / "out", "ilvr")["config"]["steps"] == 3  # the rest is the row's


def test_a_score_model_begins_with_the_weights_that_are_given(tmp_path, budget):
    save_model(tmp_path / "model", tiny_model())
    asked = options(
        "table1",
        bci(tmp_path / "bci"),
        tmp_path / "out",
        budget,
        only=("SDEdit",),
        init=tmp_path / "model",
    )
    path, _ = make(asked)
    assert f"began with the weights of {tmp_path / 'model'}" in path.read_text()
    run = (tmp_path / "out" / "set" / "runs" / "score" / "run.yaml").read_text()
    assert str(tmp_path / "model" / "unet") in run


# Tables


def rows_in(text, heading):
    table = text.split(f"### {heading}\n")[1].split("###")[0]
    return [[c.strip() for c in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]


def test_table_2_has_its_rows_and_the_papers_beside_them(tmp_path, budget):
    root, out = bci(tmp_path / "bci"), tmp_path / "out"
    asked = replace(options("table2", root, out, budget), data=(f"bci={root}",), mpp=("bci=0.5",))
    path, _ = make(asked)
    text = path.read_text()
    header, _, baseline, *body = rows_in(text, "bci")
    assert baseline[0] == BASELINE
    assert header[:5] == ["row", "PSNR ↑", "VIF (H&E) ↑", "Hist ↑", "IOD x1e7 → 0"]
    assert [row[0] for row in body] == [row.name for row in rows_of("table2", "fast", 3)]
    assert [row[0] for row in body[4:]] == ["t0'=80", "t0'=10", "S=500", "S=300", "S=100"]
    paper = rows_in(text, "The paper reports, BCI HER2")[2:]
    assert ["S=100", "", "0.784", "0.224", "-2.218"] in paper
    assert "MIST" not in text
    assert "Budget tiny; 1 seed" in text
    assert "1 test images" in text
    json.loads(path.with_suffix(".json").read_text(), parse_constant=pytest.fail)
    page = path.with_suffix(".html").read_text()
    own, folded = page[: page.index("<details>")], page[page.index("<details>") :]
    assert own.index("<h2>bci</h2>") < own.index("<table>") < own.index("<img")
    assert own.count("<img") == 2 + len(body)  # H&E, real IHC and each row
    assert "The paper reports" not in own
    assert "The paper reports, BCI HER2" in folded
    assert re.findall(r'<td class="number"><strong>', own)


def test_figure_3_has_a_place_for_each_system_where_a_case_lacks_one(tmp_path, budget):
    pairs, loose = bci(tmp_path / "pairs"), bci(tmp_path / "loose")
    for path in list_images(loose / "HE" / "train"):
        path.rename(path.with_name(path.name.replace("0000", "0005")))
    asked = replace(
        options("figure3", pairs, tmp_path / "out", budget, only=("CUT", "ASP")),
        data=(f"pairs={pairs}", f"loose={loose}"),
        mpp=(),
    )
    path, said = make(asked)
    assert any("loose: no row ASP" in line for line in said)
    sheet = read_image(path)
    margin, step = 34, 264  # `contact_sheet`'s, of H&E, CUT, ASP and the real IHC
    assert sheet.shape == (margin + 2 * step, margin + 4 * step, 3)
    asp = sheet[:, margin + 2 * step : margin + 3 * step - 8]
    assert asp[margin : margin + 256].std() > 0
    assert (asp[margin + step : margin + step + 256] == 255).all()


def test_a_table_of_rows_that_cannot_be_made_is_refused(tmp_path, budget):
    root = bci(tmp_path / "bci")
    for path in list_images(root / "HE" / "train"):
        path.rename(path.with_name(path.name.replace("0000", "0005")))
    with pytest.raises(ConfigError, match="no row is left of ASP"):
        make(options("table1", root, tmp_path / "out", budget, only=("ASP",)))


def test_rows_by_name_do_not_replace_the_whole_table(tmp_path, budget):
    asked = options("table2", bci(tmp_path / "bci"), tmp_path / "out", budget)
    whole, _ = make(asked)
    before = whole.read_bytes()
    part, _ = make(replace(asked, only=("S=100", "S=100")))
    assert part != whole
    assert whole.read_bytes() == before
    assert [row[0] for row in rows_in(part.read_text(), "set")[2:]] == [BASELINE, "S=100"]


def test_every_diffusion_row_of_a_seed_draws_the_same_noise(tmp_path, budget, monkeypatch):
    seen = {}
    for kind in (MIUDiff, SDEdit):

        def watched(self, he, keys, _kind=kind, _old=kind.translate):
            if not keys[0].name.startswith("matched"):  # the palette's
                seen.setdefault(_kind, []).append(list(keys))
            return _old(self, he, keys)

        monkeypatch.setattr(kind, "translate", watched)
    asked = options(
        "table1", bci(tmp_path / "bci"), tmp_path / "out", budget, only=("SDEdit", "w/o MI"), seeds=2
    )
    make(asked)
    assert seen[MIUDiff] == seen[SDEdit]
    first, second = (keys[0] for keys in seen[SDEdit])
    assert (first.seed, second.seed) == (0, 1)
    assert first.name == second.name == "set/00000_test_2+"


def test_a_table_is_said_line_by_line_and_a_cases_marker_finds_the_papers_numbers(tmp_path, budget):
    root, out = mist(tmp_path / "MIST"), tmp_path / "out"
    asked = options("table1", root, out, budget, only=("CUT",), mpp=())
    path, said = make(replace(asked, data=(f"mist={root}",)))
    assert not any("\n" in line for line in said)
    text = path.read_text()
    assert set(text.splitlines()) <= set(said)
    assert "The paper reports, MIST HER2" in text
    assert "Ki67" not in text


# Stopped and gone on with


def test_stopped_in_training_the_same_command_goes_on_to_the_same_images(tmp_path):
    cut = {**TINY["cut"], "steps": 4}
    budget = budget_file(tmp_path / "tiny.yaml", seeds=1, cut=cut)
    root = bci(tmp_path / "bci")
    asked = options("table1", root, tmp_path / "out", budget, only=("CUT",))
    said = []

    def stop(line):
        said.append(line)
        if line.startswith("step 2/"):
            signal.raise_signal(signal.SIGINT)

    from miudiff.reproduce import reproduce

    with pytest.raises(KeyboardInterrupt):
        reproduce(asked, False, stop)
    folder = tmp_path / "out" / "set" / "runs" / "cut-seed0"
    assert 0 < find_states(folder)[-1][0] < 4
    _, said = make(asked)
    assert any(line.startswith("goes on after step") for line in said)
    make(replace(asked, out=tmp_path / "other"))
    made = [
        out / "set" / "results" / "cut" / "seed0" / "00000_test_2+.png"
        for out in (asked.out, tmp_path / "other")
    ]
    assert np.array_equal(*(read_image(path) for path in made))


def test_stopped_in_translation_what_is_there_stays(tmp_path, monkeypatch):
    budget = budget_file(tmp_path / "tiny.yaml", seeds=1, images=3)
    asked = options("table1", bci(tmp_path / "bci", test=3), tmp_path / "out", budget, only=("SDEdit",))
    monkeypatch.setattr("miudiff.reproduce.translating.BATCH", 1)
    old, calls = SDEdit.translate, []

    def stopped(self, he, keys):
        calls.append(keys)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return old(self, he, keys)

    monkeypatch.setattr(SDEdit, "translate", stopped)
    with pytest.raises(KeyboardInterrupt):
        make(asked)
    folder = tmp_path / "out" / "set" / "results" / "sdedit" / "seed0"
    (there,) = folder.glob("*.png")
    assert not (folder / "scores.json").exists()
    before = there.stat().st_mtime_ns
    make(asked)
    assert len(calls) == 4
    assert there.stat().st_mtime_ns == before
    assert len(list(folder.glob("*.png"))) == 3


def test_stopped_while_weights_are_written_they_are_written_again(tmp_path, budget):
    asked = options("table1", bci(tmp_path / "bci"), tmp_path / "out", budget, only=("CUT", "SDEdit"))
    make(asked)
    runs = tmp_path / "out" / "set" / "runs"
    # So that weights that are there are whole; a generator's folder appears whole (test_model_folder).
    weights = runs / "score" / "weights"
    newest = max((p for p in weights.rglob("*") if p.is_file()), key=lambda p: p.stat().st_mtime_ns)
    assert newest.suffix == ".safetensors"
    for task in ("cut-seed0", "score"):
        shutil.rmtree(runs / task / "weights")
    make(asked)
    assert all(list((runs / task / "weights").rglob("*.safetensors")) for task in ("cut-seed0", "score"))


def test_more_seeds_add_to_what_is_there(tmp_path, budget):
    asked = options("table1", bci(tmp_path / "bci"), tmp_path / "out", budget, only=("CUT", "SDEdit"))
    make(asked)
    results = tmp_path / "out" / "set" / "results"
    before = {p: p.stat().st_mtime_ns for p in results.rglob("*.png")}
    path, _ = make(replace(asked, seeds=2))
    assert all(p.stat().st_mtime_ns == time for p, time in before.items())
    assert len(list(results.rglob("*.png"))) == 4
    assert "2 seeds: mean" in path.read_text()
    path, _ = make(asked)  # fewer again: one seed's means
    values = json.loads(path.with_suffix(".json").read_text())["cases"]["set"]
    assert all(len(seeds) == 1 for seeds in values.values())


def test_a_network_that_gives_a_nan_makes_no_image(tmp_path, budget, monkeypatch):
    asked = options("table1", bci(tmp_path / "bci"), tmp_path / "out", budget, only=("SDEdit",))
    monkeypatch.setattr(SDEdit, "translate", lambda self, he, keys: torch.full_like(he, float("nan")))
    with pytest.raises(NonFiniteError, match="SDEdit, seed 0: the network gave a NaN"):
        make(asked)
    assert not list((tmp_path / "out" / "set" / "results").rglob("*.png"))


def test_a_plan_counts_what_is_there(tmp_path, budget):
    asked = options("table1", bci(tmp_path / "bci"), tmp_path / "out", budget, only=("CUT", "SDEdit"))
    make(asked)
    _, said = make(replace(asked, seeds=2), plan=True)
    text = "\n".join(said)
    assert "train score        done" in text
    assert text.count("train cut") == 2
    assert text.count("    1 images") == 2
