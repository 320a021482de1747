"""The loop's promises: resumed equals uninterrupted, a kill costs little, two processes are one, a NaN stops."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator

from miudiff.checkpoints import find_states, load_state, load_tensors, save_state
from miudiff.config import parse, read_yaml, to_yaml
from miudiff.data.tiles import Tiles
from miudiff.diffusion.classifier_learner import AnnealedConfig, ClassifierConfig, ClassifierLearner
from miudiff.diffusion.learner import ScoreConfig, ScoreLearner
from miudiff.errors import CheckpointError, ConfigError, DataError, DeviceError, NonFiniteError
from miudiff.images import write_image
from miudiff.information.learner import MIConfig, MILearner
from miudiff.methods.adversarial import AdamConfig
from miudiff.methods.asp import ASPConfig, ASPLearner
from miudiff.methods.cut import CUTConfig, CUTLearner
from miudiff.methods.generator import load_generator_model
from miudiff.runs import RunConfig, run, trained_as
from miudiff.training import loop
from miudiff.training.average import Average
from miudiff.training.learner import OptimizerConfig, learning_rate
from tiny import CLASSIFIER

NETWORK = {"size": 32, "channels": [8, 16], "attention": [16], "head_channels": 8, "groups": 4}


SMALL_GAN = {
    "generator": {"width": 8, "blocks": 1},
    "discriminator": {"width": 4, "layers": 1},
    "taps": [0, 4, 8],
    "patches": 16,
    "head_width": 32,
}
SPECTRAL = {  # with every norm and every term
    "generator": {"width": 8, "blocks": 1, "spectral_norm": True},
    "discriminator": {"width": 4, "layers": 1, "spectral_norm": True},
    "pyramid": [0.25, 0.5, 1.0],
    "identity": True,
}
BOTH = {"he": {"sources": [{"files": "he", "mpp": 1.0}]}}
RUNS = {
    "score": {},
    "mi": {},
    "cut": BOTH,
    "fastcut": {"task": "cut", "cut": {"mode": "fastcut"} | SMALL_GAN} | BOTH,
    "asp": {"paired": True} | BOTH,
}


def write_run(folder: Path, task: str = "score", **changes) -> Path:
    """A run of three small images, of each stain; returns its YAML file."""
    rng = np.random.default_rng(0)
    for i in range(3):
        he, ihc = (np.full((80, 80, 3), level, np.uint8) for level in (240, 230))
        for _ in range(40):  # brown and blue squares, that are pink and violet in H&E
            y, x = rng.integers(0, 72, 2)
            positive = int(rng.integers(2))
            ihc[y : y + 8, x : x + 8] = [(90, 110, 170), (110, 60, 30)][positive]
            he[y : y + 8, x : x + 8] = [(200, 120, 180), (120, 80, 160)][positive]
        write_image(folder / "ihc" / f"field{i}.png", ihc)
        write_image(folder / "he" / f"field{i}.png", he)
    values = {
        "task": task,
        "out": str(folder / "run"),
        "data": {
            "root": str(folder),
            "size": 32,
            "mpp": 1.0,
            "scale_jitter": 0.1,
            "sources": [{"files": "ihc", "mpp": 1.0}],
        },
        "score": {"network": NETWORK, "optimizer": {"lr": 1e-3, "warmup": 2}, "ema": 0.9},
        "mi": {"estimator": {"channels": [8, 8], "patch": 8}, "optimizer": {"lr": 1e-3, "weight_decay": 0.0}},
        "cut": SMALL_GAN,
        "asp": SMALL_GAN | SPECTRAL,
        "steps": 6,
        "batch_size": 4,
        "seed": 3,
        "device": "cpu",
        "precision": "fp32",
        "log_every": 1,
        "save_every": 2,
    }
    values |= RUNS[task] | changes
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def load(path: Path, **changes) -> RunConfig:
    return parse(RunConfig, read_yaml(path) | changes, "test")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = load_tensors(find_states(folder)[-1][1])["parts"]
    return {
        f"{part}.{name}": value
        for part, content in state.items()
        if part in ("model", "estimator", "generator", "heads", "discriminator")
        for name, value in content.items()
    }


def quiet(_: str) -> None:
    pass


def interrupt_at(step: int):
    """What to say: nothing, but Ctrl-C once the log reaches `step`."""

    def say(line: str) -> None:
        if line.startswith(f"step {step}/"):
            signal.raise_signal(signal.SIGINT)

    return say


@pytest.mark.parametrize("task", ["cut", "asp"])
def test_a_run_of_a_small_generator_goes_on_from_what_it_wrote(tmp_path, task):
    small = {key: value for key, value in SMALL_GAN.items() if key != "taps"}  # the layers are the default
    path = write_run(tmp_path, task, **{task: small | {"pyramid": [1.0, 1.0]} if task == "asp" else small})
    run(load(path, steps=2), quiet)
    said = []
    run(load(path, steps=4), said.append)
    assert any("goes on after step 2" in line for line in said)
    run(load(tmp_path / "run" / "run.yaml", steps=6), quiet)  # what was written is a configuration, too
    assert find_states(tmp_path / "run")[-1][0] == 6


@pytest.mark.parametrize("task", RUNS)
def test_stopped_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, task):
    path = write_run(tmp_path, task)
    run(load(path, out=tmp_path / "whole"), quiet)
    with pytest.raises(KeyboardInterrupt):
        run(load(path, out=tmp_path / "parts"), interrupt_at(3))
    run(load(path, out=tmp_path / "parts", workers=2), quiet)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k != "images_per_second"}
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "parts")
    ]
    assert logs[0] == logs[1]


def fell(early: float, late: float) -> bool:
    return late < 0.9 * early


@pytest.mark.parametrize(
    ("learner", "config", "key", "learned"),
    [
        (ScoreLearner, ScoreConfig(network=NETWORK, optimizer=OptimizerConfig(lr=2e-3)), "mse", fell),
        (
            MILearner,
            MIConfig(
                estimator={"channels": [8, 8], "patch": 8}, optimizer=OptimizerConfig(lr=2e-3), max_time=50
            ),
            "bound",
            lambda early, late: late > early + 0.01,
        ),
        (
            ClassifierLearner,
            ClassifierConfig(network=CLASSIFIER, optimizer=AnnealedConfig(lr=2e-3)),
            "loss",
            fell,
        ),
        (
            CUTLearner,
            CUTConfig(optimizer=AdamConfig(lr=1e-2), **SMALL_GAN),
            "nce",
            lambda early, late: late < 0.9 * np.log(16),  # better than chance among so many patches
        ),
        (ASPLearner, ASPConfig(optimizer=AdamConfig(lr=2e-3), **SMALL_GAN | SPECTRAL), "pyramid", fell),
    ],
)
def test_a_learner_learns_and_its_parts_round_trip(tmp_path, learner, config, key, learned):
    accelerator = Accelerator(cpu=True)
    made = learner(config, accelerator, 0, 120)
    ramp = torch.linspace(-1, 1, 32).view(1, 1, 1, 32).expand(4, 3, 32, 32).clone()
    ramp[:, :, 8:16, 8:16] = -1
    noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    he = torch.nn.functional.interpolate(noise, scale_factor=4, mode="bilinear").clamp(-1, 1)
    values = []
    for step in range(60 if learner is CUTLearner else 40):
        batch = {
            "he": he,
            "ihc": ramp,
            "key": torch.arange(4) + 4 * step,
            "marker": torch.zeros(4, dtype=torch.int64),
        }
        values.append(float(made.step(made.draw(batch), step)[key]))
    early, late = np.mean(values[:8]), np.mean(values[-8:])
    assert learned(early, late)

    path = save_state(tmp_path, 40, made.parts())
    other = learner(config, accelerator, 9, 120)
    assert load_state(path, other.parts()) == 40
    for name, part in made.parts().items():
        _assert_same(part.state_dict(), other.parts()[name].state_dict())


def _assert_same(first, second):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            _assert_same(first[key], second[key])
    elif isinstance(first, list):
        for a, b in zip(first, second, strict=True):
            _assert_same(a, b)
    else:
        assert first == second


def _command(*words: str) -> list[str]:
    return [sys.executable, *words]


def _environment() -> dict[str, str]:
    source = str(Path(__file__).parent.parent / "src")
    return os.environ | {"PYTHONPATH": source, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("task", ["score", "mi", "cut", "asp"])
def test_two_processes_step_as_one_with_the_double_batch(tmp_path, task):
    path = write_run(tmp_path, task, steps=3)
    run(load(path, out=tmp_path / "one"), quiet)
    launch = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "miudiff",
        "train",
        str(path),
        f"out={tmp_path / 'two'}",
    ]
    subprocess.run(_command(*launch), env=_environment(), check=True, timeout=240, capture_output=True)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    # AdamW's first steps are signs of gradients: where one is nearly 0 its rounding decides, so a few weights may differ
    # of a GAN this holds for every bias before a norm, which has no effect and whose gradient is rounding alone
    names = [name for name in one if task in ("score", "mi") or not name.endswith(".bias")]
    differences = torch.cat([(one[name] - two[name]).abs().flatten() for name in names])
    assert float((differences > 1e-5).float().mean()) < 1e-3
    assert float(differences.mean()) < 1e-6


def test_a_kill_loses_at_most_the_steps_since_the_last_state(tmp_path):
    path = write_run(tmp_path, steps=400)
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        _command("-m", "miudiff", "train", str(path), f"out={folder}"),
        env=_environment(),
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(find_states(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder / ".state-00000099.pt.1.part").write_bytes(b"half")
    reached = find_states(folder)[-1][0]
    logged = [
        json.loads(line)["step"]
        for line in (folder / "metrics.jsonl").read_text().splitlines()
        if line.endswith("}")
    ]
    assert 2 <= reached <= 400
    assert logged[-1] - reached <= 2
    steps = reached + 2
    run(load(path, out=folder, steps=steps), quiet)
    run(load(path, out=tmp_path / "whole", steps=steps), quiet)
    whole, killed = weights(tmp_path / "whole"), weights(folder)
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert not list(folder.glob(".*.part"))
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(
        range(1, steps + 1)
    )


def test_control_c_writes_a_state_and_exits_130(tmp_path):
    path = write_run(tmp_path, steps=100_000, save_every=50_000)
    folder = tmp_path / "run"
    process = subprocess.Popen(
        _command("-m", "miudiff", "train", str(path)),
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "same command" in errors
    assert len(find_states(folder)) == 1


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_every_process_finds_those_that_read_tiles_at_their_work(tmp_path, kind):
    path = write_run(tmp_path, steps=100_000, save_every=50_000)
    folder = tmp_path / "run"
    process = subprocess.Popen(
        _command("-m", "miudiff", "train", str(path), "workers=2"),
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, kind)  # as a terminal does, or torchrun
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert len(find_states(folder)) == 1


def test_a_process_that_reads_tiles_and_is_killed_is_told_in_one_line(tmp_path, monkeypatch):
    cut = Tiles.__getitem__

    def killed(self, index):
        if index >= 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return cut(self, index)

    monkeypatch.setattr(Tiles, "__getitem__", killed)
    with pytest.raises(DeviceError, match="a process that reads tiles ended.*fewer 'workers'"):
        run(load(write_run(tmp_path), workers=1), quiet)


def test_the_rate_is_that_of_the_steps_since_the_line_before(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    progress = loop._Progress(start=10, stop=50, batch=4)
    now[0] = 120.0  # the first step compiles, and processes start
    assert progress.rate(20) == 2.0
    now[0] = 121.0
    assert progress.rate(30) == 40.0
    assert progress.line(30, {"mse": 0.5}, 40.0) == "step 30/50  mse 0.5  40.0 images/s  2 s left"


def test_a_nan_stops_with_the_step_and_the_batchs_names_and_leaves_the_weights(tmp_path, monkeypatch):
    path = write_run(tmp_path)
    run(load(path, steps=2), quiet)
    before = weights(tmp_path / "run")
    import miudiff.diffusion.learner as module

    sound = module.sample_noise
    monkeypatch.setattr(module, "sample_noise", lambda *a, **k: sound(*a, **k) * float("nan"))
    with pytest.raises(NonFiniteError, match=r"step 2: loss nan.*field\d\.png"):
        run(load(path), quiet)
    assert all(torch.equal(before[name], value) for name, value in weights(tmp_path / "run").items())


def test_a_step_that_finds_no_memory_says_what_takes_less(tmp_path, monkeypatch):
    def hungry(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(ScoreLearner, "step", hungry)
    with pytest.raises(
        DeviceError, match=r"step 0, images 4 x 3 x 32 x 32 .*2\.00 GiB.*lower batch_size or data\.size"
    ):
        run(load(write_run(tmp_path)), quiet)


def test_two_runs_of_one_process_may_differ_in_precision(tmp_path):
    with pytest.raises(DataError):
        run(load(write_run(tmp_path, data={"mpp": 1.0, "sources": [{"files": "none"}]})), quiet)
    for precision in ("bf16", "fp32", "bf16"):
        path = write_run(tmp_path / precision)
        run(load(path, steps=1, precision=precision), quiet)


def test_a_folder_with_another_run_is_refused(tmp_path):
    path = write_run(tmp_path)
    run(load(path, steps=2), quiet)
    with pytest.raises(ConfigError, match="another 'seed'"):
        run(load(path, seed=8), quiet)
    run(load(path, steps=4), quiet)  # more steps are the same run


def test_a_damaged_state_is_refused_in_one_line(tmp_path):
    path = write_run(tmp_path)
    run(load(path, steps=2), quiet)
    state = find_states(tmp_path / "run")[-1][1]
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        run(load(path), quiet)


def test_a_state_that_the_disk_does_not_hold_is_told_in_one_line_and_leaves_the_last(tmp_path):
    first = save_state(tmp_path, 1, {"net": torch.nn.Linear(2, 2)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (100_000, limits[1])
    )  # no file may grow beyond: as on a full disk
    try:
        with pytest.raises(DataError, match=r"state-00000002.pt: cannot be written \(File too large\)"):
            save_state(tmp_path, 2, {"net": torch.nn.Linear(1000, 100)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [first]


def test_states_hold_no_code(tmp_path):
    torch.save({"step": 1, "parts": {"model": os.system}}, tmp_path / "state-00000001.pt")
    with pytest.raises(CheckpointError, match="plain tensors"):
        load_tensors(tmp_path / "state-00000001.pt")


def test_the_average_follows_its_formula():
    module = torch.nn.Linear(1, 1, bias=False)
    average = Average(module, 0.5)
    expected = float(module.weight.detach())
    for n in range(1, 12):
        with torch.no_grad():
            module.weight.fill_(n)
        average.update(module)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    assert float(average.weights()["weight"]) == pytest.approx(expected, rel=1e-6)


def test_the_learning_rate_rises_holds_and_falls():
    config = OptimizerConfig(lr=1.0, warmup=10, decay_from=50)
    assert [learning_rate(config, s, 100) for s in (0, 9, 30)] == [0.1, 1.0, 1.0]
    assert learning_rate(config, 75, 100) == pytest.approx(0.505, abs=1e-3)
    assert learning_rate(config, 99, 100) < 0.02


def test_a_model_takes_markers_and_scale_from_its_runs_and_contradiction_is_refused(tmp_path):
    score, mi = tmp_path / "score", tmp_path / "mi"
    for folder, task in ((score, "score"), (mi, "mi")):
        folder.mkdir()
        (folder / "run.yaml").write_text(write_run(tmp_path, task, markers=["A", "B"]).read_text())
    assert trained_as(score, mi, (), None) == (("A", "B"), 1.0)
    with pytest.raises(ConfigError, match="in this order"):
        trained_as(score, mi, ("B", "A"), None)
    with pytest.raises(ConfigError, match=r"trained at 1 um/px, but the model is to be at 0\.5"):
        trained_as(score, mi, (), 0.5)


def test_a_generators_run_ends_with_a_model_folder(tmp_path):
    folder = run(load(write_run(tmp_path, "fastcut", steps=1, markers=[])), quiet)
    model = load_generator_model(folder)
    assert (model.method, model.card.name, model.card.mpp, model.card.tile) == ("fastcut", "run", 1.0, 32)


def test_he_is_as_data_says_where_it_says_nothing_itself(tmp_path):
    config = load(write_run(tmp_path, "cut"))
    assert config.he.model_copy(update={"sources": ()}) == config.data.model_copy(update={"sources": ()})
    assert config.he.sources[0].files == "he"
    assert parse(RunConfig, yaml.safe_load(to_yaml(config)), "again") == config


def test_a_generators_run_goes_on_with_another_rate_on_another_disk_alone(tmp_path):
    path = write_run(tmp_path, "cut", steps=1)
    run(load(path), quiet)
    moved = tmp_path / "moved"
    moved.mkdir()
    for stain in ("he", "ihc"):
        (tmp_path / stain).rename(moved / stain)
    data = read_yaml(path)["data"] | {"root": str(moved)}
    run(load(path, data=data, cut=SMALL_GAN | {"optimizer": {"lr": 1e-5}}, steps=2), quiet)
    with pytest.raises(ConfigError, match="another 'cut'"):
        run(load(path, data=data, cut=SMALL_GAN | {"flip": True}, steps=3), quiet)


@pytest.mark.parametrize(
    ("task", "changes", "told"),
    [
        ("score", BOTH, "'he': the task 'score' learns from the images of 'data' alone"),
        ("mi", {"paired": True}, "'paired': the task 'mi' learns from the images of 'data' alone"),
        ("asp", {"paired": False}, "expected true: ASP learns from pairs"),
        ("cut", {"he": None}, "'he' is missing"),
        ("cut", {"markers": ["A", "B"]}, "'markers': found 2"),
        ("cut", {"he": BOTH["he"] | {"mpp": 0.5}}, r"he\.mpp: found 0\.5, expected 1\.0 as data\.mpp"),
        ("cut", {"he": BOTH["he"] | {"size": 16}}, r"he\.size: found 16, expected 32"),
        ("asp", {"he": BOTH["he"] | {"dihedral": False}}, r"he\.dihedral: found False, expected True"),
        ("cut", {"cut": {}, "data": {"size": 16}}, r"data\.size: found 16, expected at least 32 for 'cut'"),
        ("asp", {"asp": {}}, r"data\.size: found 32, expected at least 128 for 'asp'"),
    ],
)
def test_stains_that_contradict_the_task_are_refused(tmp_path, task, changes, told):
    path = write_run(tmp_path, task)
    values = read_yaml(path)
    data = values["data"] | changes.get("data", {})
    with pytest.raises(ConfigError, match=told):
        run(load(path, **changes | {"data": data}), quiet)
