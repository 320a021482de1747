"""When a graph takes the network's place, and when not; recorders that need no CUDA device stand in for the true one."""

import logging

import pytest
import torch

from miudiff.diffusion.graphs import MOST, PATIENCE, Graphs
from miudiff.methods.presets import preset
from miudiff.noise import NoiseKey
from miudiff.stainer import VirtualStainer
from tiny import CPU, tiny_model, tiny_score

TIMES = torch.tensor([5, 5])


class Recorder:
    """Records by keeping the network's answer, and replays at no cost; counts both."""

    def __init__(self, wrong=0.0, error=None):
        self.recorded, self.replayed, self.wrong, self.error = 0, 0, wrong, error

    def __call__(self, network, y, times):
        self.recorded += 1
        if self.error:
            raise self.error
        answer = network(y, times) + self.wrong

        def replay(y, times):
            self.replayed += 1
            return answer.clone()

        return replay


def calls(graphs, count, side=16):
    y = torch.ones(2, 3, side, side)
    with torch.no_grad():
        return [graphs(y, TIMES) for _ in range(count)]


def test_a_shape_that_is_seen_often_is_recorded_once_and_replayed():
    recorder = Recorder()
    graphs = Graphs(tiny_score(), recorder)
    calls(graphs, PATIENCE)
    assert recorder.recorded == 0
    found = calls(graphs, 3)
    tried = recorder.replayed
    found += calls(graphs, 2)
    assert (recorder.recorded, recorder.replayed) == (1, tried + 2)
    assert all(torch.equal(one, found[0]) for one in found)


def test_each_shape_has_a_graph_of_its_own_and_so_many_have_one():
    recorder = Recorder()
    graphs = Graphs(tiny_score(), recorder)
    for number in range(MOST + 2):
        assert calls(graphs, PATIENCE + 2, 8 + 2 * number)[-1].shape[-1] == 8 + 2 * number
    assert recorder.recorded == MOST


@pytest.mark.parametrize(
    ("recorder", "told"),
    [
        (Recorder(error=RuntimeError("not permitted\nhere")), "not permitted here"),
        (Recorder(1.0), "other numbers"),
    ],
)
def test_what_cannot_be_recorded_or_gives_other_numbers_is_told_once_and_left(recorder, told, caplog):
    score = tiny_score()
    found = calls(Graphs(score, recorder), PATIENCE + 4)
    assert torch.equal(found[-1], score(torch.ones(2, 3, 16, 16), TIMES))
    assert recorder.recorded == 1
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "no CUDA graph for 2 x 3 x 16 x 16" in line.getMessage()
    assert told in line.getMessage()


def test_a_graph_that_is_slower_is_left(monkeypatch):
    seconds = iter([1.0, 2.0])  # the network, the graph
    monkeypatch.setattr("miudiff.diffusion.graphs._seconds", lambda *_: next(seconds))
    recorder = Recorder()
    graphs = Graphs(tiny_score(), recorder)
    calls(graphs, PATIENCE + 1)
    tried = recorder.replayed
    calls(graphs, 3)
    assert recorder.replayed == tried


def test_gradients_and_training_never_go_through_a_graph():
    recorder, score = Recorder(), tiny_score()
    graphs = Graphs(score, recorder)
    calls(graphs, PATIENCE + 1)
    tried = recorder.replayed
    y = torch.ones(2, 3, 16, 16, requires_grad=True)
    graphs(y, TIMES).sum().backward()
    assert y.grad.abs().sum() > 0
    score.train()
    calls(graphs, 1)
    assert recorder.replayed == tried


def test_weights_that_move_are_recorded_anew():
    recorder, score = Recorder(), tiny_score()
    graphs = Graphs(score, recorder)
    calls(graphs, PATIENCE + 1)
    bias = score.unet.conv_out.bias
    bias.data = bias.data + 1
    found = calls(graphs, PATIENCE + 2)
    assert recorder.recorded == 2
    assert torch.equal(found[-1], score(torch.ones(2, 3, 16, 16), TIMES))


def test_a_refined_copy_does_not_go_through_the_models_graphs():
    stainer = VirtualStainer(
        tiny_model(),
        preset("fast", ("reverse.start=40", "reverse.steps=4", "refinement.loss=l2", "refinement.start=20")),
        CPU,
    )
    assert 0 < stainer.method.refined_steps < 4
    seen = []

    def forward(y, times):
        seen.append(int(times[0]))
        return stainer.reverse.score(y, times)

    he, keys = torch.zeros(1, 3, 64, 64), [NoiseKey(0)]
    plain = stainer.method.translate(he, keys)
    stainer.reverse.graphs = forward
    assert torch.equal(stainer.method.translate(he, keys), plain)
    assert len(seen) == 4 - stainer.method.refined_steps
    assert min(seen) >= 20
