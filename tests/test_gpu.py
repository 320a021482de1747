"""What only a CUDA device can show: no step waits for it, graphs give the same bits, a batch fits its memory.

pytest -m gpu
"""

import numpy as np
import pytest
import torch

from miudiff.device import place
from miudiff.diffusion.graphs import PATIENCE, Graphs
from miudiff.methods.presets import preset
from miudiff.noise import Ahead, NoiseKey, normal
from miudiff.stainer import VirtualStainer
from tiny import tiny_model, tiny_score

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]

QUICK = ("reverse.start=60", "reverse.steps=5")
KEYS = [NoiseKey(0, "a", x=50 * k) for k in range(4)]
FULL = ("energy.guidance=full", "guidance.source_noise=matched", "guidance.normalise=none")


def stainer(*changes, batch=4, precision="auto"):
    placement = place("cuda", precision)
    model = tiny_model()
    for part in (model.score, model.estimator):
        part.to(placement.device)
    return VirtualStainer(model, preset("fast", (*QUICK, *changes)), placement, glass="stain", batch=batch)


def tissue(height, width):
    y, x = np.mgrid[:height, :width] / 64
    return np.round(
        170 + 60 * np.stack([np.sin(3 * x + k) * np.cos(2 * y - k) for k in range(3)], -1)
    ).astype(np.uint8)


@pytest.fixture
def never_wait():
    """From its call on, what waits for the device fails."""
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize(
    "changes", [(), FULL, ("reverse.solver=dpmpp_2m_sde",)], ids=["fast", "full", "second"]
)
def test_no_step_of_a_guided_walk_waits_for_the_device(changes, graphs, never_wait):
    here = stainer(*changes)
    if not graphs:
        here.reverse.graphs = None
    he = torch.rand(4, 3, 64, 64, device="cuda") * 2 - 1

    def walk(watch):
        here.reverse.watch = watch
        with here._batches.ahead(KEYS) as keys:
            return here.method.translate(he, keys)

    for _ in range(PATIENCE):  # constants are copied, pinned memory is taken, a graph is recorded
        walk(None)
    expected = walk(None).cpu()
    found = walk(lambda report: never_wait())  # after the walk's beginning
    torch.cuda.set_sync_debug_mode("default")
    assert (found.cpu() - expected).abs().max() < 0.02  # some backward passes add up in any order


def test_noise_on_the_device_is_the_processors_bit_for_bit():
    like = torch.empty(4, 3, 64, 64, device="cuda")
    with Ahead(KEYS, 4, pinned=True) as ahead:
        for step in range(9, 0, -1):
            plain = normal(KEYS, "step", step, like.cpu())
            for keys in (ahead, KEYS):
                found = normal(keys, "step", step, like)
                assert found.is_cuda
                assert torch.equal(found.cpu(), plain)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_graph_gives_the_networks_bits_and_follows_its_weights(precision):
    placement, score = place("cuda", precision), tiny_score().to("cuda")
    graphs = Graphs(score)
    y, times = torch.randn(4, 3, 64, 64, device="cuda"), torch.full((4,), 5, device="cuda")
    with torch.no_grad():
        for _ in range(PATIENCE + 1):
            with placement.autocast():
                graphs(y, times)
        assert len(graphs._chosen) == 1
        run = next(iter(graphs._chosen.values()))
        assert run is not score, "recording failed, or was slower; the log says which"
        with placement.autocast():
            for other in (y, y + 1):
                assert torch.equal(graphs(other, times), score(other, times))
            first = graphs(y, times)
            kept = first.clone()
            graphs(y + 1, times)
            assert torch.equal(first, kept)  # a result outlives the next replay
            score.unet.conv_out.bias.add_(1)
            assert torch.equal(graphs(y, times), score(y, times))
            assert next(iter(graphs._chosen.values())) is run


def test_the_batch_is_chosen_from_free_memory_and_told():
    here, said = stainer(batch=None), []
    here.say = said.append
    assert here.batch in {2**k for k in range(7)}
    assert len(said) == 1
    assert stainer(batch=3).batch == 3


def test_results_with_all_of_it_are_those_of_a_tile_at_a_time_within_rounding():
    image = tissue(200, 330)
    one, many = stainer(batch=1, precision="fp32"), stainer(batch=4, precision="fp32")
    one.reverse.graphs = None
    first = one.translate(image, seed=1).astype(int)
    for _ in range(PATIENCE):  # until graphs have been recorded
        second = many.translate(image, seed=1).astype(int)
    assert np.abs(first - second).max() <= 2


def test_a_batch_that_does_not_fit_is_halved(monkeypatch):
    here, said = stainer(batch=4), []
    here.say, translate = said.append, here.method.translate

    def short(he, keys):
        if len(he) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return translate(he, keys)

    monkeypatch.setattr(here.method, "translate", short)
    pieces = [tissue(64, 64)] * 5
    assert len(here.stain(pieces, [NoiseKey(0, x=k) for k in range(5)])) == 5
    assert here.batch == 2
    assert len(said) == 1
