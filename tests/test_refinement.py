"""Refinement of few weights, a set for each image, by one pass of a batch; and of one image's copy."""

import copy

import pytest
import torch
from torch import nn

from miudiff.diffusion.sampling import denoised
from miudiff.images import to_gray
from miudiff.methods.deltas import LowRankPerImage, NormPerImage
from miudiff.methods.miu_diff import MIUDiff, MIUDiffConfig
from miudiff.methods.refinement import Refinement, RefinementConfig
from miudiff.noise import NoiseKey
from tiny import CPU, tiny_estimator, tiny_score

FEW = ("norms", "low_rank")
AT = 7  # index of the full chain


def images(count=3, size=48, seed=5):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def keys(count=3):
    return [NoiseKey(0, f"tile{i}") for i in range(count)]


def refinement(count=1, **settings):
    score = tiny_score()
    return Refinement(score, RefinementConfig(**{"lr": 1e-3} | settings), CPU, score.sde, count)


def refined(y, source, names, steps=3, **settings):
    """Losses [steps, B] and the refined model's noise after the last step."""
    learner = refinement(len(y), **settings)
    losses = [learner.step(y, index, source, names) for index in reversed(range(steps))]
    with torch.no_grad():
        return torch.stack(losses), learner.score.predict(y, 0)[0]


def test_one_step_of_a_copy_is_autograd_and_adamw_by_hand():
    learner, key = refinement(), NoiseKey(0, "a")
    y, source = images(1), to_gray(images(1))
    learner.step(y, AT, source, [key])

    by_hand = copy.deepcopy(learner.frozen).requires_grad_(True)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=1e-3, weight_decay=0.0)
    guess = to_gray(denoised(by_hand.sde, y, AT, by_hand.predict_noise(y, AT)))
    refinement()._losses(guess, to_gray(source), AT, [key]).sum().backward()
    optimizer.step()
    named = zip(learner.score.named_parameters(), by_hand.parameters(), strict=True)
    for (name, moved), expected in named:
        torch.testing.assert_close(moved, expected, msg=name)
    both = zip(learner.score.parameters(), learner.frozen.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in both)


def test_only_the_decoder_of_a_copy_learns():
    learner = refinement(weights="decoder", lr=1e-2)
    learner.step(images(1), AT, to_gray(images(1)), keys(1))
    named = zip(learner.score.unet.named_parameters(), learner.frozen.unet.parameters(), strict=True)
    changed = [name for (name, a), b in named if not torch.equal(a, b)]
    assert len(changed) >= 10
    assert {name.split(".")[0] for name in changed} <= {"mid_block", "up_blocks", "conv_norm_out", "conv_out"}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("weights", FEW)
def test_before_the_first_step_the_network_is_the_frozen_one(weights, count):
    learner = refinement(count, weights=weights)
    with torch.no_grad():
        found, expected = (
            model.predict_noise(images(count), AT) for model in (learner.score, learner.frozen)
        )
    if weights == "low_rank" or count == 1:
        assert torch.equal(found, expected)
    else:  # torch's kernel for a norm of more images sums in another order
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("loss", ["contrastive", "l2", "pixels"])
@pytest.mark.parametrize("weights", FEW)
def test_an_image_of_a_batch_learns_as_it_does_alone(weights, loss):
    settings = {"weights": weights, "loss": loss, "positions": 32}
    y, source, names = images(), to_gray(images(seed=6)), keys()
    losses, together = refined(y, source, names, **settings)
    assert losses.shape == (3, 3)
    for i in range(3):
        one = slice(i, i + 1)
        alone_losses, alone = refined(y[one], source[one], names[one], **settings)
        torch.testing.assert_close(losses[:, one], alone_losses, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=0)
    with torch.no_grad():
        moved = together - tiny_score().predict(y, 0)[0]
    assert moved.abs().amax((1, 2, 3)).min() > 1e-4


def test_one_images_norms_take_the_steps_that_the_weights_themselves_take():
    learner, key = refinement(weights="norms", positions=32), NoiseKey(0, "a")
    y, source = images(1), to_gray(images(1, seed=6))
    copied = copy.deepcopy(learner.frozen)
    norms = [module for module in copied.unet.modules() if isinstance(module, nn.GroupNorm)]
    weights = [weight.requires_grad_(True) for norm in norms for weight in (norm.weight, norm.bias)]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0)
    for index in (2, 1, 0):
        learner.step(y, index, source, [key])
        guess = to_gray(denoised(copied.sde, y, index, copied.predict_noise(y.requires_grad_(True), index)))
        optimizer.zero_grad()
        learner._losses(guess, to_gray(source), index, [key]).sum().backward()
        optimizer.step()
        y = y.detach()
    own = [module for module in learner.score.unet.modules() if isinstance(module, NormPerImage)]
    assert len(own) == len(norms)
    for found, expected in zip(own, norms, strict=True):
        torch.testing.assert_close(found.norm.weight + found.scale[0], expected.weight, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.norm.bias + found.shift[0], expected.bias, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2])
def test_norms_of_each_image_are_group_norms_with_weights_of_their_own(count):
    torch.manual_seed(0)
    norm = nn.GroupNorm(4, 8).requires_grad_(False)
    own = NormPerImage(norm, count)
    for change in (own.scale, own.shift):
        nn.init.normal_(change)
    for shape in ((8, 5, 7), (8, 12)):  # a feature map; an attention's tokens
        x = torch.randn(count, *shape)
        for i in range(count):
            expected = nn.functional.group_norm(x[i : i + 1], 4, 1 + own.scale[i], own.shift[i], norm.eps)
            torch.testing.assert_close(own(x)[i : i + 1], expected)


@pytest.mark.parametrize("conv", [nn.Conv2d(6, 4, 3, padding=1), nn.Conv2d(6, 4, 1), nn.Conv2d(6, 4, 3, 2)])
def test_a_low_rank_change_is_a_product_added_to_the_kernel(conv):
    own = LowRankPerImage(conv, 2, 3, torch.Generator().manual_seed(0))
    nn.init.normal_(own.left)
    x = torch.randn(2, 6, 9, 8)
    for i in range(2):
        kernel = conv.weight + torch.einsum("or,rchw->ochw", own.left[i], own.right)
        expected = nn.functional.conv2d(x[i : i + 1], kernel, conv.bias, conv.stride, conv.padding)
        torch.testing.assert_close(own(x)[i : i + 1], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 4])
def test_the_rank_is_the_width_of_each_change(rank):
    learner = refinement(2, weights="low_rank", rank=rank)
    changes = learner.optimizer.param_groups[0]["params"]
    assert changes
    assert all(change.shape[::2] == (2, rank) for change in changes)


@pytest.mark.parametrize("weights", FEW)
def test_few_weights_learn_around_those_of_the_frozen_network(weights):
    learner = refinement(2, weights=weights)
    before = copy.deepcopy(learner.frozen.state_dict())
    for index in (1, 0):
        learner.step(images(2), index, to_gray(images(2)), keys(2))
    after = learner.frozen.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    shared = {weight.data_ptr() for weight in learner.frozen.parameters()}
    own = [weight for weight in learner.score.parameters() if weight.data_ptr() not in shared]
    assert {id(weight) for weight in own} == {
        id(weight) for weight in learner.optimizer.param_groups[0]["params"]
    }
    assert all(weight.abs().max() > 0 for weight in own)


@pytest.mark.parametrize("weights", ["all", "decoder", *FEW])
def test_a_loss_falls(weights):
    learner = refinement(weights=weights, lr=1e-2 if weights in FEW else 1e-3)
    y, source = images(1), to_gray(images(1))
    losses = [float(learner.step(y, AT, source, keys(1))) for _ in range(6)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("weights", "batches"), [("all", [1, 1]), ("decoder", [1, 1]), ("norms", [2]), ("low_rank", [2])]
)
def test_few_weights_are_refined_in_a_batch_and_copies_one_by_one(weights, batches):
    values = {
        "reverse": {"start": 40, "steps": 8},
        "refinement": {"start": 12, "lr": 1e-3, "weights": weights},
    }
    seen = []
    method = MIUDiff(tiny_score(), tiny_estimator(), MIUDiffConfig(**values), CPU)
    method.reverse.watch = seen.append
    method.translate(images(2), keys(2))
    found = [len(report.y) for report in seen if report.loss is not None]
    assert found == [batch for batch in batches for _ in range(method.refined_steps)]
    plain = [report for report in seen if report.loss is None]
    assert [len(report.y) for report in plain] == [2] * (8 - method.refined_steps)
