"""One reverse step and the loss against guided-diffusion: p_mean_variance, training_losses."""

import re

import pytest
import torch

from miudiff.diffusion.learner import variational_bound
from miudiff.diffusion.sampling import ancestral, denoised, log_variance, posterior
from miudiff.diffusion.sde import VPSDE


@pytest.fixture(scope="session")
def sde(golden):
    return VPSDE(len(golden["betas"]))


def cases(golden):
    """(variance, t, "clip" or "noclip") of each recorded posterior."""
    found = [re.fullmatch(r"posterior/(\w+)/t(\d+)/(clip|noclip)/mean", name) for name in golden]
    return [(match[1], int(match[2]), match[3]) for match in found if match]


def step(sde, golden, toy_noise, t):
    """The noised image at t and its noise estimate, in float64 from the recorded float32."""
    x0, noise = (torch.from_numpy(golden[name]).double() for name in ("x0", "noise"))
    y = sde.perturb(x0, t, noise)
    return y, toy_noise(y, t)


def test_every_recorded_case_is_looked_at(golden):
    found = cases(golden)
    assert {variance for variance, _, _ in found} == {"fixed_small", "fixed_large"}
    assert {clip for _, _, clip in found} == {"clip", "noclip"}
    assert 3 * len(found) == sum(name.startswith("posterior/") for name in golden)


def test_the_estimate_of_the_clean_image_is_the_official_one(sde, golden, toy_noise, agree):
    """Dividing by sqrt(alpha_bar), 1/157 at t = 999, magnifies float32's rounding: it is undone here."""
    for variance, t, clip in cases(golden):
        y, eps = step(sde, golden, toy_noise, t)
        y0 = denoised(sde, y, t, eps)
        name = f"posterior/{variance}/t{t}/{clip}/pred_x0"
        y0 = y0.clamp(-1, 1) if clip == "clip" else y0
        signal = sde.signal[t]
        agree(signal * y0, signal * torch.from_numpy(golden[name]), name, 1e-6)


def test_the_mean_of_a_step_is_the_official_one(sde, golden, toy_noise, agree):
    for variance, t, clip in cases(golden):
        y, eps = step(sde, golden, toy_noise, t)
        y0 = denoised(sde, y, t, eps)
        name = f"posterior/{variance}/t{t}/{clip}/mean"
        if clip == "clip":
            agree(posterior(sde, y, t, y0.clamp(-1, 1), variance).mean, golden[name], name)
        else:
            agree(posterior(sde, y, t, y0, variance).mean, golden[name], name)
            agree(ancestral(sde, y, t, eps, variance).mean, golden[name], f"{name} by eps")


def test_the_variance_of_a_step_is_the_official_one(sde, golden, toy_noise, agree):
    """At t = 0, where no noise is added, guided-diffusion writes the variance of t = 1 for `fixed_small`.

    Ours is 1e-20 there, so that an energy does not shift the last mean; the official value is the lower end
    that a learned variance starts from.
    """
    for variance, t, clip in cases(golden):
        y, eps = step(sde, golden, toy_noise, t)
        name = f"posterior/{variance}/t{t}/{clip}/log_variance"
        expected = torch.from_numpy(golden[name])
        if variance == "fixed_small":
            agree(log_variance(sde, t, y, "learned", -torch.ones_like(y)), expected, f"{name}, lower end")
        if variance == "fixed_small" and t == 0:
            assert ancestral(sde, y, t, eps, variance).std.max() < 1e-9
            continue
        for transition in (ancestral(sde, y, t, eps, variance), posterior(sde, y, t, y, variance)):
            agree(2 * transition.std.log().expand_as(expected), expected, name)


def test_float32_and_one_index_for_each_image_make_the_same_step(sde, golden, toy_noise, agree):
    for variance, t, _ in cases(golden):
        y, eps = step(sde, golden, toy_noise, t)
        one = ancestral(sde, y, t, eps, variance)
        each = ancestral(sde, y.float(), torch.full((len(y),), t), eps.float(), variance)
        agree(each.mean, one.mean, f"{variance} t {t} mean")
        agree(each.std.flatten(), one.std.expand(len(y)), f"{variance} t {t} std")


def test_a_learned_variance_lies_where_the_official_code_puts_it(formulas, det, agree_with_summary):
    tables = {k: v for k, v in formulas["guided_diffusion"].items() if k.startswith("pmv_")}
    assert tables
    sde = VPSDE()
    for name, table in tables.items():
        t, y = int(name.removeprefix("pmv_")), det(tuple(table["mean"]["shape"]))
        eps, fraction = 0.3 * y, 0.1 * y
        y0 = denoised(sde, y, t, eps).clamp(-1, 1)
        transition = posterior(sde, y, t, y0, "learned", fraction)
        agree_with_summary(y0, table["x0"], f"{name} x0")
        agree_with_summary(transition.mean, table["mean"], f"{name} mean")
        agree_with_summary(2 * transition.std.log(), table["logvar"], f"{name} log variance")


def test_the_training_loss_is_the_official_one(formulas, det, agree):
    losses = formulas["guided_diffusion"]["training_losses"]
    sde, x0, noise = VPSDE(), det((2, 3, 32, 32)), det((2, 3, 32, 32), 0.21, 0.9)
    t = torch.tensor([10, 500])
    y = sde.perturb(x0, t, noise)
    eps, fraction = 0.3 * y, 0.1 * y
    mse = (noise - eps).square().flatten(1).mean(1)
    vb = variational_bound(sde, x0, y, t, eps, fraction)
    agree(mse, losses["mse"], "mse", 1e-6)
    agree(vb, losses["vb"], "vb", 1e-6)
    agree(mse + vb, losses["loss"], "loss", 1e-6)


def test_the_bound_at_the_last_step_is_the_likelihood_of_the_grey_level():
    """At t = 0 the bits of all 256 grey levels are those of a probability: they add up to one."""
    sde = VPSDE()
    levels = torch.linspace(-1, 1, 256, dtype=torch.float64).view(256, 1, 1, 1).expand(-1, 3, 1, 1)
    y = torch.full((256, 3, 1, 1), 0.2, dtype=torch.float64)
    bits = variational_bound(
        sde, levels, y, torch.zeros(256, dtype=torch.long), torch.zeros_like(y), torch.zeros_like(y)
    )
    assert torch.exp2(-bits).sum().item() == pytest.approx(1, abs=1e-6)
