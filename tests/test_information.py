"""Mutual information against closed forms, and the sign identities of the energy."""

import math

import pytest
import torch
from torch import nn

from miudiff.diffusion.sde import VPSDE
from miudiff.information.energy import EnergyConfig, MIEnergy
from miudiff.information.entropy import channel_entropy, entropy, gaussian_entropy, histogram_entropy
from miudiff.information.estimator import Estimator, EstimatorConfig, patches
from miudiff.information.mine import MovingDenominator, donsker_varadhan, gaussian_information
from tiny import tiny_estimator


def test_mine_reaches_the_information_of_correlated_gaussians_within_a_tenth():
    torch.manual_seed(0)
    rho, batch = 0.8, 512
    network = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    denominator = MovingDenominator(rate=0.01)

    def pairs(n):
        x = torch.randn(n, 1)
        y = rho * x + math.sqrt(1 - rho**2) * torch.randn(n, 1)
        joint = network(torch.cat([x, y], 1)).T
        marginal = network(torch.cat([x, y.roll(1, 0)], 1)).T
        return joint, marginal

    for _ in range(1200):
        optimizer.zero_grad()
        denominator.loss(*pairs(batch)).backward()
        optimizer.step()
    with torch.no_grad():
        bound = float(donsker_varadhan(*pairs(100_000)))
    assert gaussian_information(rho) == pytest.approx(0.511, abs=5e-4)
    assert bound == pytest.approx(gaussian_information(rho), rel=0.1)


def test_the_moving_denominator_equals_the_plain_gradient_on_the_first_batch():
    joint, marginal = torch.randn(1, 8), torch.randn(1, 8, requires_grad=True)
    MovingDenominator().loss(joint, marginal).backward()
    corrected = marginal.grad.clone()
    marginal.grad = None
    (-donsker_varadhan(joint, marginal)).sum().backward()
    torch.testing.assert_close(corrected, marginal.grad, rtol=1e-5, atol=1e-7)


def test_bins_keep_averages_of_their_own():
    denominator = MovingDenominator(rate=0.5, bins=2)
    marginal = torch.tensor([[0.0], [math.log(4.0)]])
    denominator.loss(torch.zeros(2, 1), marginal, torch.tensor([0, 1]))
    torch.testing.assert_close(denominator.value, torch.tensor([1.0, 4.0], dtype=torch.float64))
    denominator.loss(torch.zeros(1, 1), torch.tensor([[math.log(3.0)]]), torch.tensor([0]))
    torch.testing.assert_close(denominator.value, torch.tensor([2.0, 4.0], dtype=torch.float64))


@pytest.mark.parametrize("critic", ["separable", "joint", "mlp"])
def test_an_image_keeps_its_information_whatever_the_batch(critic):
    estimator = tiny_estimator(critic)
    y, levels = torch.rand(3, 3, 48, 48) * 2 - 1, torch.tensor([5, 50, 200])
    structure = estimator.structure_map(y)
    together = estimator.information(structure, y, levels, levels)
    alone = estimator.information(structure[1:2], y[1:2], levels[1:2], levels[1:2])
    torch.testing.assert_close(together[1:2], alone)


class SamePlace(nn.Module):
    """A critic that recognises its own patch: 1 where the structure's label is the image's."""

    def forward(self, pairs):
        # channels: structure, its level, three colours, their level
        return (pairs[:, 0].mean((1, 2)) == pairs[:, 2].mean((1, 2))).float()[:, None]


def test_marginal_pairs_never_join_a_patch_with_its_own_structure():
    estimator = tiny_estimator("joint")
    estimator.pair = SamePlace()
    label = torch.arange(9.0).view(3, 3).repeat_interleave(16, 0).repeat_interleave(16, 1)[None, None]
    clean = torch.tensor([-1])
    joint, marginal = estimator.statistics(label, label.expand(1, 3, -1, -1), clean, clean)
    assert (joint > 0.9).all()
    assert (marginal < 0.1).all()


def test_a_separable_critic_has_all_pairs():
    estimator, clean = tiny_estimator(), torch.tensor([-1])
    y = torch.rand(1, 3, 48, 48)
    joint, marginal = estimator.statistics(estimator.structure_map(y), y, clean, clean)
    assert joint.shape == (1, 9)
    assert marginal.shape == (1, 72)


def test_the_bound_is_held_by_the_critics_bound():
    estimator = tiny_estimator()
    y = torch.rand(1, 3, 64, 64) * 200
    t = torch.tensor([0])
    joint, marginal = estimator.statistics(estimator.structure_map(y), y, t, t)
    assert max(joint.abs().max(), marginal.abs().max()) <= 10


def test_too_few_patches_are_refused():
    estimator = tiny_estimator()
    y, t = torch.zeros(1, 3, 16, 16), torch.tensor([0])
    with pytest.raises(ValueError, match="1 patches"):
        estimator.statistics(estimator.structure_map(y), y, t, t)


def test_patches_are_the_squares_of_the_grid():
    image = torch.arange(2 * 3 * 40 * 33.0).view(2, 3, 40, 33)
    grid = patches(image, 16, offset=(3, 1))
    assert grid.shape == (2, 4, 3, 16, 16)
    torch.testing.assert_close(grid[:, 3], image[:, :, 19:35, 17:33])


def test_gaussian_entropy_is_the_closed_form():
    torch.manual_seed(0)
    covariance = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.4, 0.1], [0.0, 0.1, 0.3]], dtype=torch.float64)
    samples = torch.randn(200_000, 3, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    expected = 0.5 * torch.logdet(2 * math.pi * math.e * covariance)
    torch.testing.assert_close(gaussian_entropy(samples, floor=0.0), expected, atol=0.01, rtol=0)
    diagonal = 0.5 * torch.log(2 * math.pi * math.e * covariance.diagonal()).sum()
    torch.testing.assert_close(channel_entropy(samples, floor=0.0), diagonal, atol=0.01, rtol=0)


def test_histogram_entropy_of_uniform_colours_is_three_log_two():
    colours = torch.rand(100_000, 3) * 2 - 1
    assert float(histogram_entropy(colours)) == pytest.approx(3 * math.log(2), abs=0.1)
    assert float(histogram_entropy(torch.zeros(1000, 3))) < -5


@pytest.mark.parametrize("kind", ["gaussian", "channels", "histogram"])
def test_entropy_rises_with_contrast(kind):
    grid = torch.randn(1, 4, 3, 16, 16) * 0.05
    assert entropy(grid * 3, kind) > entropy(grid, kind)


def _slopes(guidance, stain_weight, entropy_kind="gaussian", step=1e-3):
    """(change of I, change of H) along one small step against the energy's gradient."""
    torch.manual_seed(3)
    estimator = tiny_estimator().double()
    y = torch.randn(1, 3, 64, 64, dtype=torch.float64) * 0.3
    structure = estimator.structure_map(torch.rand(1, 3, 64, 64, dtype=torch.float64) * 2 - 1)
    energy = MIEnergy(estimator, EnergyConfig(guidance=guidance, entropy=entropy_kind))
    gradient = energy.gradient(y, structure, 10, -1, stain_weight)
    moved = y - step * gradient / gradient.norm()
    t, clean = torch.tensor([10]), torch.tensor([-1])

    def measures(image):
        shared = estimator.information(structure, image, t, clean)
        return float(shared), float(entropy(patches(image, 16), "gaussian"))

    (i0, h0), (i1, h1) = measures(y), measures(moved)
    return i1 - i0, h1 - h0


def test_at_lambda_zero_a_step_raises_the_shared_information():
    assert _slopes("full", 0.0)[0] > 0


def test_at_lambda_one_a_step_lowers_the_shared_information_where_entropy_is_off():
    assert _slopes("full", 1.0, "none")[0] < 0


def test_at_lambda_one_a_step_raises_entropy():
    assert _slopes("full", 1.0)[1] > 0


def test_at_lambda_half_only_entropy_acts():
    energy = MIEnergy(tiny_estimator(), EnergyConfig(guidance="full"))
    assert energy.factors(0.5) == (-0.5, 0.0)
    silent = MIEnergy(tiny_estimator(), EnergyConfig(guidance="full", entropy="none"))
    y = torch.randn(1, 3, 32, 32)
    structure = silent.estimator.structure_map(y)
    assert silent.gradient(y, structure, 5, 5, 0.5).abs().max() == 0


@pytest.mark.parametrize("critic", ["separable", "joint"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_batchs_gradient_is_that_of_each_image_with_a_grid_of_its_own(critic, reduction):
    torch.manual_seed(4)
    energy = MIEnergy(tiny_estimator(critic).double(), EnergyConfig(reduction=reduction))
    y = torch.randn(5, 3, 64, 48, dtype=torch.float64) * 0.3
    structure = energy.estimator.structure_map(torch.rand(5, 3, 64, 48, dtype=torch.float64) * 2 - 1)
    offsets = [
        (0, 0),
        (3, 7),
        (15, 0),
        (0, 16),
        (3, 7),
    ]  # grids of 4 x 3, 3 x 2, 3 x 3, 4 x 2 and 3 x 2 patches
    together = energy.gradient(y, structure, 20, -1, 0.3, offsets)
    for i, offset in enumerate(offsets):
        point = y[i : i + 1].clone().requires_grad_(True)
        value = energy(point, structure[i : i + 1], 20, -1, 0.3, offset)
        (alone,) = torch.autograd.grad(value.sum(), point)
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-9, atol=1e-14)
    assert together.abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize(("guidance", "weight", "same"), [("shared", 0.7, 0.0), ("unique", 0.2, 1.0)])
def test_ablations_are_the_full_energy_at_a_fixed_lambda(guidance, weight, same):
    ablated, full = (MIEnergy(tiny_estimator(), EnergyConfig(guidance=g)) for g in (guidance, "full"))
    assert ablated.factors(weight) == full.factors(same)


def test_sum_is_mean_times_the_number_of_patches():
    y = torch.randn(2, 3, 64, 48)
    energies = {}
    for reduction in ("mean", "sum"):
        energy = MIEnergy(tiny_estimator(), EnergyConfig(reduction=reduction))
        energies[reduction] = energy(y, energy.estimator.structure_map(y), 5, 5, 0.3)
    torch.testing.assert_close(energies["sum"], 12 * energies["mean"])


def test_structure_maps_do_not_see_contrast_once_normalised():
    estimator = Estimator(EstimatorConfig(channels=(8,), patch=8), VPSDE())
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(
        estimator.structure_map(image), estimator.structure_map(0.5 * image), atol=0.05, rtol=0.05
    )
