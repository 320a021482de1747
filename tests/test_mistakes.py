"""What a user can get wrong: one line that names file or key, exit code 2, and nothing lost."""

import json
import os
import shutil
import sys
from multiprocessing import active_children

import numpy as np
import pytest
import torch
import yaml

from miudiff.checkpoints import WEIGHTS, find_states, load_tensors, save_weights
from miudiff.cli import main
from miudiff.images import write_image
from miudiff.methods.model import save_model
from miudiff.naming import SHIPPED
from miudiff.runs import run as train
from test_training import load, quiet, write_run
from tiny import tiny_model, tiny_score


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused; returns its one line."""

    def run(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        errors = capsys.readouterr().err
        assert left.value.code == 2, errors
        assert errors.startswith("miudiff: ")
        assert errors.count("\n") == 1
        return errors.strip()

    return run


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("score.network.channels=[]", "'score.network.channels': found []"),
        ("score.network.channels=[8,9]", "channels: found 9, expected multiples of groups, 4"),
        ("score.network.groups=3", "channels: found 8, expected multiples of groups, 3"),
        ("score.network.heads=3", "heads: found 3, expected a divisor of the 16 channels that attend"),
        ("score.network.head_channels=7", "head_channels: found 7, expected a divisor of the 16"),
        ("score.network.head_channels=0", "'score.network.head_channels': found 0"),
        ("score.network.markers=0", "'score.network.markers': found 0"),
        ("mi.estimator.channels=[8,8,8,8]", "patch: found 8, expected at least 16 for 4 halvings"),
        ("data.size=33", "data.size: found 33, expected a multiple of 2"),
        ("seed=99999999999999999999", "'seed': found 99999999999999999999"),
        ("score.network.chanels=[8]", "unknown key 'score.network.chanels'; did you mean 'channels'?"),
    ],
)
def test_a_network_that_cannot_be_is_refused_before_the_run_has_a_folder(tmp_path, refused, word, told):
    assert told in refused("train", write_run(tmp_path), word)
    assert not (tmp_path / "run").exists()


def test_an_estimator_needs_tiles_of_two_patches(tmp_path, refused):
    path = write_run(tmp_path, "mi")
    assert "data.size: found 32, expected at least 48" in refused("train", path, "mi.estimator.patch=24")
    held_out = {"root": str(tmp_path), "size": 8, "mpp": 1.0, "sources": [{"files": "ihc", "mpp": 1.0}]}
    assert "held_out.size: found 8" in refused("train", path, f"held_out={yaml.safe_dump(held_out)}")
    missing = held_out | {"size": 32, "sources": [{"files": "nowhere", "mpp": 1.0}]}
    assert "nowhere" in refused("train", path, f"held_out={yaml.safe_dump(missing)}")
    assert not list((tmp_path / "run").glob("state-*"))  # told before the training


def test_a_state_that_holds_anything_else_is_refused_and_kept(tmp_path, refused):
    path = write_run(tmp_path)
    train(load(path, steps=2), quiet)
    state = find_states(tmp_path / "run")[-1][1]
    sound = load_tensors(state)
    parts = sound["parts"]
    for content in (
        [1, 2],
        {"step": 2, "parts": 3},
        {"step": "two", "parts": parts},
        {"step": 2, "parts": dict.fromkeys(parts)},
        {"step": 2, "parts": parts | {"average": {}}},
    ):
        torch.save(content, state)
        assert str(state) in refused("train", path)
        assert state.exists()
    state.write_bytes(b"")
    assert "without it the same command goes on from the state before" in refused("train", path)


@pytest.mark.parametrize(
    "change", [{"num_train_timesteps": -5}, {"num_train_timesteps": 1}, {"beta_end": 5}, {"beta_start": 0}]
)
def test_a_schedule_that_is_none_is_refused(tmp_path, refused, change):
    save_model(tmp_path / "model", tiny_model())
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    write_image(tmp_path / "he.png", np.full((64, 64, 3), 200, np.uint8))
    line = refused("translate", tmp_path / "he.png", tmp_path / "ihc.png", "--model", tmp_path / "model")
    assert f"{path}: cannot be used" in line


@pytest.mark.parametrize(
    "record",
    ['{"images": {"he.png": {"run": 7}}, "runs": []}', '{"images": 3}', "[1]", '{"images": {"he.png": {}}}'],
)
def test_a_record_that_somebody_else_wrote_is_refused_and_kept(tmp_path, refused, record):
    save_model(tmp_path / "model", tiny_model())
    for folder in ("he", "ihc"):
        write_image(tmp_path / folder / "he.png", np.full((64, 64, 3), 200, np.uint8))
    path = tmp_path / "ihc" / "translation.json"
    path.write_text(record)
    words = ["--model", tmp_path / "model", "--device", "cpu"]
    for more in ([], ["--overwrite"]):
        before = (tmp_path / "ihc" / "he.png").read_bytes()
        assert f"{path}: " in refused("translate", tmp_path / "he", tmp_path / "ihc", *words, *more)
        assert (tmp_path / "ihc" / "he.png").read_bytes() == before  # nothing is stained first
    assert path.read_text() == record


def test_what_is_no_model_card_or_model_is_refused(tmp_path, refused):
    save_model(tmp_path / "model", tiny_model(("Ki67",)))
    index = tmp_path / "model" / "model_index.json"
    run = tmp_path / "run.yaml"
    run.write_text(
        "{task: score, out: run, markers: [Ki67], data: {mpp: 1.0, sources: [{files: 'twin:train', mpp: 0.5, marker: Ki67}]}}"
    )
    palette = ["model", "palette", tmp_path / "model", run, "--he", "twin:train"]
    for wrong, told in (({"markers": 3}, "'markers': found 3"), ({"palette": 4}, "'palette': found 4")):
        before = index.read_text()
        index.write_text(json.dumps(json.loads(before) | wrong))
        assert f"{index}: {told}" in refused(*palette)
        index.write_text(before)
    (tmp_path / "card.md").write_bytes(b"\xff\xfe")
    words = ["--name", "a", "--readme", tmp_path / "card.md"]
    assert "expected a model card in UTF-8" in refused(
        "model", "assemble", tmp_path, tmp_path / "out", *words
    )
    assert f"or one of: {SHIPPED}" in refused("calibrate", tmp_path, "--model", ".")


def test_a_demo_folder_that_cannot_be_is_told_before_the_work(tmp_path, refused, monkeypatch):
    monkeypatch.setattr("miudiff.stainer.VirtualStainer.translate", None)
    (tmp_path / "mine").write_text("mine")
    assert str(tmp_path / "mine") in refused("demo", "--out", tmp_path / "mine", "--device", "cpu")


def test_a_network_of_markers_that_nobody_names_makes_no_model(tmp_path, refused):
    score = tiny_score(2)
    score.unet.save_config(tmp_path / "weights")
    save_weights(tmp_path / "weights" / WEIGHTS, score.unet.state_dict())
    line = refused("model", "assemble", tmp_path, tmp_path / "out", "--name", "mine")
    assert "a network of 2 markers, but nothing names them; give --marker for each" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX modes")
def test_a_folder_without_leave_to_write_is_told_before_the_work(tmp_path, refused, monkeypatch):
    save_model(tmp_path / "model", tiny_model())
    write_image(tmp_path / "he.png", np.full((64, 64, 3), 200, np.uint8))
    (tmp_path / "closed").mkdir()
    (tmp_path / "file").write_text("mine")
    allowed = os.access  # root may write anywhere, so leave is taken away here
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "closed" and allowed(path, mode))
    monkeypatch.setattr("miudiff.stainer.VirtualStainer.translate", None)
    for where in ("closed", "closed/new", "file/new"):
        target = tmp_path / where / "ihc.png"
        line = refused(
            "translate", tmp_path / "he.png", target, "--model", tmp_path / "model", "--device", "cpu"
        )
        assert f"{target.parent}: cannot be written (" in line


NAMES = ["with space.png", "ünïcödé 染.png", "[1].png", "a*b.png", "-dash.png", "new\nline.png"]
NAMES += [os.fsdecode(b"no\xfftext.png")] if sys.platform == "linux" else []


def test_names_of_any_kind_are_kept_and_told_in_one_line_each(tmp_path, capsys, monkeypatch):
    save_model(tmp_path / "model", tiny_model())
    for name in NAMES:
        write_image(tmp_path / "he" / name, np.full((64, 64, 3), 200, np.uint8))
    (tmp_path / "he" / "bad\nname.png").write_text("no image")
    words = ["--model", tmp_path / "model", "--device", "cpu", "--set", "reverse.start=2"]
    words += ["--set", "refinement.loss=none", "--set", "reverse.steps=2"]
    for code in (3, 3):  # the second finds the first's record
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in ("translate", tmp_path / "he", tmp_path / "ihc", *words)])
        assert left.value.code == code
    told = capsys.readouterr()
    assert sorted(p.name for p in (tmp_path / "ihc").glob("*.png")) == sorted(NAMES)
    record = json.loads((tmp_path / "ihc" / "translation.json").read_text())
    assert sorted(record["images"]) == sorted(NAMES)
    assert f"{len(NAMES)} there already, 1 failed" in told.out
    assert told.err.count("\n") == 2
    assert all(rf"{tmp_path / 'he'}/bad\nname.png: is not an image" in line for line in told.err.splitlines())


def test_a_bad_file_met_by_a_process_that_reads_tiles_is_told_in_one_line(tmp_path, refused):
    path = write_run(tmp_path)
    shutil.rmtree(tmp_path / "ihc")
    (tmp_path / "ihc").mkdir()
    (tmp_path / "ihc" / "new\nline.png").write_text("no image")
    line = refused("train", path, "workers=1")
    assert line.startswith(rf"miudiff: {tmp_path / 'ihc'}/new\nline.png: is not an image")
    assert active_children() == []  # the command ends, too
