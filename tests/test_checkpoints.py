"""Weights into a network: all or nothing, and one line that names what does not fit."""

import pytest
import torch
from torch import nn

from miudiff.checkpoints import fill
from miudiff.errors import CheckpointError


def network(device=None):
    return nn.Sequential(nn.Conv2d(3, 4, 3, device=device), nn.GroupNorm(2, 4, device=device))


@pytest.fixture
def weights():
    torch.manual_seed(1)
    return {name: torch.randn_like(value) for name, value in network().state_dict().items()}


@pytest.mark.parametrize("device", [None, "meta"])
def test_a_network_has_the_weights_that_it_was_given(weights, device):
    filled = network(device)
    fill(filled, weights, "here", "its config.json", assign=device == "meta")
    assert filled.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in filled.state_dict().items())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop("0.bias"), "has no '0.bias'"),
        (lambda w: (w.pop("0.bias"), w.pop("0.weight")), "has no '0.weight'; and 1 more"),
        (lambda w: w.update({"2.bias": torch.ones(1)}), "has '2.bias', which the network has not"),
        (
            lambda w: w.update({"0.weight": torch.ones(4, 3, 5, 5)}),
            "'0.weight' is 4 x 3 x 5 x 5, expected 4 x 3 x 3 x 3",
        ),
        (lambda w: w.update({"0.bias": torch.tensor(1.0)}), "'0.bias' is one number, expected 4"),
    ],
)
def test_what_does_not_fit_is_named_and_the_network_stays_as_it_was(weights, change, told):
    kept = network()
    before = {name: value.clone() for name, value in kept.state_dict().items()}
    change(weights)
    with pytest.raises(CheckpointError) as refused:
        fill(kept, weights, "a/weights", "its config.json")
    assert str(refused.value) == f"a/weights: does not fit its config.json ({told})"
    assert all(torch.equal(value, before[name]) for name, value in kept.state_dict().items())
