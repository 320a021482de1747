"""The student: its losses on distributions with known scores, its training, its folder, and its way to a user."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from torch import nn

from miudiff.checkpoints import find_states, load_tensors
from miudiff.config import parse
from miudiff.data.tiles import collate
from miudiff.diffusion.sampling import denoised
from miudiff.diffusion.sde import VPSDE, at
from miudiff.distillation.learner import DistillConfig, DistillLearner, MatchingConfig, draw_noise
from miudiff.distillation.losses import as_loss, coarse_squares, matching_gradient
from miudiff.distillation.teacher import HETiles, StudentTiles, Teacher, key_of
from miudiff.errors import CheckpointError, ConfigError, NonFiniteError
from miudiff.images import read_image, write_image
from miudiff.methods.model import Card, Model, load_model, save_model
from miudiff.methods.student import (
    OneStep,
    OneStepConfig,
    Student,
    StudentConfig,
    StudentModel,
    load_student,
    save_student,
)
from miudiff.methods.systems import find_student, student_of
from miudiff.noise import NoiseKey, normal
from miudiff.runs import RunConfig, execute, run
from miudiff.stainer import VirtualStainer
from miudiff.training.learner import sample_times
from miudiff.whole_slide.preview import hurried
from slide_files import tissue, write_svs
from test_processes import launch
from test_systems import run as command
from tiny import CPU, NETWORK, tiny_estimator, tiny_palette, tiny_score, tiny_student

SDE = VPSDE()
SMALL = {**NETWORK.model_dump(mode="json"), "channels": [8, 16], "learned_variance": False}


# The distribution-matching gradient


def clean_estimate(y, t, mean, variance):
    """E[y0 | y_t] for y0 of N(mean, variance), in closed form."""
    signal, spread = at(SDE.signal, t, y), at(SDE.spread, t, y)
    gain = signal * variance / (signal**2 * variance + spread**2)
    return mean + gain * (y - signal * mean)


@pytest.mark.parametrize("t", [0, 20, 300, 599])
def test_matching_is_the_difference_of_the_scores(t):
    """D = (y_t + sigma^2 s) / alpha, so (D_fake - D_real) is sigma^2 / alpha times the difference of the scores."""
    generator = torch.Generator().manual_seed(0)
    y0 = torch.randn(64, 1, 1, 1, generator=generator, dtype=torch.float64) * 0.5 + 2
    y = SDE.perturb(y0, t, torch.randn(64, 1, 1, 1, generator=generator, dtype=torch.float64))
    real, fake = clean_estimate(y, t, 0.0, 1.0), clean_estimate(y, t, 2.0, 0.25)
    signal, spread = float(SDE.signal[t]), float(SDE.spread[t])
    scores = [
        -(y - signal * mean) / (signal**2 * variance + spread**2)
        for mean, variance in ((0.0, 1.0), (2.0, 0.25))
    ]
    expected = spread**2 / signal * (scores[1] - scores[0]) / (y0 - real).abs().clamp(min=1e-3)
    torch.testing.assert_close(matching_gradient(y0, real, fake), expected, rtol=1e-6, atol=1e-9)


def test_matching_points_from_the_students_distribution_to_the_targets_and_vanishes_when_they_agree():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(4096, 1, 1, 1, generator=generator, dtype=torch.float64)
    more = torch.randn(4096, 1, 1, 1, generator=generator, dtype=torch.float64)
    for mean, towards in ((3.0, -1), (-3.0, 1)):
        y0 = mean + noise
        y = SDE.perturb(y0, 300, more)
        gradient = matching_gradient(y0, clean_estimate(y, 300, 0.0, 1.0), clean_estimate(y, 300, mean, 1.0))
        assert (torch.sign(-gradient) == towards).all()
    y = SDE.perturb(noise, 300, more)
    same = clean_estimate(y, 300, 0.0, 1.0)
    assert not matching_gradient(noise, same, same).any()


def test_the_loss_has_the_gradient_that_it_is_given():
    y0 = torch.randn(2, 3, 4, 4, requires_grad=True)
    gradient = torch.randn(2, 3, 4, 4)
    as_loss(y0, gradient).backward()
    torch.testing.assert_close(y0.grad, gradient / gradient.numel(), rtol=1e-4, atol=1e-7)


def test_coarse_squares_are_those_of_block_means():
    first, second = torch.randn(2, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    means = [x.numpy().reshape(1, 3, 2, 4, 2, 4).mean((3, 5)) for x in (first, second)]
    assert float(coarse_squares(first, second, 4)) == pytest.approx(np.square(means[0] - means[1]).mean())
    ripple = torch.zeros(1, 3, 8, 8)
    ripple[..., ::2] = 1
    ripple[..., 1::2] = -1  # detail is free
    assert float(coarse_squares(first + ripple, first, 4)) == pytest.approx(0, abs=1e-9)


def mlp(inputs, width=64):
    layers = nn.Sequential(
        nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
    )
    return layers


def sliced_wasserstein(first, second):
    angles = torch.linspace(0, torch.pi, 33)[:-1]
    directions = torch.stack([angles.cos(), angles.sin()])
    along = [(x @ directions).sort(dim=0).values for x in (first, second)]
    return float((along[0] - along[1]).square().mean().sqrt())


def test_a_student_of_two_dimensions_ends_at_the_targets_distribution():
    """Three Gaussians, whose clean estimate is known; D_fake and the student are small networks trained by the loop of the learner."""
    torch.manual_seed(0)
    centres = 1.5 * torch.tensor([[1.0, 0.0], [-0.5, 0.87], [-0.5, -0.87]])
    variance = 0.05

    def real(y, t):
        signal, spread = at(SDE.signal, t, y).view(-1, 1, 1), at(SDE.spread, t, y).view(-1, 1, 1)
        total = signal**2 * variance + spread**2
        apart = y.flatten(1)[:, None] - signal * centres
        weight = torch.softmax(-apart.square().sum(2, keepdim=True) / (2 * total), 1)
        return (weight * (centres + signal * variance / total * apart)).sum(1).view(-1, 2, 1, 1)

    student, fake = mlp(2), mlp(3)
    with torch.no_grad():
        student[-1].bias += torch.tensor([4.0, 3.0])
    optimizers = [
        torch.optim.Adam(net.parameters(), lr=rate, betas=(0.0, 0.99))
        for net, rate in ((student, 2e-3), (fake, 4e-3))
    ]

    def guess(y, t):
        eps = fake(torch.cat([y.flatten(1), t[:, None] / 500 - 1], 1)).view(-1, 2, 1, 1)
        return denoised(SDE, y, t, eps), eps

    def made(count):
        return student(torch.randn(count, 2)).view(-1, 2, 1, 1)

    wanted = centres[torch.randint(3, (4096,))] + variance**0.5 * torch.randn(4096, 2)
    with torch.no_grad():
        before = sliced_wasserstein(made(4096).flatten(1), wanted)
    for step in range(2400):
        turn = step % 4 == 0
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] = group.get("initial_lr", group["lr"])
                group["lr"] *= min(1.0, 2 * (1 - step / 2400))
        y0 = made(256)
        if turn:
            t = torch.randint(20, 600, (256,))
            y = SDE.perturb(y0.detach(), t, torch.randn_like(y0))
            with torch.no_grad():
                gradient = matching_gradient(y0, real(y, t), guess(y, t)[0])
            optimizers[0].zero_grad()
            (as_loss(y0, gradient) * y0.numel() / 256).backward()
            optimizers[0].step()
        t = torch.randint(0, 700, (256,))
        noise = torch.randn_like(y0)
        loss = (guess(SDE.perturb(y0.detach(), t, noise), t)[1] - noise).square().mean()
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
    with torch.no_grad():
        after = sliced_wasserstein(made(4096).flatten(1), wanted)
    assert after < before / 10


# The network


def test_a_student_with_its_teachers_network_begins_as_the_teachers_clean_estimate():
    teacher = tiny_score(2)
    student = Student(
        StudentConfig(network=NETWORK.model_copy(update={"markers": 2}), start=150, palette=False)
    ).eval()
    student.begin_with(teacher)
    he, source = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    x = student.noised(source, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(
        x, SDE.perturb(source, 149, torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    )
    marker = torch.tensor([0, 1])
    eps = teacher(x, torch.full((2,), 149), marker)[:, :3]
    with torch.no_grad():
        torch.testing.assert_close(student(x, he, marker), denoised(SDE, x, 149, eps), rtol=1e-4, atol=1e-4)


def test_a_student_of_another_shape_cannot_begin_with_the_teachers_weights():
    student = Student(
        StudentConfig(network=NETWORK.model_copy(update={"channels": (8, 16)}), start=150, palette=False)
    )
    with pytest.raises(CheckpointError, match="the student's network"):
        student.begin_with(tiny_score())


def test_tiles_of_one_field_agree_where_they_overlap():
    """The start's noise is one field over the plane, whichever tile is cut from it."""
    source = torch.zeros(1, 3, 64, 64)
    whole = normal([NoiseKey(0, "a")], "start", 0, source)
    part = normal([NoiseKey(0, "a", 16, 32)], "start", 0, source[:, :, :32, :48])
    assert torch.equal(whole[:, :, 32:64, 16:64], part)


def test_samples_of_a_student_differ_by_seed():
    method = OneStep(tiny_student(), OneStepConfig(), CPU)
    he = torch.zeros(1, 3, 32, 32)
    first, second = (method.translate(he, [NoiseKey(seed, "a")]) for seed in (0, 1))
    assert float((first - second).abs().mean()) > 0.01


# Training


def tiny_teacher(markers=("A", "B")):
    card = Card(
        name="tiny", markers=markers, mpp=1.0, tile=64, palette={name: tiny_palette() for name in markers}
    )
    return Model(tiny_score(len(markers) or None), tiny_estimator(), card)


@pytest.fixture
def folder(tmp_path):
    """A teacher's folder and small H&E images."""
    save_model(tmp_path / "tiny", tiny_teacher())
    rng = np.random.default_rng(0)
    for i in range(2):
        he = np.full((96, 96, 3), 240, np.uint8)
        for _ in range(60):
            y, x = rng.integers(0, 88, 2)
            he[y : y + 8, x : x + 8] = [(200, 120, 180), (120, 80, 160)][int(rng.integers(2))]
        write_image(tmp_path / "he" / f"field{i}.png", he)
    return tmp_path


def settings(folder, **changes):
    values = {
        "task": "distill",
        "out": str(folder / "student"),
        "data": {
            "root": str(folder),
            "size": 64,
            "mpp": 1.0,
            "sources": [{"files": "he", "mpp": 1.0}],
        },
        "distill": {
            "teacher": str(folder / "tiny"),
            "changes": ["reverse.steps=2", "reverse.solver=dpmpp_2m"],
            "network": SMALL,
            "regression": {"steps": 3, "tiles": 4},
            "matching": {"every": 2},
            "cost": {"information": 0.01, "contrast": 0.01},
            "ema": 0.9,
        },
        "steps": 8,
        "batch_size": 2,
        "seed": 3,
        "device": "cpu",
        "precision": "fp32",
        "log_every": 1,
        "save_every": 4,
    }
    return values | changes


def configured(folder, **changes):
    return parse(RunConfig, settings(folder, **changes), "test")


def weights(folder):
    parts = load_tensors(find_states(folder)[-1][1])["parts"]
    return {f"{part}.{name}": value for part in ("student", "fake") for name, value in parts[part].items()}


def test_a_run_that_is_stopped_and_resumed_has_the_weights_of_one_that_is_not(folder):
    run(configured(folder, out=str(folder / "whole")), say=lambda line: None)
    for steps in (2, 5, 8):  # in regression, in matching, to the end
        run(configured(folder, out=str(folder / "parts"), steps=steps), say=lambda line: None)
    whole, parts = weights(folder / "whole"), weights(folder / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logs = [
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    for line in (line for log in logs for line in log):
        line.pop("images_per_second")
    assert logs[0] == logs[1]
    assert {"matching", "colour", "information", "contrast", "fake"} < set(logs[0][-1])


def test_after_a_nan_every_optimizer_may_go_on_more_slowly_and_nothing_else_may_change(folder):
    run(configured(folder, steps=2), say=lambda line: None)
    for stage, other in (("regression", {"loss": "l2"}), ("matching", {"every": 3})):
        values = settings(folder, steps=4)
        values["distill"][stage] = values["distill"][stage] | {"optimizer": {"lr": 1e-6}}
        run(parse(RunConfig, values, "test"), say=lambda line: None)
        values["distill"][stage] |= other
        with pytest.raises(ConfigError, match="another 'distill'"):
            run(parse(RunConfig, values, "test"), say=lambda line: None)


def test_each_optimizer_decays_weights_as_its_own_settings_say(folder):
    values = settings(folder, steps=6)
    values["distill"]["matching"] = {"optimizer": {"weight_decay": 0.25}}
    made = learner(parse(RunConfig, values, "test"), tiny_teacher())
    made._take("fake", next(made.fake.parameters()).sum(), made.config.matching.optimizer, 0, 0, 1)
    (group,) = made.optimizers["fake"].param_groups
    assert group["weight_decay"] == 0.25


@pytest.mark.slow  # two processes start
def test_two_processes_distil_as_one_with_the_double_batch(folder):
    (folder / "run.yaml").write_text(yaml.safe_dump(settings(folder, steps=5, out=str(folder / "two"))))
    process = launch("-m", "miudiff", "train", str(folder / "run.yaml"), stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    run(configured(folder, steps=5, out=str(folder / "one")), say=lambda line: None)
    one, two = weights(folder / "one"), weights(folder / "two")
    differences = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    # Adam's first steps are signs of gradients: where one is nearly 0 its rounding decides.
    assert float((differences > 1e-5).float().mean()) < 1e-2
    assert float(differences.mean()) < 1e-5


def test_the_teachers_results_are_made_once_and_those_of_another_teacher_are_refused(folder):
    config = configured(folder, steps=1)
    run(config, say=lambda line: None)
    made = {path: path.stat().st_mtime_ns for path in (folder / "student" / "teacher").glob("*.png")}
    assert len(made) == 4
    next(iter(made)).unlink()
    run(configured(folder, steps=2), say=lambda line: None)
    again = {path: path.stat().st_mtime_ns for path in made}
    assert sum(again[path] != made[path] for path in made) == 1
    save_model(folder / "tiny", tiny_teacher(("A", "C")))
    with pytest.raises(ConfigError, match="made with another 'teacher'"):
        run(configured(folder, steps=3), say=lambda line: None)


def test_a_student_learns_from_the_noise_that_its_teacher_was_given(folder):
    """The teacher's file of a tile is what MIU-Diff makes of that tile with that key."""
    run(configured(folder, steps=1), say=lambda line: None)
    config = configured(folder)
    model = load_model(folder / "tiny", CPU)
    tiles = HETiles(execute.find_images(config.data, (), stain="HE"), config.data, config.seed, model)
    item = StudentTiles(tiles, sorted((folder / "student" / "teacher").glob("*.png")), 6)[1]
    teacher = Teacher(model, config.distill.settings, CPU)
    expected = teacher.translate(item["he"][None], item["marker"], [key_of(3, 1)])
    # The teacher's tiles were stained in batches: equal to a grey level.
    assert float((item["ihc"] - expected[0]).abs().max()) <= 2 / 127.5
    batch = learner(config, model).draw(collate([item])[0])
    assert torch.equal(batch["start"][0], key_of(3, 1).normal("start", 0, (3, 64, 64)))
    assert torch.equal(batch["palette"][0], key_of(3, 1).normal("palette", 0, (1, 64, 64)))
    assert "ihc" not in StudentTiles(tiles, [], 0)[1]


def learner(config, model):
    return DistillLearner(config.distill, Accelerator(cpu=True), 3, config.steps, model, "x")


def test_with_no_other_weight_it_is_plain_distillation(folder):
    """Regression steps are those of a loop of a few lines; what follows with every weight 0 changes nothing."""
    config = configured(folder, steps=4)
    nothing = {"weight": 0.0}, {"colour": 0.0}
    alone = config.distill.model_copy(
        update={
            "matching": config.distill.matching.model_copy(update=nothing[0]),
            "cost": config.distill.cost.model_copy(
                update={"colour": 0.0, "information": 0.0, "contrast": 0.0}
            ),
        }
    )
    model = tiny_teacher()
    tiles = HETiles(execute.find_images(config.data, (), stain="HE"), config.data, 3, model)
    files = Teacher(model, config.distill.settings, CPU).teach(
        tiles, 4, folder / "made", 3, say=lambda line: None
    )
    shown = StudentTiles(tiles, files, 6)
    made = learner(config.model_copy(update={"distill": alone}), model)
    plain = Student(made.student.config)
    plain.load_state_dict(made.student.state_dict())
    rule = alone.regression.optimizer
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.0, betas=rule.betas, weight_decay=1e-5)
    for step in range(3):
        batch = made.draw(collate([shown[2 * step], shown[2 * step + 1]])[0])
        logs = made.step(batch, step)
        source = torch.cat(
            [tiny_palette()(batch["he"][i : i + 1], batch["palette"][i : i + 1], 0.5) for i in range(2)]
        )
        x = SDE.perturb(source, 149, batch["start"])
        loss = (plain(x, batch["he"], batch["marker"]) - batch["ihc"]).abs().mean()
        optimizer.param_groups[0]["lr"] = rule.lr * (step + 1) / rule.warmup
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(plain.parameters(), rule.clip)
        optimizer.step()
        torch.testing.assert_close(logs["regression"], loss.detach(), rtol=1e-5, atol=1e-6)
    for first, second in zip(made.student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)
    before = {name: value.clone() for name, value in made.student.state_dict().items()}
    batch = made.draw(collate([shown[6], shown[7]])[0])
    assert "fake_noise" not in batch
    assert made.step(batch, 3) == {}
    assert all(torch.equal(value, before[name]) for name, value in made.student.state_dict().items())


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(folder, monkeypatch):
    monkeypatch.setattr(
        "miudiff.distillation.learner.coarse_squares", lambda *rest: torch.tensor(float("nan"))
    )
    with pytest.raises(NonFiniteError, match=r"step 3: loss of the student nan.*field"):
        run(configured(folder), say=lambda line: None)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher": "nowhere"}, "no model there"),
        ({"preset": "slow"}, "preset 'slow'"),
        ({"network": SMALL | {"channels": [8, 16, 16, 16, 16, 16, 16, 16]}}, "data.size: found 64"),
        ({"init": "teacher"}, "the student's network"),
        ({"regression": {"tiles": 0}}, "distill.regression.tiles"),
    ],
)
def test_what_cannot_be_distilled_is_told_in_one_line(folder, changes, told):
    values = settings(folder)
    values["distill"] |= changes
    with pytest.raises((ConfigError, CheckpointError), match=told) as refused:
        run(parse(RunConfig, values, "test"), say=lambda line: None)
    assert "\n" not in str(refused.value)


def test_tiles_of_another_scale_than_the_teachers_are_refused(folder):
    values = settings(folder)
    values["data"]["mpp"] = 0.5
    with pytest.raises(ConfigError, match=r"data\.mpp: found 0\.5, expected 1, as the teacher 'tiny'"):
        run(parse(RunConfig, values, "test"), say=lambda line: None)


# The folder and the way to a user


def test_a_student_reads_back_with_its_card(tmp_path):
    card = Card(name="quick", markers=("A", "B"), mpp=1.0, tile=64, palette={"A": tiny_palette()})
    save_student(tmp_path / "quick", StudentModel(tiny_student(2), card, "tiny 0123"))
    model = load_student(tmp_path / "quick")
    assert (model.card, model.teacher) == (card, "tiny 0123")
    assert model.identity.startswith("quick ")
    he = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    made, read = (
        OneStep(student, OneStepConfig(), CPU, 1).translate(he, [NoiseKey(0, "a")])
        for student in (tiny_student(2), model.student)
    )
    torch.testing.assert_close(made, read, atol=1e-5, rtol=0)


def test_a_students_folder_that_is_damaged_is_refused(tmp_path):
    card = Card(name="quick", markers=("A", "B"), mpp=1.0, tile=64)
    save_student(tmp_path / "quick", StudentModel(tiny_student(2), card, "tiny 0123"))
    index = json.loads((tmp_path / "quick" / "model_index.json").read_text())

    def refused(told, **changes):
        (tmp_path / "quick" / "model_index.json").write_text(json.dumps(index | changes))
        with pytest.raises(CheckpointError, match=told) as caught:
            load_student(tmp_path / "quick")
        assert "\n" not in str(caught.value)

    refused("'student' or 'teacher' is missing", teacher=None)
    refused("1 markers", markers=["A"])
    path = tmp_path / "quick" / "student" / "config.json"
    path.write_text(path.read_text().replace('"start": 150', '"start": 5000'))
    refused("'start': found 5000", sha256={})
    path.unlink()
    refused("config.json")


@pytest.mark.parametrize("tilt", [1.0, 2.0])
def test_levels_lie_in_their_range_as_the_tilt_says(tilt):
    keys = torch.arange(4000)
    batch = {"key": keys, "he": torch.zeros(4000, 3, 1, 1)}
    config = DistillConfig(matching=MatchingConfig(levels=(5, 605), tilt=tilt))
    times = draw_noise(batch, config, 0)["time"]
    assert (int(times.min()), int(times.max())) == (5, 604)
    assert (times < 5 + 150).float().mean() == pytest.approx(0.25 ** (1 / tilt), abs=0.03)
    if tilt == 1:
        assert torch.equal(times, 5 + sample_times(keys, 0, 600))


@pytest.fixture
def trained(folder):
    """A teacher's folder beside its student's."""
    run(configured(folder, steps=5), say=lambda line: None)
    shutil.copytree(folder / "student" / "weights", folder / "tiny-turbo")
    return folder


def test_the_preset_turbo_takes_the_models_student(trained):
    stainer = VirtualStainer.load(trained / "tiny", preset="turbo", marker="B", device="cpu")
    assert (stainer.name, stainer.reverse, stainer.steps(64, 64)) == ("one-step", None, 1)
    assert stainer.marker == "B"
    image = read_image(trained / "he" / "field0.png")
    stained = stainer.translate(image, 1.0)
    assert stained.shape == image.shape
    assert np.array_equal(stained, stainer.translate(image, 1.0))
    assert not np.array_equal(stained, stainer.changed(("variety=2",)).translate(image, 1.0))
    assert student_of(trained / "tiny-turbo") == trained / "tiny-turbo"


def test_a_student_is_found_from_within_its_teachers_folder(trained, monkeypatch):
    monkeypatch.chdir(trained / "tiny")
    assert find_student(".") == trained / "tiny-turbo"
    monkeypatch.chdir(trained / "tiny-turbo")
    assert student_of(".") == Path(".")


@pytest.mark.parametrize(
    ("model", "asked", "told"),
    [
        ("tiny-turbo", {"method": "sdedit"}, "a one-step student"),
        ("tiny-turbo", {"preset": "fast"}, "one-step has turbo"),
        ("tiny-turbo", {"changes": ("steps=3",)}, "variety"),
        ("tiny-turbo", {"marker": "HER2"}, "marker 'HER2'"),
        ("tiny-turbo", {"mode": "fuse"}, "takes one pass"),
        ("tiny", {"method": "one-step"}, "a diffusion model"),
    ],
)
def test_what_a_student_does_not_take_is_refused_in_one_line(trained, model, asked, told):
    with pytest.raises(ConfigError, match=told) as refused:
        VirtualStainer.load(trained / model, device="cpu", **asked)
    assert "\n" not in str(refused.value)


def test_a_model_without_a_student_says_how_to_get_one(folder):
    with pytest.raises(CheckpointError, match=r"no student.*task=distill"):
        VirtualStainer.load(folder / "tiny", preset="turbo", device="cpu")


def test_slides_are_stained_by_the_student_and_images_by_its_teacher(trained, capsys):
    (trained / "both").mkdir()
    write_svs(trained / "both" / "slide.svs", [tissue(300, 260)])
    write_image(trained / "both" / "field.png", tissue(96, 96))
    words = ("--model", trained / "tiny", "--marker", "A", "--device", "cpu", "--no-report")

    def methods(target, *more):
        assert command("translate", trained / "both", target, *words, "--mpp", 1.0, *more) == 0
        record = json.loads((target / "slide.json").read_text())
        (images,) = json.loads((target / "translation.json").read_text())["runs"]
        return record["method"], images["method"]

    assert methods(trained / "out") == ("one-step", "miu-diff")
    told = capsys.readouterr().out
    assert "marker A, miu-diff fast, seed 0" in told
    assert "marker A, one-step turbo, seed 0" in told
    assert methods(trained / "fast", "--preset", "fast") == ("miu-diff", "miu-diff")
    assert methods(trained / "four", "--set", "reverse.steps=4") == ("miu-diff", "miu-diff")
    assert methods(trained / "fused", "--mode", "fuse") == ("miu-diff", "miu-diff")
    for name, stained_by in (("slide.svs", "student"), ("field.png", "tiny")):
        capsys.readouterr()
        assert command("info", trained / "both" / name, *words[:-1], "--mpp", 1.0) == 0
        assert f"({stained_by}, cpu" in capsys.readouterr().out


def test_a_preview_by_a_student_is_its_one_step(trained):
    stainer = VirtualStainer.load(trained / "tiny-turbo", device="cpu")
    assert hurried(stainer) is stainer


def test_distilling_and_staining_from_the_command_line(folder, capsys):
    (folder / "run.yaml").write_text(yaml.safe_dump(settings(folder, steps=4)))
    assert command("train", folder / "run.yaml") == 0
    model = folder / "student" / "weights"
    assert (
        command(
            *("translate", folder / "he", folder / "out", "--model", model, "--mpp", 1.0),
            *("--marker", "A", "--device", "cpu"),
        )
        == 0
    )
    assert read_image(folder / "out" / "field1.png").shape == (96, 96, 3)
    record = json.loads((folder / "out" / "translation.json").read_text())
    assert "one-step" in json.dumps(record)
    capsys.readouterr()
    assert command("model", "card", model) == 0
    told = capsys.readouterr().out
    assert ": one-step, distilled from tiny " in told
    assert "markers: A, B" in told
    small = folder / "small"
    assert command("model", "assemble", folder / "student", small, "--name", "small", "--half") == 0
    file = "student/diffusion_pytorch_model.safetensors"
    assert (small / file).stat().st_size < 0.55 * (model / file).stat().st_size
    assert load_student(small).card.name == "small"
    assert command("model", "assemble", folder / "student", folder / "x", "--name", "x", "--mpp", 1) == 2
    assert "expected none of --mi" in capsys.readouterr().err
