"""The diffusion's closed forms: marginals, Gaussian data, energy shifts, respaced chains, noise keys."""

import math

import pytest
import torch

from miudiff.diffusion.sampling import (
    Transition,
    ancestral,
    ddim,
    denoised,
    euler_maruyama,
    log_variance,
    posterior,
)
from miudiff.diffusion.score import ScoreModel
from miudiff.diffusion.sde import VPSDE, ContinuousVPSDE, space_ddim, space_timesteps
from miudiff.noise import STREAMS, NoiseKey, normal

MEAN, STD = 0.3, 0.2  # of the Gaussian data whose noise estimate is known exactly


def exact_noise(sde: VPSDE, y: torch.Tensor, t: int) -> torch.Tensor:
    """E[noise | y_t] for data from N(MEAN, STD^2): y_t is N(signal MEAN, signal^2 STD^2 + spread^2)."""
    signal, spread = sde.signal[t].item(), sde.spread[t].item()
    return spread * (y - signal * MEAN) / (signal**2 * STD**2 + spread**2)


def gauss(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def walk(sde: VPSDE, step, count: int = 16_000) -> torch.Tensor:
    """The reverse chain from pure noise to the clean image, on `count` independent numbers."""
    y = gauss(1, 1, 1, count)
    for t in reversed(range(len(sde))):
        transition = step(sde, y, t, exact_noise(sde, y, t))
        y = transition.sample(gauss(*y.shape, seed=t + 1)) if t else transition.mean
    return y


def test_a_noised_image_has_the_marginals_mean_and_variance():
    sde, y0 = VPSDE(), torch.full((3, 1, 200, 200), 0.5, dtype=torch.float64)
    y = sde.perturb(y0, torch.tensor([0, 300, 999]), gauss(3, 1, 200, 200))
    for image, t in enumerate((0, 300, 999)):
        spread = math.sqrt(1 - sde.alpha_bar[t])
        assert y[image].mean().item() == pytest.approx(
            0.5 * math.sqrt(sde.alpha_bar[t]), abs=4 * spread / 200
        )
        assert y[image].std().item() == pytest.approx(spread, rel=0.02)


def test_noising_step_by_step_makes_the_marginal():
    """q(y_t | y_{t-1}) applied t times: the mean and variance of N(1, 0) follow alpha_bar."""
    sde, mean, variance = VPSDE(), 1.0, 0.0
    for t in range(500):
        beta = sde.betas[t].item()
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
    assert mean == pytest.approx(sde.signal[499].item(), rel=1e-12)
    assert variance == pytest.approx(sde.spread[499].item() ** 2, rel=1e-12)


def test_index_minus_one_is_the_clean_image():
    y0 = gauss(2, 3, 4, 4)
    for sde in (VPSDE(), VPSDE().respaced(10)):
        assert torch.equal(sde.perturb(y0, -1, gauss(2, 3, 4, 4, seed=1)), y0)
        assert torch.equal(sde.perturb(y0, torch.tensor([-1, -1]), gauss(2, 3, 4, 4, seed=1)), y0)


def test_the_chain_follows_the_continuous_process():
    chain, process = VPSDE(), ContinuousVPSDE()
    t = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    torch.testing.assert_close(chain.signal[:-1], process.mean_coefficient(t), rtol=0.05, atol=1e-3)
    finer = VPSDE(10_000)
    t = (torch.arange(10_000, dtype=torch.float64) + 1) / 10_000
    coarse_error = (chain.signal[:-1] - process.mean_coefficient(t[9::10])).abs().max()
    assert (
        finer.signal[:-1] - process.mean_coefficient(t)
    ).abs().max() < 0.2 * coarse_error  # first order in 1/T


@pytest.mark.parametrize("step", [ancestral, euler_maruyama], ids=lambda step: step.__name__)
def test_the_reverse_chain_of_a_known_gaussian_recovers_it(step):
    y = walk(VPSDE(), step)
    assert y.mean().item() == pytest.approx(MEAN, abs=5 * STD / math.sqrt(y.numel()))
    assert y.std().item() == pytest.approx(STD, rel=0.03)
    assert ((y - MEAN) / STD).pow(4).mean().item() == pytest.approx(3, rel=0.1)


def test_a_short_respaced_chain_recovers_the_gaussian_too():
    y = walk(VPSDE().respaced(200), lambda *given: ancestral(*given, "fixed_large"))
    assert y.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert y.std().item() == pytest.approx(STD, rel=0.1)


def test_ddim_carries_each_quantile_to_its_own():
    """The deterministic flow of a Gaussian is linear: noise z ends at MEAN + STD z."""
    sde = VPSDE()
    y = torch.linspace(-2, 2, 9, dtype=torch.float64).view(1, 1, 1, 9)
    z = (y - sde.signal[999] * MEAN) / (sde.signal[999] ** 2 * STD**2 + sde.spread[999] ** 2).sqrt()
    for t in reversed(range(1000)):
        y = ddim(sde, y, t, exact_noise(sde, y, t))
    torch.testing.assert_close(y, MEAN + STD * z, rtol=0, atol=0.02 * STD)


def test_the_exact_noise_of_a_known_image_is_undone_at_once():
    sde, y0, noise = VPSDE(), gauss(2, 3, 4, 4), gauss(2, 3, 4, 4, seed=1)
    for t in (0, 500, 999):
        torch.testing.assert_close(denoised(sde, sde.perturb(y0, t, noise), t, noise), y0)
        torch.testing.assert_close(
            ddim(sde, sde.perturb(y0, t, noise), t, noise), sde.perturb(y0, t - 1, noise)
        )


def test_the_step_by_noise_is_the_step_by_the_clean_image():
    for sde in (VPSDE(), VPSDE().respaced(50)):
        y, eps = gauss(2, 3, 4, 4), gauss(2, 3, 4, 4, seed=1)
        for t in (0, 1, 30, len(sde) - 1):
            by_image = posterior(sde, y, t, denoised(sde, y, t, eps))
            torch.testing.assert_close(ancestral(sde, y, t, eps).mean, by_image.mean)


def test_euler_maruyama_nears_the_ancestral_step_as_beta_shrinks():
    def apart(steps: int) -> float:
        sde, y, eps = VPSDE(steps), gauss(1, 3, 4, 4), gauss(1, 3, 4, 4, seed=1)
        t = steps // 2
        return (euler_maruyama(sde, y, t, eps).mean - ancestral(sde, y, t, eps).mean).abs().max().item()

    assert apart(4000) == pytest.approx(apart(1000) / 16, rel=0.05)  # they differ by order beta^2


def test_a_shift_moves_the_mean_by_the_variance_times_the_gradient():
    transition = Transition(gauss(2, 3, 4, 4), torch.tensor([0.1, 0.5]).double().view(2, 1, 1, 1))
    gradient = gauss(2, 3, 4, 4, seed=1)
    shifted = transition.shift(gradient)
    torch.testing.assert_close(shifted.mean[0], transition.mean[0] - 0.01 * gradient[0])
    torch.testing.assert_close(shifted.mean[1], transition.mean[1] - 0.25 * gradient[1])
    assert shifted.std is transition.std
    assert torch.equal(transition.shift(torch.zeros_like(gradient)).mean, transition.mean)


def test_a_linear_energy_shifts_a_gaussian_exactly():
    """N(mu, S) exp(-k y) is N(mu - S k, S): so are the draws, weighted."""
    mean, std, slope = 0.4, 0.3, 1.5
    shifted = Transition(torch.tensor(mean), torch.tensor(std)).shift(torch.tensor(slope))
    y = mean + std * gauss(400_000)
    weight = torch.softmax(-slope * y, 0)
    average = (weight * y).sum()
    assert average.item() == pytest.approx(shifted.mean.item(), abs=3e-3)
    assert ((weight * (y - average) ** 2).sum().sqrt()).item() == pytest.approx(shifted.std.item(), rel=0.01)


def test_a_quadratic_energys_shift_is_its_linearisation_at_the_mean():
    """For M = c (y - a)^2 / 2 the exact mean is mu - S k / (1 + c S): mu - S k to first order in S."""
    mean, a, c = torch.tensor(0.4, dtype=torch.float64), -0.2, 2.0
    at_mean = mean.clone().requires_grad_()
    (k,) = torch.autograd.grad(0.5 * c * (at_mean - a) ** 2, at_mean)
    for std in (0.3, 0.03, 0.003):
        shifted = Transition(mean, torch.tensor(std, dtype=torch.float64)).shift(k)
        torch.testing.assert_close(shifted.mean, mean - std**2 * k, rtol=0, atol=1e-15)
        exact = (mean / std**2 + c * a) / (1 / std**2 + c)
        assert abs(shifted.mean - exact) <= c * std**4 * k * 1.001


def test_guidance_by_a_quadratic_energy_reaches_the_tilted_gaussian():
    """A chain shifted at each step by the energy (y - a)^2 c / 2 on clean data samples p(y) exp(-energy).

    The gradient is that of the energy carried to y_t exactly, so nothing but the step itself is approximate.
    """
    a, c = 0.6, 10.0
    tilted_variance = 1 / (1 / STD**2 + c)
    tilted_mean = tilted_variance * (MEAN / STD**2 + c * a)

    def step(sde, y, t, eps):
        signal, spread = sde.signal[t].item(), sde.spread[t].item()
        # p(y_0 | y_t) is Gaussian; the energy at t is -log E[exp(-energy(y_0)) | y_t].
        inverse = 1 / STD**2 + signal**2 / spread**2
        guess = (MEAN / STD**2 + signal * y / spread**2) / inverse
        gradient = c / (1 + c / inverse) * (guess - a) * (signal / spread**2 / inverse)
        return ancestral(sde, y, t, eps).shift(gradient)

    y = walk(VPSDE(), step)
    assert y.mean().item() == pytest.approx(tilted_mean, abs=0.01)
    assert y.std().item() == pytest.approx(math.sqrt(tilted_variance), rel=0.05)


def test_learned_variances_lie_between_the_posteriors_and_beta():
    sde, y = VPSDE(), gauss(1, 3, 4, 4)
    for t in (1, 300, 999):
        low = log_variance(sde, t, y, "learned", torch.full_like(y, -1))
        high = log_variance(sde, t, y, "learned", torch.full_like(y, 1))
        torch.testing.assert_close(low, log_variance(sde, t, y, "fixed_small").expand_as(y))
        torch.testing.assert_close(high, log_variance(sde, t, y, "fixed_large").expand_as(y))
        assert (low < high).all()


def test_a_learned_variance_without_the_networks_half_is_a_mistake():
    with pytest.raises(ValueError, match="second half"):
        log_variance(VPSDE(), 3, gauss(1, 3, 4, 4), "learned")


@pytest.mark.parametrize("count", [2, 7, 300, 999, 1000])
def test_a_respaced_chain_keeps_alpha_bar_at_the_kept_indices(count):
    full, short = VPSDE(), VPSDE().respaced(count)
    kept = short.network_time(torch.arange(count))
    assert (kept[0], kept[-1], len(kept.unique())) == (0, 999, count)
    torch.testing.assert_close(short.alpha_bar, full.alpha_bar[kept], rtol=1e-12, atol=1e-15)
    assert ((short.betas > 0) & (short.betas < 1)).all()


def test_the_first_indices_of_a_chain_are_a_chain_like_it():
    full, first = VPSDE(), VPSDE(timesteps=tuple(range(300)))
    for name in ("betas", "alpha_bar", "posterior_variance"):
        torch.testing.assert_close(getattr(first, name), getattr(full, name)[:300], rtol=1e-9, atol=0)


def test_spacing_that_cannot_be_is_a_mistake():
    assert (space_timesteps(1000, 1), space_ddim(10, 5)) == ([0], [0, 2, 4, 6, 8])
    for wrong in (0, 1001):
        with pytest.raises(ValueError, match="cannot keep"):
            space_timesteps(1000, wrong)
    with pytest.raises(ValueError, match="no whole stride"):
        space_ddim(1000, 501)
    with pytest.raises(ValueError, match="respaced already"):
        VPSDE().respaced(10).respaced(5)


class Echo(torch.nn.Module):
    """Stands where a U-Net stands and answers with the time it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"in_channels": 3, "out_channels": 3})()

    def forward(self, y, t, class_labels=None):
        sample = t.to(y).view(-1, 1, 1, 1).expand_as(y)
        return type("Output", (), {"sample": sample})()


def test_the_network_is_asked_for_times_of_the_full_chain():
    model, chain = ScoreModel(Echo()), VPSDE().respaced(100)
    y = torch.zeros(2, 3, 4, 4)
    assert model.predict(y, 99, chain)[0].unique().tolist() == [999]
    assert model.predict(y, torch.tensor([0, 1]), chain)[0][:, 0, 0, 0].tolist() == [0, 10]
    assert model.predict(y, 99)[0].unique().tolist() == [99]


def test_the_score_is_the_noise_over_its_spread():
    model, y = ScoreModel(Echo()), torch.zeros(2, 3, 4, 4)
    expected = -500 / math.sqrt(1 - model.sde.alpha_bar[500])
    assert model.score(y, 500)[0, 0, 0, 0].item() == pytest.approx(expected, rel=1e-6)


def test_tiles_that_overlap_see_the_same_noise():
    wide = NoiseKey(5, "slide", x=-30, y=40).normal("start", 0, (3, 150, 170))
    part = NoiseKey(5, "slide").at(60, 100).normal("start", 0, (3, 64, 50))
    assert torch.equal(part, wide[:, 60:124, 90:140])


def test_noise_does_not_depend_on_order_or_company():
    keys = [NoiseKey(1, "a"), NoiseKey(1, "b"), NoiseKey(2, "a")]
    like = torch.empty(3, 3, 20, 24)
    together = normal(keys, "step", 7, like)
    for _ in range(2):
        backwards = [normal([key], "step", 7, like[:1])[0] for key in reversed(keys)]
        assert torch.equal(torch.stack(backwards[::-1]), together)


def test_noise_differs_by_seed_name_stream_step_and_channel_and_is_independent():
    base = NoiseKey(1, "a").normal("step", 7, (3, 64, 64))
    others = [
        NoiseKey(2, "a").normal("step", 7, (3, 64, 64)),
        NoiseKey(1, "b").normal("step", 7, (3, 64, 64)),
    ]
    others += [NoiseKey(1, "a").normal("step", step, (3, 64, 64)) for step in (6, 8, 7 + 256)]
    others += [NoiseKey(1, "a").normal(name, 7, (3, 64, 64)) for name in STREAMS if name != "step"]
    others += [base.roll(1, 0), NoiseKey(1, "a", x=64).normal("step", 7, (3, 64, 64))]
    for other in others:
        assert abs((base * other).mean().item()) < 5 / math.sqrt(base.numel())


def test_noise_is_standard_normal():
    noise = NoiseKey(3).normal("start", 0, (3, 256, 256)).double()
    assert noise.mean().item() == pytest.approx(0, abs=5 / math.sqrt(noise.numel()))
    assert noise.std().item() == pytest.approx(1, rel=0.01)
    assert noise.pow(4).mean().item() == pytest.approx(3, rel=0.05)
    neighbours = (noise[:, :, 1:] * noise[:, :, :-1]).mean().item()
    assert neighbours == pytest.approx(0, abs=5 / math.sqrt(noise.numel()))
