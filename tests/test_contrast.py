"""The patch-contrastive loss against its definition."""

import math

import torch

from miudiff.contrast import layered_patch_nce, layered_squares, patch_nce, unit_features


def test_the_loss_is_the_cross_entropy_of_its_definition():
    torch.manual_seed(0)
    query, key = (torch.nn.functional.normalize(torch.randn(2, 5, 7), dim=-1) for _ in range(2))
    loss = patch_nce(query, key, 0.1)
    for image in range(2):
        for p in range(5):
            logits = [float(query[image, p] @ key[image, j]) / 0.1 if j != p else -100.0 for j in range(5)]
            positive = float(query[image, p] @ key[image, p]) / 0.1
            expected = math.log(math.exp(positive) + sum(math.exp(v) for v in logits)) - positive
            assert abs(float(loss[image, p]) - expected) < 1e-4


def test_no_gradient_flows_into_the_keys():
    query, key = torch.randn(1, 4, 3, requires_grad=True), torch.randn(1, 4, 3, requires_grad=True)
    patch_nce(query, key).mean().backward()
    assert query.grad is not None
    assert key.grad is None


def test_unit_features_pick_positions_in_reading_order():
    features = torch.arange(24.0).view(1, 2, 3, 4) + 1
    picked = unit_features(features, torch.tensor([5]))
    expected = features[0, :, 1, 1]
    torch.testing.assert_close(picked[0, 0], expected / expected.norm())


def test_equal_images_have_the_least_loss_and_no_squares():
    torch.manual_seed(1)
    features = [torch.randn(1, 8, 6, 6), torch.randn(1, 4, 3, 3)]
    other = [torch.randn_like(f) for f in features]
    positions = [torch.arange(36), torch.arange(9)]
    assert layered_patch_nce(features, features, positions) < layered_patch_nce(other, features, positions)
    assert layered_squares(features, features, positions) == 0
