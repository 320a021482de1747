"""Unconditional samples: a function of seed and number, drawn from the model's own distribution."""

import numpy as np
import pytest
import torch
from torch import nn

from miudiff.cli import main
from miudiff.diffusion.sde import VPSDE
from miudiff.errors import ConfigError
from miudiff.images import read_image
from miudiff.methods.model import Card, Model, save_model
from miudiff.samples import draw_samples, grid
from tiny import CPU, tiny_model


def draw(model, count=2, size=16, steps=4, seed=0, marker=None):
    return [i for i in draw_samples(model, marker, count, size, steps, seed, CPU) if i is not None]


def test_a_sample_depends_on_seed_and_number_alone():
    model = tiny_model(("Ki67", "ER"))
    two, three = draw(model), draw(model, count=3)
    assert all(np.array_equal(a, b) for a, b in zip(two, three, strict=False))
    assert not np.array_equal(two[0], two[1])
    assert not np.array_equal(two[0], draw(model, seed=1)[0])
    assert np.array_equal(two[0], draw(model, marker="Ki67")[0])  # the first by default


class Gaussian(nn.Module):
    """The exact noise estimate of a population N(mean, deviation^2): its samples must have both."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean, self.deviation, self.sde, self.learned_variance = mean, deviation, VPSDE(), False
        self.multiple = 8

    def predict(self, y, t, sde):
        signal, spread = float(sde.signal[t]), float(sde.spread[t])
        return spread * (y - signal * self.mean) / (signal**2 * self.deviation**2 + spread**2), None


def test_samples_of_an_exact_score_have_the_populations_mean_and_spread(monkeypatch):
    model = Model(tiny_model().score, None, Card(name="gaussian"))
    monkeypatch.setattr(Model, "for_marker", lambda self, marker: Gaussian(0.2, 0.1))
    values = torch.from_numpy(np.stack(draw(model, count=2, size=64, steps=1000))).double() / 127.5 - 1
    assert float(values.mean()) == pytest.approx(0.2, abs=0.01)
    assert float(values.std()) == pytest.approx(0.1, rel=0.05)


def test_the_grid_has_rows_of_eight_and_white_where_it_ends():
    images = [np.full((4, 4, 3), i, np.uint8) for i in range(10)]
    picture = grid(images)
    assert picture.shape == (8, 32, 3)
    assert [int(picture[0, 4 * i, 0]) for i in range(8)] == list(range(8))
    assert [int(picture[4, 4 * i, 0]) for i in range(3)] == [8, 9, 255]
    assert grid(images[:3]).shape == (4, 12, 3)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"size": 17}, "--size: found 17, expected a multiple of 2"),
        ({"size": 4}, "--size: found 4"),
        ({"steps": 1}, "--steps: found 1, expected 2 to 1000"),
        ({"steps": 1001}, "--steps: found 1001"),
        ({"marker": "HER2"}, "marker 'HER2'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(changes, told):
    with pytest.raises(ConfigError, match=told):
        draw(tiny_model(("Ki67", "ER")), **changes)


def test_the_command_writes_a_picture_and_refuses_other_targets(tmp_path, capsys):
    save_model(tmp_path / "model", tiny_model(("Ki67", "ER")))
    line = ["model", "samples", str(tmp_path / "model"), str(tmp_path / "a.png"), "--device", "cpu"]
    with pytest.raises(SystemExit) as left:
        main([*line, "--count", "3", "--size", "16", "--steps", "2", "--marker", "ER"])
    assert left.value.code == 0
    assert read_image(tmp_path / "a.png").shape == (16, 48, 3)
    for words, told in (
        (["--count", "0"], "--count: found 0"),
        ([], "b.txt: expected the name of a picture"),
    ):
        with pytest.raises(SystemExit) as left:
            main([*line[:3], str(tmp_path / "b.txt"), *words])
        assert left.value.code == 2
        assert told in capsys.readouterr().err
