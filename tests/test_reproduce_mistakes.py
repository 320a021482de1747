"""What may be wrong with a comparison's data, models, budget and folder: one line, exit code 2, before anything is trained."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tifffile
import torch

from miudiff.cli import main
from miudiff.errors import ConfigError, DataError
from miudiff.gan import Generator, GeneratorConfig
from miudiff.images import list_images, write_image
from miudiff.methods.generator import GeneratorModel, save_generator_model
from miudiff.methods.model import Card, load_model, save_model
from miudiff.naming import SHIPPED
from miudiff.reproduce.cases import prepare
from miudiff.reproduce.prepare import Settings
from miudiff.reproduce.sources import Source, parse_sources
from small_set import NETWORK, TINY, bci, budget_file, make, mist, options, plain, tissue
from tiny import tiny_model, tiny_palette

SILENT = lambda line: None  # noqa: E731


def run(*words):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return left.value.code


def ready(root, out, mpp=0.5, side=64, split="auto"):
    return prepare(Source("set", root, mpp), out, Settings(side, None, split), SILENT)


@pytest.fixture
def asked(tmp_path):
    """Options of a table of one row that needs the score model alone."""
    budget = budget_file(tmp_path / "tiny.yaml")
    return options("table1", bci(tmp_path / "bci"), tmp_path / "out", budget, only=("SDEdit",), seeds=1)


# What is asked for


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("bci", "expected twin, or NAME=ROOT"),
        ("a/b=.", "NAME is a folder's, without slashes"),
        ("..=.", "without slashes or a leading dot"),
        ("=.", "expected twin, or NAME=ROOT"),
        ("bci=/no/such", "no such folder"),
        ("twin=.", "the name twin is that of the set that ships"),
    ],
)
def test_a_source_that_is_none_is_told(word, told):
    with pytest.raises(DataError, match=told):
        parse_sources([word])


def test_a_file_in_place_of_a_datasets_folder_is_told(tmp_path):
    (tmp_path / "set.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match="is a file, expected the folder"):
        parse_sources([f"a={tmp_path / 'set.zip'}"])


def test_two_datasets_of_one_name_are_refused(tmp_path):
    with pytest.raises(DataError, match="given twice"):
        parse_sources([f"a={tmp_path}", f"A={tmp_path}"])
    with pytest.raises(DataError, match="--data twin: given twice"):
        parse_sources(["twin", "twin"])


def test_a_scale_and_a_model_belong_to_the_source_of_their_name(tmp_path):
    data = [f"a={tmp_path}", f"b={tmp_path}", "twin"]
    a, b, twin = parse_sources(data, ["b=0.46"], ["b=mine", "twin=other"])
    assert (a.mpp, a.model) == (None, None)
    assert (b.mpp, b.model) == (0.46, "mine")
    assert (twin.mpp, twin.model) == (0.5, "other")
    assert parse_sources(["twin"])[0].model == SHIPPED


@pytest.mark.parametrize(
    ("scale", "told"),
    [
        ("c=0.2", "--mpp c=0.2: no dataset of this name, expected one of a"),
        ("twin=0.2", "no dataset of this name"),
        ("0.46", "expected NAME=VALUE, as in"),
        ("a=x", "expected NAME=number, as in a=0.46"),
        ("a=0", "between 0.05 and 20"),
        ("a=-1", "between 0.05 and 20"),
        ("a=nan", "between 0.05 and 20"),
    ],
)
def test_a_scale_of_nothing_or_of_no_microscope_is_refused(tmp_path, scale, told):
    with pytest.raises(DataError, match=told):
        parse_sources([f"a={tmp_path}", "twin"], [scale])


@pytest.mark.parametrize(
    ("models", "told"),
    [
        (["b=x"], "--model b=x: no dataset of this name"),
        (["x"], "expected NAME=VALUE"),
        (["a=x", "a=y"], "'a' has x already"),
    ],
)
def test_a_model_of_no_dataset_is_refused(tmp_path, models, told):
    with pytest.raises(DataError, match=told):
        parse_sources([f"a={tmp_path}"], [], models)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sead": 3}, "unknown key 'sead'; did you mean 'seeds'"),
        ({"side": 32}, "'side': found 32"),
        ({"seeds": 0}, "'seeds': found 0"),
        ({"score": {**TINY["score"], "settings": {"netwrok": {}}}}, "the budget's 'score': unknown key"),
        ({"score": {**TINY["score"], "tile": 33}}, "data.size: found 33, expected a multiple of 2"),
        ({"cut": {**TINY["cut"], "tile": 8}}, "data.size: found 8, expected at least"),
        ({"mi": {**TINY["mi"], "tile": 16}}, "data.size: found 16, expected at least 32"),
    ],
)
def test_a_budget_that_cannot_be_followed_is_told_before_anything_is_trained(tmp_path, changes, told):
    budget = budget_file(tmp_path / "mine.yaml", **changes)
    asked = options("table1", bci(tmp_path / "bci"), tmp_path / "out", budget)
    with pytest.raises(ConfigError, match=told):
        make(asked)
    assert not (tmp_path / "out" / "set" / "runs").exists()


# Models


def test_a_models_kind_and_marker_are_made_sure_of_before_anything_is_trained(tmp_path):
    torch.manual_seed(0)
    gan = GeneratorModel(Generator(GeneratorConfig(width=4, blocks=2)), Card(name="gan"), "cut")
    save_generator_model(tmp_path / "gan", gan)
    save_model(tmp_path / "ki67", tiny_model(markers=("Ki67",)))
    save_model(tmp_path / "two", tiny_model(markers=("Ki67", "HER2x")))
    root, budget = bci(tmp_path / "bci"), budget_file(tmp_path / "tiny.yaml")
    for model, told in (
        (tmp_path / "gan", "trained as cut, expected a score model"),
        (tmp_path / "ki67", "stains Ki67, but the marker of set is HER2"),
        (tmp_path / "two", "stains Ki67, HER2x, but the marker of set is HER2"),
        (tmp_path / "bci", "no model there"),
    ):
        asked = options("table1", root, tmp_path / "out", budget, models=(f"set={model}",))
        with pytest.raises(Exception, match=told) as refused:
            make(asked)
        assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "set" / "runs").exists()


def test_a_model_without_an_estimator_is_refused_for_rows_that_need_one(tmp_path):
    save_model(tmp_path / "score", replace(tiny_model(), estimator=None))
    root, budget = bci(tmp_path / "bci"), budget_file(tmp_path / "tiny.yaml")
    models = (f"set={tmp_path / 'score'}",)
    with pytest.raises(ConfigError, match="has no MI estimator"):
        make(options("table1", root, tmp_path / "out", budget, models=models))
    make(options("table1", root, tmp_path / "out", budget, models=models, only=("SDEdit", "w/o MI"), seeds=1))


def test_a_beginning_of_another_architecture_is_told_before_anything_is_trained(tmp_path):
    save_model(tmp_path / "model", tiny_model())
    wide = {**NETWORK, "channels": [16, 64]}
    score = {**TINY["score"], "settings": {"network": wide}}
    asked = options(
        "table1",
        bci(tmp_path / "bci"),
        tmp_path / "out",
        budget_file(tmp_path / "tiny.yaml", score=score),
        init=tmp_path / "model",
    )
    with pytest.raises(Exception, match="--init: .*does not fit score.network") as refused:
        make(asked)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "set" / "runs").exists()


def test_a_beginning_that_nothing_begins_with_is_told(tmp_path):
    budget = budget_file(tmp_path / "tiny.yaml")
    code = run("reproduce", "table1", "--budget", budget, "--init", tmp_path, "--out", tmp_path / "out")
    assert code == 2


# Data


def test_a_broken_image_is_named_and_mended_the_same_command_goes_on(tmp_path):
    root = bci(tmp_path / "bci", test=4)
    broken = root / "IHC" / "test" / "00002_test_2+.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="00002_test"):
        ready(root, tmp_path / "out")
    broken.write_bytes(whole)
    assert len(ready(root, tmp_path / "out").test) == 4


def test_a_preparation_that_was_stopped_leaves_no_image_in_another_split(tmp_path):
    root = bci(tmp_path / "bci", train=8, test=4)
    broken = root / "IHC" / "test" / "00003_test_2+.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    with pytest.raises(DataError, match="00003_test"):
        ready(root, tmp_path / "out", split="official")
    broken.write_bytes(whole)
    case = ready(root, tmp_path / "out", split="paper")
    for stain in ("HE", "IHC"):
        trained = {p.stem for p in list_images(case.images / "train" / stain)}
        assert not trained & set(case.test)
        assert len(trained) == case.train[0]


def test_results_whose_images_are_gone_are_not_mixed_with_new_ones(tmp_path):
    root = bci(tmp_path / "bci")
    case = ready(root, tmp_path / "out")
    (case.folder / "runs").mkdir()
    (case.folder / "case.json").unlink()
    with pytest.raises(DataError, match=r"is there, but no .*case.json"):
        ready(root, tmp_path / "out")
    assert case.images.is_dir()


def test_a_folder_of_somebody_elses_images_is_left_alone(tmp_path):
    write_image(tmp_path / "out" / "set" / "images" / "mine.png", tissue(64, 64, 0))
    with pytest.raises(DataError, match="give another --out"):
        ready(bci(tmp_path / "bci"), tmp_path / "out")
    assert (tmp_path / "out" / "set" / "images" / "mine.png").exists()


@pytest.mark.parametrize(("root", "out"), [("d", "d/out"), ("d/set", "d"), ("out/set/raw", "out")])
def test_a_case_is_not_written_into_its_dataset_nor_around_it(tmp_path, root, out):
    bci(tmp_path / root)
    with pytest.raises(DataError, match="lie in each other"):
        ready(tmp_path / root, tmp_path / out)


def test_an_image_of_16_bits_is_told(tmp_path):
    root = bci(tmp_path / "bci")
    deep = tissue(96, 96, 1).astype(np.uint16) * 257
    (root / "HE" / "train" / "00000_train_2+.png").unlink()
    tifffile.imwrite(root / "HE" / "train" / "00000_train_2+.tif", deep, photometric="rgb")
    with pytest.raises(DataError, match="16 bits a channel, expected 8"):
        ready(root, tmp_path / "out")


def test_jpegs_that_are_named_png_are_read_as_bcis_are(tmp_path):
    root = bci(tmp_path / "bci")
    for path in root.rglob("*.png"):
        write_image(path.with_suffix(".jpg"), tissue(96, 96, 1))
        path.with_suffix(".jpg").rename(path)
    assert ready(root, tmp_path / "out").train == (2, 2)


@pytest.mark.parametrize("size", [(8, 4000), (60, 60), (40, 400)])
def test_an_image_that_is_too_small_once_shrunk_is_told(tmp_path, size):
    with pytest.raises(DataError, match="expected at least 64 on each side"):
        ready(bci(tmp_path / "bci", size=size), tmp_path / "out", side=128)


def test_images_of_several_sizes_and_no_scale_are_told(tmp_path):
    root = bci(tmp_path / "bci")
    write_image(root / "IHC" / "train" / "00009_train_2+.png", tissue(192, 192, 3))
    case = ready(root, tmp_path / "out", mpp=None)
    assert any("their scales may differ" in note for note in case.notes)


def test_no_image_takes_anothers_place(tmp_path):
    root = tmp_path / "set"
    for folder in ("a", "b", "a_b"):
        for stain in ("HE", "IHC"):
            for part in ("train", "test"):
                write_image(root / stain / part / folder / "1.png", tissue(96, 96, len(folder)))
    write_image(root / "IHC" / "train" / "a" / "1.jpg", tissue(96, 96, 1))  # of one name, another ending
    case = ready(root, tmp_path / "out")
    for stain, count in zip(("HE", "IHC"), case.train, strict=True):
        assert len(list_images(case.images / "train" / stain)) == count
    assert len(set(case.test)) == len(list_images(case.images / "test" / "HE")) == 3


def test_a_file_in_training_and_in_test_and_a_slide_in_both_are_told(tmp_path):
    root = mist(tmp_path / "mist")
    shutil.copy(
        root / "TrainValAB" / "trainB" / "11M2100001_0_0.jpg",
        root / "TrainValAB" / "valB" / "11M2100001_0_1.jpg",
    )
    notes = ready(root, tmp_path / "out").notes
    assert any("2 slides are both in training and in test" in note for note in notes)
    assert any("1 files are, byte for byte, both" in note for note in notes)


def test_a_dataset_of_too_few_pairs_to_divide_is_told(tmp_path):
    with pytest.raises(DataError, match="too few for 80/10/10"):
        ready(plain(tmp_path / "set", pairs=2), tmp_path / "out")


def test_a_case_json_that_is_none_is_told(tmp_path):
    case = ready(bci(tmp_path / "bci"), tmp_path / "out")
    (case.folder / "case.json").write_text("{}")
    with pytest.raises(DataError, match="is no record of a prepared dataset"):
        ready(tmp_path / "bci", tmp_path / "out")


# Another comparison in the same folder


def test_a_run_that_was_begun_with_another_budget_is_not_taken(asked, tmp_path):
    make(asked)
    more = {**TINY["score"], "steps": 1}
    lower = {**TINY["score"], "settings": {**TINY["score"]["settings"], "optimizer": {"lr": 0.1}}}
    save_model(tmp_path / "model", tiny_model())
    budget = asked.budget
    for changes, told in (
        ({"budget": budget_file(tmp_path / "a.yaml", score=more)}, "begun with steps 2, now it is 1"),
        ({"budget": budget_file(tmp_path / "b.yaml", score=lower)}, "score.optimizer.lr .*, now it is 0.1"),
        ({"init": tmp_path / "model"}, "begun with score.init None"),
        ({"budget": budget_file(tmp_path / "c.yaml", side=96)}, "prepared with another 'side'"),
    ):
        with pytest.raises((ConfigError, DataError), match=told):
            make(replace(asked, **{"budget": budget, **changes}))
    make(asked)  # nothing was lost


def test_images_are_made_anew_where_their_settings_changed_and_scored_anew(asked, tmp_path):
    make(asked)
    folder = tmp_path / "out" / "set" / "results" / "sdedit" / "seed0"
    scores = (folder / "scores.json").read_bytes()
    longer = budget_file(tmp_path / "longer.yaml", reverse_steps=6)
    make(replace(asked, budget=longer))
    assert json.loads((folder / "settings.json").read_text())["settings"]["config"]["steps"] == 6
    assert (folder / "scores.json").read_bytes() != scores


def test_a_rows_images_stay_when_another_row_trains_something_that_it_does_not_look_at(asked, tmp_path):
    make(asked)
    image = next((tmp_path / "out" / "set" / "results" / "sdedit" / "seed0").glob("*.png"))
    before = image.stat().st_mtime_ns
    make(replace(asked, only=("SDEdit", "EGSDE", "MIU-Diff, fast")))
    assert image.stat().st_mtime_ns == before


def test_a_model_whose_palette_changed_is_another(tmp_path):
    folder = tmp_path / "model"
    model = tiny_model(markers=("HER2",))
    save_model(folder, model)
    first = load_model(folder).identity
    curve = tiny_palette()
    card = model.card.model_copy(update={"palette": {"HER2": curve}})
    save_model(folder, replace(model, card=card))
    assert load_model(folder).identity != first


# The command line


def test_every_mistake_is_one_line_and_exit_code_2(tmp_path, capsys):
    budget = budget_file(tmp_path / "tiny.yaml")
    (tmp_path / "file").write_text("")
    root = bci(tmp_path / "bci")
    usual = ["--data", f"set={root}", "--out", tmp_path / "out", "--device", "cpu"]
    tiny = [*usual, "--budget", budget]
    for words, told in (
        (["table3"], "table3"),
        (["table1", "--data", f"set={root}", "--out", tmp_path / "file"], "cannot be written"),
        (["table1", *usual, "--budget", "huge"], "huge"),
        (["table1", *tiny, "--only", "GAN"], "no such row"),
        (["table2", *tiny, "--only", "CUT"], "no such row, expected one of MIU-Diff, fast"),
        (["table1", *tiny, "--mpp", "sett=0.5"], "no dataset of this name"),
        (["table1", *tiny, "--split", "mine"], "mine"),
        (["table1", *tiny, "--split", "all"], "set has no model; give --model set=FOLDER"),
        (["table1", *tiny, "--slide-pattern", "("], "slide pattern '(': is not a regular expression"),
        (["table1", *tiny, "--marker", "set=Ki67"], "give --model set=FOLDER, too"),
    ):
        assert run("reproduce", *words) == 2, words
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert told in error, error
