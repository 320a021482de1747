"""`miudiff bench` measures what it says: pairs in turns, evaluations that are counted, a table of every part; times are nobody's test."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from miudiff.bench import methods, network, report, slide_io
from miudiff.bench.timing import Clock
from miudiff.diffusion.score import NetworkConfig
from miudiff.methods.presets import preset
from miudiff.noise import NoiseKey
from miudiff.stainer import VirtualStainer
from tiny import CLASSIFIER, CPU, tiny_model

QUICK = Clock(torch.device("cpu"), most=3, budget=0)


def test_pairs_are_measured_in_turns():
    calls = []
    found = Clock(torch.device("cpu"), most=5).pairs(lambda: calls.append("a"), lambda: calls.append("b"))
    assert calls == ["a", "b"] * 6  # the first of each is not counted
    assert len(found.base) == len(found.other) == 5


def test_a_budget_ends_the_pairs_but_not_before_three():
    assert len(Clock(torch.device("cpu"), most=50, budget=0).pairs(int, int).base) == 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((), 8),
        (("reverse.steps=6",), 6),
        (("reverse.start=30", "refinement.start=20", "refinement.loss=contrastive", "reverse.steps=30"), 50),
    ],
)
def test_evaluations_are_those_that_the_network_makes_refinements_with_them(settings, expected):
    stainer, calls = VirtualStainer(tiny_model(), preset("fast", settings), CPU), []
    # a copy that refinement makes of the network carries the hook along
    stainer.model.score.unet.register_forward_hook(lambda *_: calls.append(1))
    stainer.stain([np.zeros((64, 64, 3), np.uint8)], [NoiseKey(0)])
    assert methods.evaluations(stainer) == len(calls) == expected


def test_a_guided_step_is_another_than_the_plain_one(monkeypatch):
    monkeypatch.setattr(network, "SIDE", 64)
    found = network.guided_over_plain(tiny_model(), preset("fast"), 2, CPU, QUICK)
    assert found.as_dict("plain", "guided")["pairs"] == 3
    assert all(seconds > 0 for seconds in [*found.base, *found.other])


def test_the_operations_of_a_network_are_those_of_its_convolutions(monkeypatch):
    monkeypatch.setattr(network, "SIDE", 64)
    score = tiny_model().score
    once, twice = (network.flops(score, batch, CPU) for batch in (1, 2))
    first = 2 * 64 * 64 * 16 * 3 * 9  # its first convolution alone: 3 channels to 16 at 64 x 64
    assert first < once < 1000 * first
    assert twice == pytest.approx(2 * once, rel=0.01)


def test_the_slide_is_read_and_written_by_both(tmp_path):
    pytest.importorskip("pyvips")
    found = slide_io.beside_libvips(tmp_path, 1100)
    assert (tmp_path / "miudiff" / "out.ome.tif").stat().st_size > 10_000
    assert (tmp_path / "libvips" / "out.tif").stat().st_size > 10_000
    assert found["ratio_of_wall_seconds"] > 0


def test_every_part_is_in_the_file_and_in_the_table(monkeypatch, tmp_path):
    """The whole run with networks so small that it takes seconds."""
    small = NetworkConfig(size=32, channels=(16, 32), attention=(16,), head_channels=8, groups=8)
    monkeypatch.setattr(network, "NetworkConfig", lambda: small)
    monkeypatch.setattr(network, "SIDE", 64)
    monkeypatch.setattr(methods, "SIDE", 64)
    monkeypatch.setattr(methods, "CLASSIFIER", CLASSIFIER)
    monkeypatch.setattr(report, "load_any", lambda model, placement: tiny_model(mpp=1.0))
    monkeypatch.setattr(report.machine, "MATRIX", {"cpu": 64})
    monkeypatch.setattr(report, "QUICK", report.Extent(3, 0, (1,), 2, 700))
    shrunk = {"network": small.model_dump(), "size": 32, "batch": 2}
    monkeypatch.setattr(report.training, "SHIPPED", shrunk)
    lines: list[str] = []
    found = report.bench(quick=True, json=tmp_path / "bench.json", device="cpu", say=lines.append)
    stored = json.loads((tmp_path / "bench.json").read_text())
    for key in (
        "guided_step_ratio",
        "network_evaluations_per_tile",
        "seconds_per_mm2",
        "share_outside_network",
        "training_ratio_to_eager_fp32",
    ):
        assert key in stored
    assert stored == json.loads(json.dumps(found))
    assert stored["network_evaluations_per_tile"] == 8
    assert 0 < stored["share_outside_network"] < 1
    kinds = {(row["method"], row["preset"]) for row in stored["methods"]}
    assert {
        ("miu-diff", "paper"),
        ("sdedit", "official"),
        ("egsde", "official"),
        ("cut", "-"),
        ("one-step", "turbo"),
    } <= kinds
    table = [line for line in lines if line.startswith("| ")]
    assert sum("guided step" in line for line in table) == 2
    assert any("eager fp32" in line for line in table)


def test_weights_come_back_from_a_gpu_machine_in_parts(tmp_path):
    script = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "gpu.py"))
    data = bytes(range(256)) * 120_000
    parts = script["split"](data, tmp_path)
    assert [part.stat().st_size for part in parts] == [15_000_000, 15_000_000, 720_000]
    assert b"".join(part.read_bytes() for part in parts) == data
