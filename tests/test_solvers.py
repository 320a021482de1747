"""The second-order solver: diffusers' own scheduler, the order on Gaussian data whose score is known, and where its steps lie."""

import math
from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from miudiff.diffusion.sampling import denoised, multistep
from miudiff.diffusion.sde import VPSDE, space_in_log_snr
from miudiff.methods.miu_diff import MIUDiffConfig
from miudiff.methods.sdedit import ReverseConfig

MEAN, STD = 0.3, 0.2  # of the Gaussian data whose score is known exactly
FINE = VPSDE(steps=10_000)  # so fine that where a step lies is hardly rounded


def gauss(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clean(sde, y, t):
    """E[y_0 | y_t] for data from N(MEAN, STD^2)."""
    signal, spread = sde.signal[t].item(), sde.spread[t].item()
    noise = spread * (y - signal * MEAN) / (signal**2 * STD**2 + spread**2)
    return denoised(sde, y, t, noise)


def chain(count, first=9000, last=500, full=FINE):
    """`count` steps from index `first` to `last`, evenly in the log signal-to-noise ratio."""
    levels = (full.signal[:-1] / full.spread[:-1]).log()
    wanted = torch.linspace(float(levels[first]), float(levels[last]), count + 1, dtype=torch.float64)
    kept = sorted({int((levels - level).abs().argmin()) for level in wanted})
    return VPSDE(full.steps, full.beta_min, full.beta_max, tuple(kept))


def exact_flow(sde, y):
    """Where the probability flow takes `y` from the last index of a chain to its first: the marginals' scaling."""
    ends = [(sde.signal[t].item(), sde.spread[t].item()) for t in (len(sde) - 1, 0)]
    wide = [math.sqrt(signal**2 * STD**2 + spread**2) for signal, spread in ends]
    return ends[1][0] * MEAN + wide[1] / wide[0] * (y - ends[0][0] * MEAN)


def orders(errors):
    return [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]


def test_the_odes_step_is_of_second_order_on_gaussian_data():
    errors = []
    for count in (8, 16, 32, 64):
        sde, y, before = chain(count), torch.tensor([1.7, -0.4], dtype=torch.float64), None
        expected = exact_flow(sde, y)
        for t in reversed(range(1, len(sde))):
            step = multistep(sde, y, t, clean(sde, y, t), before, noise=0.0)
            y, before = step.mean, step.clean
            assert float(step.std) == 0
        errors.append(float((y - expected).abs().max()))
    assert all(1.7 < order < 2.6 for order in orders(errors)), errors


@pytest.mark.parametrize("second", [True, False])
@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_the_sdes_variance_is_of_second_order_on_gaussian_data_and_of_first_without_memory(second, tau):
    """On Gaussian data a step is linear: mean and variance of the walk follow from its coefficients, without a draw."""
    errors = []
    for count in (8, 16, 32, 64):
        sde = chain(count)
        last = len(sde) - 1
        # columns: 1, the start's deviation, and each step's noise
        start = torch.zeros(count + 3, dtype=torch.float64)
        start[0] = sde.signal[last] * MEAN
        start[1] = math.sqrt(sde.signal[last] ** 2 * STD**2 + sde.spread[last] ** 2)
        y, before = start, None
        one = torch.zeros_like(start)
        one[0] = 1.0
        for number, t in enumerate(reversed(range(1, len(sde)))):
            signal, spread = sde.signal[t], sde.spread[t]
            noise = spread * (y - signal * MEAN * one) / (signal**2 * STD**2 + spread**2)
            guess = (y - spread * noise) / signal
            step = multistep(sde, y, t, guess, before, tau)
            y = step.mean.clone()
            y[2 + number] += step.std
            before = step.clean if second else None
        assert float(y[0]) == pytest.approx(float(sde.signal[0]) * MEAN, abs=1e-9)
        wanted = float(sde.signal[0] ** 2 * STD**2 + sde.spread[0] ** 2)
        errors.append(abs(float(y[1:].square().sum()) - wanted))
    lowest, highest = (1.6, 2.6) if second else (0.7, 1.4)
    assert all(lowest < order < highest for order in orders(errors)), errors


@pytest.mark.parametrize("stochastic", [True, False])
def test_a_walk_is_that_of_diffusers_scheduler(stochastic):
    kept = (0, 60, 130, 200, 299)
    sde = VPSDE(timesteps=kept)
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        beta_start=sde.beta_min,
        beta_end=sde.beta_max,
        beta_schedule="linear",
        algorithm_type="sde-dpmsolver++" if stochastic else "dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        lower_order_final=True,
    )
    scheduler.set_timesteps(timesteps=list(reversed(kept)))
    y = other = gauss(2, 3, 8, 8)
    before = None
    for number, t in enumerate(reversed(range(len(kept)))):
        noise = gauss(2, 3, 8, 8, seed=10 + t)
        eps = torch.tanh(y) + 0.1 * t
        step = multistep(sde, y, t, denoised(sde, y, t, eps), before, float(stochastic))
        theirs = torch.tanh(other) + 0.1 * t
        other = scheduler.step(theirs, scheduler.timesteps[number], other, variance_noise=noise).prev_sample
        y, before = step.sample(noise), step.clean
        torch.testing.assert_close(y, other, rtol=2e-4, atol=1e-4)  # theirs rounds its schedule to float32


def test_one_step_to_the_clean_image_is_its_estimate():
    sde = VPSDE(timesteps=(150,))
    y0 = gauss(1, 3, 4, 4)
    step = multistep(sde, gauss(1, 3, 4, 4, seed=1), 0, y0, before=gauss(1, 3, 4, 4, seed=2))
    assert torch.equal(step.mean, y0)
    assert float(step.std) == 0


@pytest.mark.parametrize("count", [2, 6, 10, 40])
def test_steps_in_log_snr_go_from_the_start_to_the_last_index_and_are_even(count):
    full = VPSDE()
    kept = sorted(space_in_log_snr(full, 300, count))
    assert (kept[0], kept[-1]) == (0, 299)
    assert len(kept) <= count
    levels = (full.signal[kept] / full.spread[kept]).log()
    steps = levels[:-1] - levels[1:]
    if count <= 10:  # with more, the first indices, which are whole numbers, lie too far apart to be even
        assert float(steps.max() / steps.min()) < 1.5


def test_a_chain_spaced_in_log_snr_is_walked_by_the_config():
    config = ReverseConfig(start=300, steps=8, spacing="log_snr")
    kept = config.chain(VPSDE()).timesteps
    assert set(kept) == space_in_log_snr(VPSDE(), 300, 8)
    assert kept != ReverseConfig(start=300, steps=8).chain(VPSDE()).timesteps
    assert MIUDiffConfig().reverse.solver == "ancestral"
