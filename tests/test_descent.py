"""Steps that are not finite are not taken: here at once, on a card without waiting for its answer."""

import io
import time

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from miudiff.diffusion.learner import ScoreConfig, ScoreLearner
from miudiff.errors import NonFiniteError
from miudiff.training import descent as module
from miudiff.training.descent import Descent
from miudiff.training.learner import adamw, descend

NETWORK = {"size": 32, "channels": [8, 16], "attention": [16], "head_channels": 8, "groups": 4}


@pytest.fixture
def cuda():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return torch.device("cuda")


def network(device="cpu"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.SiLU(), nn.Linear(7, 1)).to(device)


def copied(net):
    return [weight.detach().clone() for weight in net.parameters()]


def same(net, weights):
    return all(torch.equal(now, before) for now, before in zip(net.parameters(), weights, strict=True))


def stored(optimizer):
    """Its state, as a run finds it in a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def take(descent, net, optimizer, step, factor=1.0):
    x = torch.full((4, 6), 0.5 + 0.1 * step, device=next(net.parameters()).device)
    loss = (factor * net(x)).square().mean()
    return descend(descent, loss, optimizer, net.parameters(), 1e-2, 1.0, step)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_without_delay_the_step_itself_raises(bad):
    net = network()
    descent, optimizer = Descent(Accelerator(cpu=True)), adamw(net.parameters(), 1e-2, 0.0)
    take(descent, net, optimizer, 0)
    before = copied(net)
    with pytest.raises(NonFiniteError, match=r"loss (nan|inf), gradient norm (nan|inf)") as caught:
        take(descent, net, optimizer, 1, bad)
    assert (caught.value.step, caught.value.here) == (1, True)
    assert same(net, before)


def check_late(device, bad):
    """From the first step that is not finite the weights stand still; the look afterwards names it."""
    net = network(device)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    descent = Descent(Accelerator(cpu=device == "cpu"), late=True)
    for step in range(3):
        take(descent, net, optimizer, step)
    descent.look()
    before = copied(net)
    take(descent, net, optimizer, 3)
    after = copied(net)
    assert not same(net, before)
    take(descent, net, optimizer, 4, bad)
    take(descent, net, optimizer, 5)  # sound, but would go on from what was not
    assert same(net, after)
    assert float(optimizer.state_dict()["state"][0]["step"]) == 4
    with pytest.raises(NonFiniteError) as caught:
        descent.look()
    assert caught.value.step == 4


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_with_delay_the_optimizer_leaves_the_weights_alone(bad):
    check_late("cpu", bad)


def test_an_infinite_loss_with_finite_gradients_counts_too():
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    descent, before = Descent(Accelerator(cpu=True), late=True), copied(net)
    loss = net(torch.ones(4, 6)).mean() + float("inf")
    norm = descend(descent, loss, optimizer, net.parameters(), 1e-2, 1.0, 7)
    assert torch.isfinite(norm)
    assert same(net, before)
    with pytest.raises(NonFiniteError, match=r"loss inf, gradient norm 1\.19") as caught:
        descent.look()
    assert caught.value.step == 7


def test_answers_are_fetched_now_and_then_whatever_the_run_asks(monkeypatch):
    monkeypatch.setattr(module, "MOST", 4)
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    descent = Descent(Accelerator(cpu=True), late=True)
    take(descent, net, optimizer, 0, float("nan"))
    for step in (1, 2):
        take(descent, net, optimizer, step)
    with pytest.raises(NonFiniteError) as caught:
        take(descent, net, optimizer, 3)
    assert caught.value.step == 0


def test_a_state_from_another_device_does_not_say_how_this_one_steps():
    net, other = network(), network()
    here, there = (
        adamw(net.parameters(), 1e-2, 0.0),
        torch.optim.AdamW(other.parameters(), lr=1e-2, fused=True),
    )
    for step in range(3):
        take(Descent(Accelerator(cpu=True)), other, there, step)
    here.load_state_dict(stored(there))
    assert here.param_groups[0]["fused"] is None
    net.load_state_dict(other.state_dict())
    take(Descent(Accelerator(cpu=True)), net, here, 3)
    take(Descent(Accelerator(cpu=True)), other, there, 3)
    assert all(
        torch.allclose(a, b, atol=1e-6) for a, b in zip(net.parameters(), other.parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="parameter group"):
        adamw(nn.Linear(2, 2).parameters(), 1e-2, 0.0).load_state_dict(here.state_dict())


@pytest.mark.gpu
def test_on_a_card_a_fused_step_is_the_plain_one_and_a_state_goes_both_ways(cuda):
    nets = network(cuda), network(cuda), network()
    plain = torch.optim.AdamW(nets[0].parameters(), lr=1e-2, weight_decay=1e-5)
    fused = adamw(nets[1].parameters(), 1e-2, 1e-5)
    assert fused.param_groups[0]["fused"]
    for step in range(10):
        for net, optimizer, late in ((nets[0], plain, False), (nets[1], fused, True)):
            take(Descent(Accelerator(), late), net, optimizer, step)
    assert all(
        torch.allclose(a, b, atol=1e-6)
        for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True)
    )
    here = adamw(nets[2].parameters(), 1e-2, 1e-5)
    here.load_state_dict(stored(fused))
    take(Descent(Accelerator(cpu=True), False), nets[2], here, 10)
    fused.load_state_dict(stored(here))
    assert fused.param_groups[0]["fused"]
    take(Descent(Accelerator(), True), nets[1], fused, 11)


@pytest.mark.gpu
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_on_a_card_a_nan_leaves_the_weights_alone(cuda, bad):
    check_late("cuda", bad)


@pytest.mark.gpu
def test_on_a_card_a_step_of_the_score_model_waits_for_nothing(cuda, capsys):
    learner = ScoreLearner(ScoreConfig(network=NETWORK), Accelerator(mixed_precision="bf16"), 0, 100)

    def batch(step):
        keys = torch.arange(16) + 16 * step
        drawn = learner.draw({"ihc": torch.zeros(16, 3, 32, 32), "key": keys, "marker": torch.zeros(16)})
        return {name: value.to(cuda) for name, value in drawn.items()}

    ready = [batch(step) for step in range(30)]
    for step in range(10):
        learner.step(ready[step], step)
    learner.descent.look()
    began = time.perf_counter()
    torch.cuda.set_sync_debug_mode("error")  # torch then raises where the processor would wait
    try:
        for step in range(10, 30):
            learner.step(ready[step], step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    learner.descent.look()
    with capsys.disabled():
        print(f"\n{20 * 16 / (time.perf_counter() - began):.0f} images/s of 32 x 32 by a tiny network")
