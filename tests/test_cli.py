"""The command line as a user meets it: names kept, work resumed, one line for each mistake, and an exit code that tells."""

import dataclasses
import errno
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from miudiff.checkpoints import save_weights
from miudiff.cli import app, main
from miudiff.cli.staining import SlideFlags
from miudiff.images import read_image
from miudiff.information.learner import save_estimator
from miudiff.methods.miu_diff import MIUDiff
from miudiff.methods.model import load_model, save_model
from miudiff.stainer import VirtualStainer
from tiny import tiny_estimator, tiny_model, tiny_score

HERE = Path(__file__).parent
CHANGES = ("reverse.start=4", "reverse.steps=2", "refinement.loss=none")
QUICK = [word for change in CHANGES for word in ("--set", change)] + [
    "--device",
    "cpu",
    "--precision",
    "fp32",
]


def run(*words):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    return left.value.code


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_model(folder, tiny_model(("Ki67", "ER")))
    return folder


@pytest.fixture
def translate(model):
    """Runs `translate` with the tiny model; returns the exit code."""
    return lambda source, target, *words: run("translate", source, target, "--model", model, *QUICK, *words)


@pytest.fixture
def mistake(capsys):
    """Runs a command that must be refused; returns its one line."""

    def refused(code, *words):
        capsys.readouterr()
        found = run(*words)
        errors = capsys.readouterr().err
        assert found == code, errors
        assert errors.startswith("miudiff: ")
        assert errors.count("\n") == 1
        return errors.strip()

    return refused


def write_tissue(path, height=64, width=64, seed=0):
    y, x = np.mgrid[:height, :width] / 64
    waves = [np.sin(9 * x + k + seed) * np.cos(7 * y - k) for k in range(3)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.round(170 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def he(tmp_path):
    """A folder with a.png, b.png and c.jpg."""
    for seed, name in enumerate(["a.png", "b.png", "c.jpg"]):
        write_tissue(tmp_path / "he" / name, seed=seed)
    return tmp_path / "he"


def contents(folder):
    """Every file below a folder with its bytes, but for the record of how they were made."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("translation"))
    return {path.relative_to(folder): path.read_bytes() for path in files}


def names(folder):
    return sorted(str(name) for name in contents(folder))


# Translation


def test_a_folder_keeps_its_names_formats_and_sizes(he, tmp_path, translate):
    write_tissue(he / "wide.jpeg", 65, 70)
    assert translate(he, tmp_path / "ihc") == 0
    assert names(tmp_path / "ihc") == ["a.png", "b.png", "c.jpg", "wide.jpeg"]
    for path in he.iterdir():
        with Image.open(path) as source, Image.open(tmp_path / "ihc" / path.name) as result:
            assert (result.format, result.mode, result.size) == (source.format, "RGB", source.size)


def test_a_file_goes_to_a_file_of_another_format_or_into_a_folder(he, tmp_path, translate):
    assert translate(he / "a.png", tmp_path / "out.tif") == 0
    assert translate(he / "a.png", tmp_path / "folder") == 0
    with Image.open(tmp_path / "out.tif") as result:
        assert result.format == "TIFF"
    assert np.array_equal(read_image(tmp_path / "out.tif"), read_image(tmp_path / "folder" / "a.png"))


def test_the_next_image_is_read_while_one_is_stained(he, tmp_path, translate, monkeypatch):
    whole, read = VirtualStainer.translate, {name: threading.Event() for name in ("a.png", "b.png", "c.jpg")}

    def noting(path):
        pixels = read_image(path)
        read[path.name].set()
        return pixels

    def stain(self, image, mpp, seed, name):
        assert read[name].is_set()
        assert name != "a.png" or (read["b.png"].wait(30) and not read["c.jpg"].is_set())
        return whole(self, image, mpp, seed, name)

    monkeypatch.setattr("miudiff.translation.read_image", noting)
    monkeypatch.setattr(VirtualStainer, "translate", stain)
    (tmp_path / "ihc").mkdir()
    assert translate(he, tmp_path / "ihc") == 0
    assert names(tmp_path / "ihc") == ["a.png", "b.png", "c.jpg"]


def test_an_image_that_is_there_is_not_read_again(he, tmp_path, translate, monkeypatch):
    assert translate(he, tmp_path / "ihc") == 0
    (tmp_path / "ihc" / "b.png").unlink()
    read = []
    monkeypatch.setattr(
        "miudiff.translation.read_image", lambda path: read.append(path.name) or read_image(path)
    )
    assert translate(he, tmp_path / "ihc") == 0
    assert read == ["b.png"]


def test_a_file_has_the_same_result_alone_as_in_its_folder(he, tmp_path, translate):
    assert translate(he, tmp_path / "all") == 0
    assert translate(he / "b.png", tmp_path / "one.png") == 0
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "all" / "b.png").read_bytes()


def test_the_sources_stay_as_they_are(he, tmp_path, translate):
    before = contents(he)
    translate(he, tmp_path / "ihc")
    assert contents(he) == before


def test_a_second_run_leaves_what_is_there_untouched_and_adds_what_is_new(he, tmp_path, translate, capsys):
    ihc = tmp_path / "ihc"
    translate(he, ihc)
    times = {path.name: path.stat().st_mtime_ns for path in ihc.glob("?.*")}
    write_tissue(he / "d.png", seed=9)
    assert translate(he, ihc) == 0
    assert {name: (ihc / name).stat().st_mtime_ns for name in times} == times
    assert (ihc / "d.png").exists()
    assert "1 written, 3 there already, 0 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("--seed", 1), "seed"),
        (("--marker", "ER"), "marker"),
        (("--mpp", 0.98), "mpp"),
        (("--set", "guidance.scale=9"), "config.guidance.scale"),
        (("--mode", "fuse"), "mode"),
    ],
)
def test_results_of_other_settings_are_not_taken_for_ones_own(
    he, tmp_path, translate, mistake, model, words, key
):
    source, ihc = he / "a.png", tmp_path / "ihc"
    translate(source, ihc)
    before = contents(ihc)
    line = mistake(2, "translate", source, ihc, "--model", model, *QUICK, *words)
    assert f"'{key}'" in line
    assert "--overwrite" in line
    assert contents(ihc) == before


def test_results_of_other_weights_under_the_same_name_are_not_taken_for_ones_own(
    he, tmp_path, translate, mistake
):
    translate(he / "a.png", tmp_path / "ihc")
    retrained = tiny_model(("Ki67", "ER"))
    retrained.score.unet.conv_out.bias += 0.01
    save_model(tmp_path / "retrained", retrained)
    line = mistake(2, "translate", he / "a.png", tmp_path / "ihc", "--model", tmp_path / "retrained", *QUICK)
    assert "'model'" in line


def test_overwrite_makes_results_again(he, tmp_path, translate):
    translate(he / "a.png", tmp_path / "ihc")
    before = contents(tmp_path / "ihc")
    assert translate(he / "a.png", tmp_path / "ihc", "--seed", 1, "--overwrite") == 0
    assert contents(tmp_path / "ihc") != before


def test_the_record_says_how_each_result_was_made(he, tmp_path, translate):
    """Files of two seeds in one folder; each goes on under its own, and is refused under the other's."""
    translate(he / "a.png", tmp_path / "ihc")
    translate(he / "b.png", tmp_path / "ihc", "--seed", 1, "--mpp", 1)
    record = json.loads((tmp_path / "ihc" / "translation.json").read_text())
    steps = [
        json.loads(line) for line in (tmp_path / "ihc" / "translation-steps.jsonl").read_text().splitlines()
    ]
    assert all(len(step) == 3 for line in steps for step in line["steps"])
    assert sorted({line["image"] for line in steps}) == sorted(record["images"])
    made = {name: record["runs"][entry["run"]] for name, entry in record["images"].items()}
    assert {name: run["seed"] for name, run in made.items()} == {"a.png": 0, "b.png": 1}
    assert made["a.png"]["model"].startswith("tiny ")
    assert made["a.png"]["config"]["reverse"]["steps"] == 2
    assert (record["images"]["a.png"]["mpp"], record["images"]["b.png"]["mpp"]) == (None, 1.0)
    assert "not for diagnosis" in record["notice"]
    assert translate(he / "a.png", tmp_path / "ihc") == 0
    assert translate(he / "a.png", tmp_path / "ihc", "--seed", 1, "--mpp", 1) == 2


def test_after_a_stopped_overwrite_the_old_results_are_not_taken_for_new(
    he, tmp_path, translate, monkeypatch
):
    translate(he, tmp_path / "ihc")
    with monkeypatch.context() as patch:
        stop_at(patch, "b.png", KeyboardInterrupt())
        assert translate(he, tmp_path / "ihc", "--seed", 1, "--overwrite") == 130
    assert translate(he, tmp_path / "ihc", "--seed", 1) == 2
    assert translate(he, tmp_path / "ihc", "--seed", 1, "--overwrite") == 0


def test_a_scale_that_a_file_states_is_used_and_told(he, tmp_path, translate, capsys):
    Image.open(he / "a.png").resize((128, 130)).save(he / "d.tif", resolution=2e4, resolution_unit="cm")
    assert translate(he / "d.tif", tmp_path / "ihc") == 0
    assert (
        "128 x 130 pixels, 0.5 um/px stated in the file; 64 x 65 at the model's scale"
        in capsys.readouterr().out
    )
    assert translate(he / "d.tif", tmp_path / "given", "--mpp", 1) == 0
    assert "1 um/px as given (the file states 0.5); 128 x 130" in capsys.readouterr().out
    assert translate(he / "a.png", tmp_path / "ihc") == 0
    assert "states no um/px: its pixels are used as they are" in capsys.readouterr().out


# Bad files


BROKEN = {
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "text": lambda path: path.write_text("no image"),
    "empty": lambda path: path.write_bytes(b""),
    "one pixel": lambda path: Image.new("RGB", (1, 1)).save(path),
    "grey": lambda path: Image.new("L", (64, 64)).save(path),
}


@pytest.mark.parametrize("how", BROKEN)
def test_one_bad_image_does_not_stop_the_rest_and_is_named(he, tmp_path, translate, capsys, how):
    (he / "c.jpg").unlink()
    BROKEN[how](write_tissue(he / "aa.png"))
    assert translate(he, tmp_path / "ihc") == 3
    assert names(tmp_path / "ihc") == ["a.png", "b.png"]
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == "2 written, 0 there already, 1 failed"
    assert told.err.startswith(f"miudiff: {he / 'aa.png'}: ")
    assert told.err.count("\n") == 1, "an error is reported once"
    assert "failed: " not in told.out


@pytest.mark.parametrize("how", BROKEN)
def test_nothing_but_bad_images_is_exit_code_2(tmp_path, translate, how):
    BROKEN[how](write_tissue(tmp_path / "he" / "a.png"))
    assert translate(tmp_path / "he" / "a.png", tmp_path / "ihc") == 2
    assert names(tmp_path) == ["he/a.png"]


def test_a_mended_image_is_all_that_the_next_run_makes(he, tmp_path, translate, capsys):
    good = (he / "b.png").read_bytes()
    (he / "b.png").write_text("no image")
    assert translate(he, tmp_path / "ihc") == 3
    assert translate(he, tmp_path / "ihc") == 3
    (he / "b.png").write_bytes(good)
    capsys.readouterr()
    assert translate(he, tmp_path / "ihc") == 0
    assert "1 written, 2 there already" in capsys.readouterr().out


def test_a_file_that_has_no_known_ending_is_told_before_the_work(he, tmp_path, translate, capsys):
    shutil.copy(he / "a.png", he / "a.dat")
    assert translate(he / "a.dat", tmp_path / "ihc") == 2
    assert "cannot be written, expected one of .png" in capsys.readouterr().err
    assert translate(he / "a.dat", tmp_path / "ihc.png") == 0


# Mistakes


def test_a_missing_or_empty_source_is_told(tmp_path, model, mistake):
    assert "gone: no such file or folder" in mistake(
        2, "translate", tmp_path / "gone", tmp_path / "ihc", "--model", model
    )
    (tmp_path / "empty").mkdir()
    assert "empty: no images in it" in mistake(
        2, "translate", tmp_path / "empty", tmp_path / "ihc", "--model", model
    )


def test_a_target_that_is_the_source_is_refused(he, mistake):
    before = contents(he)
    for source, target in (
        (he, he),
        (he / "a.png", he / "a.png"),
        (he / "a.png", he),
        (he, he / "." / "x" / ".."),
    ):
        (he / "x").mkdir(exist_ok=True)
        assert "is the source itself" in mistake(2, "translate", source, target, *QUICK, "--overwrite")
    assert contents(he) == before


def test_a_file_as_the_target_of_a_folder_is_refused(he, tmp_path, mistake):
    (tmp_path / "ihc").write_text("mine")
    assert "is a file, expected a folder" in mistake(2, "translate", he, tmp_path / "ihc", *QUICK)
    assert (tmp_path / "ihc").read_text() == "mine"


def test_a_misspelt_word_names_the_nearest_right_one(he, tmp_path, model, mistake):
    line = ["translate", he, tmp_path / "ihc", "--model", model]
    assert "Did you mean --seed?" in mistake(2, *line, "--sed", 1)
    assert 'did you mean "fast"?' in mistake(2, *line, "--preset", "fasst")
    assert 'Did you mean "translate"?' in mistake(2, "translat", he)
    assert "did you mean 'scale'?" in mistake(2, *line, "--set", "guidance.scal=1")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--mpp", "0"), "mpp 0: expected micrometres per pixel between 0.05 and 20"),
        (("--mpp", "nan"), "mpp nan: expected micrometres"),
        (("--mpp", "half"), "half"),
        (("--seed", "x"), "seed"),
        (("--device", "nonsense"), "device 'nonsense': unknown, expected auto, cpu, cuda"),
        (("--device", "meta"), "device 'meta': unknown"),
        (("--precision", "fp8"), "fp8"),
        (("--marker", "HER2"), "marker 'HER2': the model 'tiny' has Ki67, ER"),
        (("--set", "reverse.start"), "expected key=value"),
        (("--set", "reverse.start=1"), "'reverse.start': found 1"),
        (("--set", "reverse.start=5000"), "reverse.start: found 5000, expected at most 1000"),
        (("--set", "refinement.taps=[99]"), "refinement.taps: found [99]"),
        (("--model", "no-such-model"), "no-such-model: no model there"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line_and_makes_nothing(he, tmp_path, model, mistake, words, told):
    default = () if words[0] == "--model" else ("--model", model)
    assert told in mistake(2, "translate", he, tmp_path / "ihc", *default, *words)
    assert not (tmp_path / "ihc").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_device_that_is_not_there_is_refused_and_nothing_takes_its_place(he, tmp_path, model, mistake):
    for device in ("cuda", "cuda:1"):
        line = mistake(2, "translate", he, tmp_path / "ihc", "--model", model, "--device", device)
        assert f"device '{device}': 0 CUDA devices are visible" in line
    assert not (tmp_path / "ihc").exists()


def test_a_damaged_model_is_refused_in_one_line(he, tmp_path, mistake):
    save_model(tmp_path / "model", tiny_model())
    (tmp_path / "model" / "scheduler" / "scheduler_config.json").write_text("{")
    assert "scheduler_config.json: is not JSON" in mistake(
        2, "translate", he, tmp_path / "ihc", "--model", tmp_path / "model"
    )


# Stopped


def stop_at(monkeypatch, name, error):
    """Raise `error` when the file `name` is about to appear."""
    replace = os.replace

    def stopping(source, target):
        if Path(target).name == name:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopping)


def test_control_c_keeps_what_is_whole_and_the_same_command_goes_on(
    he, tmp_path, translate, monkeypatch, capsys
):
    with monkeypatch.context() as patch:
        stop_at(patch, "b.png", KeyboardInterrupt())
        assert translate(he, tmp_path / "ihc") == 130
    assert capsys.readouterr().err == "miudiff: interrupted; the same command goes on from here\n"
    assert names(tmp_path / "ihc") == ["a.png"]  # and no part of another
    written = (tmp_path / "ihc" / "a.png").stat().st_mtime_ns
    assert translate(he, tmp_path / "ihc") == 0
    assert names(tmp_path / "ihc") == ["a.png", "b.png", "c.jpg"]
    assert (tmp_path / "ihc" / "a.png").stat().st_mtime_ns == written


def test_a_stopped_and_continued_folder_is_the_uninterrupted_one(he, tmp_path, translate, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, "b.png", KeyboardInterrupt())
        translate(he, tmp_path / "stopped")
    translate(he, tmp_path / "stopped")
    translate(he, tmp_path / "whole")
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_full_disk_ends_the_run_in_one_line_and_keeps_the_earlier_results(
    he, tmp_path, model, mistake, monkeypatch
):
    write = Path.write_bytes

    def full(path, content):
        if ".b.png." in path.name:
            write(path, content[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    line = mistake(2, "translate", he, tmp_path / "ihc", "--model", model, *QUICK)
    assert (
        line
        == f"miudiff: {tmp_path / 'ihc' / 'b.png'}: cannot be written (No space left on device); free some space, and the same command goes on"
    )
    assert names(tmp_path / "ihc") == ["a.png"]
    read_image(tmp_path / "ihc" / "a.png")


def test_a_folder_that_may_not_be_written_is_told_in_one_line(he, tmp_path, model, mistake):
    (tmp_path / "file").write_text("mine")
    line = mistake(2, "translate", he / "a.png", tmp_path / "file" / "ihc", "--model", model, *QUICK)
    assert "cannot be written" in line


def run_out(monkeypatch, error, times):
    """Lets the `times`-th tiles of a run find no memory."""
    translate, calls = MIUDiff.translate, []

    def hungry(self, he, keys):
        calls.append(he)
        if len(calls) in times:
            raise error
        return translate(self, he, keys)

    monkeypatch.setattr(MIUDiff, "translate", hungry)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has 10 MiB free"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "mps", "cpu", "numpy"])
def test_a_device_without_memory_fails_that_image_in_one_line_and_keeps_the_others(
    he, tmp_path, model, mistake, monkeypatch, error
):
    run_out(monkeypatch, error, [2])
    line = mistake(3, "translate", he, tmp_path / "ihc", "--model", model, *QUICK)
    assert line.startswith(
        f"miudiff: {he / 'b.png'}: a tile of 64 x 64 in fp32 on cpu: found too little memory ("
    )
    assert "smaller 'tile'" in line
    assert names(tmp_path / "ihc") == ["a.png", "c.jpg"]
    run_out(monkeypatch, error, [1, 2, 3])
    assert "little memory" in mistake(2, "translate", he / "b.png", tmp_path / "b", "--model", model, *QUICK)
    assert "little memory" in mistake(2, "calibrate", he, "--model", model, "--set", "reverse.start=4")


def test_an_error_of_the_program_is_not_taken_for_a_users(he, tmp_path, model, monkeypatch):
    run_out(monkeypatch, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), [1])
    with pytest.raises(RuntimeError, match="mat1"):
        main([str(word) for word in ("translate", he, tmp_path / "ihc", "--model", model, *QUICK)])


# Help


def test_help_takes_less_than_half_a_second_and_imports_no_network_library():
    code = (
        "import sys, time\n"
        "from miudiff.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as left: code = left.code\n"
        "print([m for m in ('torch', 'diffusers', 'numpy', 'pydantic') if m in sys.modules], code, time.process_time())"
    )
    environment = os.environ | {"PYTHONPATH": str(HERE.parent / "src")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    modules, code, seconds = done.stdout.splitlines()[-1].rsplit(" ", 2)
    assert (modules, code) == ("[]", "0")
    assert float(seconds) < 0.5
    assert "not for diagnosis" in " ".join(done.stdout.split())
    assert done.stderr == ""


COMMANDS = ["demo", "train", "translate", "calibrate", "reproduce", "doctor"]
COMMANDS += ["data check", "data twin", "model assemble", "model from-adm", "model palette", "model samples"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    assert run(*command.split(), "--help") == 0
    assert f"Usage: miudiff {command}" in capsys.readouterr().out


def test_a_command_that_lacks_its_arguments_says_which(mistake):
    assert "--source" in mistake(2, "translate")
    assert "--name" in mistake(2, "model", "assemble", "score", "out")


# Data


def test_a_sound_dataset_is_exit_code_0_a_bad_file_3_and_none_2(tmp_path, mistake, capsys):
    for stain in ("HE", "IHC"):
        for seed in range(2):
            noise = np.random.default_rng(seed + 10 * (stain == "HE")).integers(
                90, 250, (64, 64, 3), np.uint8
            )
            (tmp_path / "set" / stain).mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(tmp_path / "set" / stain / f"{seed}.png")
    assert run("data", "check", tmp_path / "set", "--json", tmp_path / "report.json") == 0
    assert json.loads((tmp_path / "report.json").read_text())["pairs"] == 2
    (tmp_path / "set" / "IHC" / "1.png").write_text("no image")
    capsys.readouterr()
    assert run("data", "check", tmp_path / "set") == 3
    assert f"error: {tmp_path / 'set' / 'IHC' / '1.png'}: " in capsys.readouterr().out
    assert run("data", "check", tmp_path / "gone") == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"miudiff: {tmp_path / 'gone'}: no such folder")
    assert not printed.out


def test_twins_are_exit_code_0_a_bad_file_3_and_none_2(tmp_path, capsys):
    ihc, out = tmp_path / "ihc", tmp_path / "pairs"
    write_tissue(ihc / "a.png")
    write_tissue(ihc / "b.jpg")
    assert run("data", "twin", ihc, out, "--antigen", "cytoplasmic") == 0
    assert names(out) == ["HE/a.png", "HE/b.png", "IHC/a.png", "IHC/b.png"]
    (ihc / "c.png").write_text("no image")
    assert run("data", "twin", ihc, out) == 3
    printed = capsys.readouterr()
    assert printed.err.startswith(f"miudiff: {ihc / 'c.png'}: ")
    assert "c.png" not in printed.out
    assert run("data", "twin", ihc / "c.png", out) == 2


def test_twins_of_a_missing_folder_or_an_unknown_antigen_are_refused_in_one_line(tmp_path, mistake):
    assert "no such file or folder" in mistake(2, "data", "twin", tmp_path / "gone", tmp_path / "out")
    assert "membrane" in mistake(2, "data", "twin", tmp_path, tmp_path / "out", "--antigen", "membrane")


# Models


def test_runs_are_assembled_to_a_model_that_translates(he, tmp_path, model):
    score, estimator, out = tiny_score(2), tiny_estimator(), tmp_path / "model"
    score.unet.save_config(tmp_path / "score" / "weights")
    save_weights(
        tmp_path / "score" / "weights" / "diffusion_pytorch_model.safetensors", score.unet.state_dict()
    )
    save_estimator(tmp_path / "mi" / "weights", estimator.config, estimator.state_dict())
    (tmp_path / "card.md").write_text("# A card\n")
    words = [
        "--name",
        "mine",
        "--mi",
        tmp_path / "mi",
        "--marker",
        "Ki67",
        "--marker",
        "ER",
        "--mpp",
        1,
        "--tile",
        64,
    ]
    assert (
        run("model", "assemble", tmp_path / "score", out, *words, "--half", "--readme", tmp_path / "card.md")
        == 0
    )
    made = load_model(out)
    assert (made.card.name, made.card.markers, made.card.mpp, made.card.tile) == (
        "mine",
        ("Ki67", "ER"),
        1.0,
        64,
    )
    assert made.estimator is not None
    assert (out / "README.md").read_text() == "# A card\n"
    assert run("translate", he / "a.png", tmp_path / "ihc.png", "--model", out, "--marker", "ER", *QUICK) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--mpp", 0), "'mpp': found 0"),
        (("--tile", 1), "'tile': found 1"),
        (
            ("--marker", "Ki67", "--marker", "ER", "--marker", "PR"),
            "3 markers (Ki67, ER, PR), but the network has 2",
        ),
        (("--mi", "gone", "--marker", "Ki67", "--marker", "ER"), "gone"),
        (("--readme", "gone"), "gone"),
    ],
)
def test_a_card_that_does_not_fit_is_refused_in_one_line(tmp_path, mistake, words, told):
    score = tiny_score(2)
    score.unet.save_config(tmp_path / "weights")
    save_weights(tmp_path / "weights" / "diffusion_pytorch_model.safetensors", score.unet.state_dict())
    assert told in mistake(2, "model", "assemble", tmp_path, tmp_path / "out", "--name", "mine", *words)
    assert not (tmp_path / "out").exists()


def test_an_official_checkpoint_becomes_a_model_that_translates_unguided(he, tmp_path, mistake):
    checkpoint, out = HERE / "golden" / "adm_tiny.pt", tmp_path / "adm"
    words = [
        "--name",
        "adm",
        "--mpp",
        1,
        "--tile",
        64,
        "--set",
        "num_head_channels=16",
        "--set",
        "image_size=32",
    ]
    assert run("model", "from-adm", checkpoint, out, *words) == 0
    assert load_model(out).estimator is None
    line = ["translate", he / "a.png", tmp_path / "ihc.png", "--model", out, *QUICK]
    assert "no MI estimator" in mistake(2, *line)
    assert run(*line, "--set", "energy.guidance=none") == 0


def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(tmp_path, mistake):
    (tmp_path / "a.pt").write_text("no checkpoint")
    assert "a.pt" in mistake(2, "model", "from-adm", tmp_path / "a.pt", tmp_path / "out", "--name", "a")
    assert "no such file" in mistake(
        2, "model", "from-adm", tmp_path / "b.pt", tmp_path / "out", "--name", "a"
    )
    adm = HERE / "golden" / "adm_tiny.pt"
    assert "num_head_channels" in mistake(
        2, "model", "from-adm", adm, tmp_path / "out", "--name", "a", "--set", "num_heads_channels=16"
    )


# The rest


def test_the_doctor_has_a_line_for_each_subject_and_an_exit_code_that_agrees(capsys):
    code = run("doctor")
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(("ok   ", "FIX  ")) for line in lines)
    subjects = [line[5:].partition(":")[0] for line in lines]
    assert subjects == ["versions", "torchvision", "device", "precision", "readers", "weights", "disk"]
    assert code == (2 if any(line.startswith("FIX") for line in lines) else 0)


def test_a_calibrated_scale_gives_the_share_that_was_asked_for(he, tmp_path, capsys, model):
    """The ratio is linear in the scale: at the scale that is told, calibrating again tells the same."""
    for seed in (0, 1):
        write_tissue(tmp_path / "tiles" / f"{seed}.png", 70, 80, seed)
    words = ["--model", model, "--device", "cpu", "--set", "reverse.start=4", "--set", "reverse.steps=2"]
    scales = []
    for target in (0.05, 0.1):
        assert run("calibrate", tmp_path / "tiles", "--target", target, *words) == 0
        last = capsys.readouterr().out.splitlines()[-1]
        scales.append(float(last.removeprefix("guidance.scale=").split()[0]))
        assert "over 2 tile(s)" in last
    assert scales[0] > 0
    assert scales[1] == pytest.approx(2 * scales[0], rel=2e-3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--target", 0), "target: found 0"),
        (("--target", -1), "target: found -1"),
        (("--set", "energy.guidance=none"), "nothing to calibrate"),
        (("--mpp", 0), "mpp 0: expected"),
        (("--mpp", 0.1), "6 x 6 pixels at the model's scale, expected at least 64"),
    ],
)
def test_what_cannot_be_calibrated_is_told_in_one_line(he, model, mistake, words, told):
    assert told in mistake(2, "calibrate", he, "--model", model, "--device", "cpu", *words)


def test_other_tables_sets_and_seeds_than_there_are_are_refused_in_one_line(tmp_path, mistake):
    assert "table3" in mistake(2, "reproduce", "table3", "--out", tmp_path)
    assert "--data bci: expected twin, or NAME=ROOT" in mistake(
        2, "reproduce", "table1", "--data", "bci", "--out", tmp_path
    )
    assert "seeds: found 0" in mistake(2, "reproduce", "table1", "--seeds", 0, "--out", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        *([w] for w in ("demo", "train", "translate", "calibrate", "reproduce", "evaluate")),
        *([w] for w in ("info", "report", "view")),
        *(["data", w] for w in ("check", "twin")),
        *(["model", w] for w in ("assemble", "palette", "from-adm", "samples")),
    ],
    ids=" ".join,
)
def test_the_help_says_what_every_option_is(words, capsys):
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    rows = [line.strip("│ *") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    command = app
    for word in words:
        command = command[word]
    told = "".join(" ".join(rows).split())
    entries = re.findall(r"^ {8}(\w+): (.{9})", command.default_command.__doc__, re.MULTILINE)
    options = set(inspect.signature(command.default_command).parameters)
    if words == ["translate"]:  # what is for slides alone is a group of its own
        options = options - {"slides"} | {field.name for field in dataclasses.fields(SlideFlags)}
        entries += re.findall(r"^ {8}(\w+): (.{9})", SlideFlags.__doc__, re.MULTILINE)
    assert {name for name, _ in entries} == options
    for name, beginning in entries:
        assert "".join(beginning.split()) in told, name
