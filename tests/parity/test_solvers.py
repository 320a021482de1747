"""Solvers against the official code: DDIM, the continuous VP-SDE and its steps, SDEdit's whole trajectory."""

import re

import pytest
import torch

from miudiff.diffusion.sampling import ancestral, ddim, euler_maruyama
from miudiff.diffusion.sde import VPSDE, ContinuousVPSDE, space_ddim
from miudiff.noise import normal


@pytest.fixture(scope="session")
def sde(golden):
    return VPSDE(len(golden["betas"]))


def test_ddim_ends_where_the_official_one_ends(sde, golden, toy_noise, agree):
    runs = [name for name in golden if re.fullmatch(r"ddim\d+/timesteps", name)]
    assert runs
    for name in runs:
        kept = [int(t) for t in golden[name]]
        assert kept == space_ddim(len(sde), len(kept)), name
        chain = VPSDE(len(sde), timesteps=tuple(kept))
        y = torch.from_numpy(golden["noise"])
        for t in reversed(range(len(chain))):
            y = ddim(chain, y, t, toy_noise(y, chain.network_time(t)), clip=True)
        result = name.replace("timesteps", "result")
        agree(y, golden[result], result, 2e-4)


def test_the_continuous_process_has_the_official_coefficients(golden, agree):
    process, t = ContinuousVPSDE(), torch.from_numpy(golden["vpsde/t"])
    agree(process.mean_coefficient(t), golden["vpsde/mean_coeff"], "mean_coeff", 1e-6)
    agree(
        process.std(t.double()), golden["vpsde/std"], "std", 1e-5
    )  # recorded in float32, which cancels near t = 0
    agree(process.drift(torch.ones_like(t), t), golden["vpsde/drift_coeff"], "drift_coeff", 1e-6)
    agree(process.diffusion(t), golden["vpsde/diffusion"], "diffusion", 1e-6)


def test_the_marginals_of_the_formulas_agree(formulas, agree):
    process, chain = ContinuousVPSDE(), VPSDE()
    assert formulas["score_sde"]
    for key, table in formulas["score_sde"].items():
        t = torch.tensor(float(key), dtype=torch.float64)
        agree(process.mean_coefficient(t).log(), table["log_mean_coeff"], f"{key} log mean", 1e-12)
        agree(process.std(t), table["std"], f"{key} std", 1e-12)
        agree(process.beta(t), table["beta_t"], f"{key} beta", 1e-12)
        agree(chain.betas[table["discrete_idx"]], table["discrete_beta"], f"{key} discrete beta", 1e-8)


def test_the_ancestral_step_is_the_official_one(formulas, det, agree_with_summary):
    chain = VPSDE()
    for key, table in formulas["score_sde"].items():
        y, t = det(tuple(table["ancestral_mean"]["shape"])), table["discrete_idx"]
        score = -0.3 * y / table["std"]
        step = ancestral(chain, y, t, -score * chain.spread[t].float())
        agree_with_summary(step.mean, table["ancestral_mean"], f"{key} ancestral", 1e-6)


def test_the_euler_maruyama_step_is_the_official_one(formulas, det, agree, agree_with_summary):
    process, chain = ContinuousVPSDE(), VPSDE()
    for key, table in formulas["score_sde"].items():
        y, index = det(tuple(table["em_mean"]["shape"])), table["discrete_idx"]
        t, score = torch.tensor(float(key)), -0.3 * y / table["std"]
        mean = y - process.reverse_drift(y, t, score) / len(chain)
        agree_with_summary(mean, table["em_mean"], f"{key} Euler-Maruyama", 1e-6)
        # The chain's beta at an index is the continuous one's at a time up to 1/T away.
        step = euler_maruyama(chain, y, index, -score * chain.spread[index].float())
        apart = abs(table["beta_t"] / len(chain) - table["discrete_beta"])
        agree(step.mean, mean, f"{key} on the chain", 1e-6 + 2 * apart)
        agree(step.std, process.diffusion(t) / len(chain) ** 0.5, f"{key} noise", 1e-4)


def test_one_step_of_sdedit_is_the_official_one(formulas, det, agree_with_summary):
    assert formulas["sdedit_step"]
    for key, summary in formulas["sdedit_step"].items():
        t, y = int(key.removeprefix("t")), det(tuple(summary["shape"]))
        step = ancestral(VPSDE(), y, t, 0.3 * y + 1e-3 * t)
        agree_with_summary(step.mean, summary, f"sdedit {key}", 2e-6)


def test_sdedit_walks_the_official_trajectory(sde, golden, toy_noise, tape, agree):
    start, keys = int(golden["start"]), tape(golden["tape"])
    x0 = torch.from_numpy(golden["x0"])
    y = sde.perturb(x0, start - 1, normal(keys, "start", 0, x0))
    agree(y, golden["egsde/y_start"], "egsde/y_start", 1e-5)
    for t in reversed(range(start)):
        step = ancestral(sde, y, t, toy_noise(y, t))
        y = step.sample(normal(keys, "step", t, y)) if t > 0 else step.mean
    agree(y, golden["sdedit/result"], "sdedit/result", 2e-4)
    assert {key.used for key in keys} == {start}
