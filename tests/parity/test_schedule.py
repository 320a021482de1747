"""The noise schedule against guided-diffusion's: betas, their products, respaced chains, noised images."""

import re

import pytest
import torch

from miudiff.diffusion.sde import VPSDE, space_ddim, space_timesteps


@pytest.fixture(scope="session")
def sde(golden):
    return VPSDE(len(golden["betas"]))


def respaced(steps: int, name: str) -> VPSDE:
    """The chain that guided-diffusion makes of `timestep_respacing` = "none", "100" or "ddim50"."""
    if name == "none":
        return VPSDE(steps)
    count = int(name.removeprefix("ddim"))
    kept = space_ddim(steps, count) if name.startswith("ddim") else space_timesteps(steps, count)
    return VPSDE(steps, timesteps=tuple(kept))


def test_betas_and_their_products_are_the_official_ones(sde, golden, agree):
    agree(sde.betas, golden["betas"], "betas", 1e-12)
    agree(sde.alpha_bar, golden["alphas_cumprod"], "alphas_cumprod", 1e-12)


def test_an_image_is_noised_as_q_sample_does(sde, golden, agree):
    x0, noise = torch.from_numpy(golden["x0"]), torch.from_numpy(golden["noise"])
    times = [int(name.removeprefix("q_sample/t")) for name in golden if name.startswith("q_sample/")]
    assert times
    for t in times:
        agree(sde.perturb(x0, t, noise), golden[f"q_sample/t{t}"], f"q_sample/t{t}", 1e-6)
        each = sde.perturb(x0, torch.full((len(x0),), t), noise)
        agree(each, golden[f"q_sample/t{t}"], f"q_sample/t{t}, one index for each image", 1e-6)


def test_noised_images_of_the_formulas_agree(formulas, det, agree_with_summary):
    cases = {k: v for k, v in formulas["guided_diffusion"].items() if k.startswith("q_sample_")}
    assert cases
    for name, summary in cases.items():
        shape = tuple(summary["shape"])
        noised = VPSDE().perturb(det(shape), int(name.rsplit("_", 1)[1]), det(shape, 0.21, 0.9))
        agree_with_summary(noised, summary, name, 1e-6)


def test_respaced_chains_keep_the_official_indices_betas_and_variances(formulas, agree):
    tables = formulas["guided_diffusion"]
    names = [re.sub("^respace_", "", key) for key in tables if key.startswith("respace_")]
    assert {"none", "100", "300", "ddim50"} <= set(names)
    full = tables["respace_none"]["n"]
    for name in names:
        table, chain = tables[f"respace_{name}"], respaced(full, name)
        kept = [chain.network_time(t) for t in range(len(chain))]
        assert len(chain) == table["n"], name
        head, tail = table["timestep_map_head"], table["timestep_map_tail"]
        assert (kept[: len(head)], kept[-len(tail) :]) == (head, tail), name
        agree(chain.betas[: len(table["beta_head"])], table["beta_head"], f"{name} betas", 1e-12)
        agree(chain.betas[-1], table["beta_tail"], f"{name} last beta", 1e-12)
        agree(chain.alpha_bar[len(chain) // 2], table["abar_mid"], f"{name} alpha_bar", 1e-12)
        agree(chain.posterior_variance[1], table["post_var_1"], f"{name} posterior variance", 1e-12)


def test_a_respaced_chain_numbers_times_alike_for_integers_and_tensors(formulas):
    chain = respaced(formulas["guided_diffusion"]["respace_none"]["n"], "300")
    times = torch.tensor([0, 7, len(chain) - 1])
    assert chain.network_time(times).tolist() == [chain.network_time(int(t)) for t in times]


def test_the_tables_of_egsde_agree(formulas, agree):
    """Its code multiplies alpha_bar up in float32, which costs the first variances some digits."""
    sde, tables = VPSDE(), formulas["egsde_step"]
    weight = sde.betas / (1 - sde.betas).sqrt()
    columns = {
        "abar": (sde.alpha_bar, 2e-6),
        "fixedsmall_var": (sde.posterior_variance, 1e-4),
        "weight_beta_over_sqrt_alpha": (weight, 2e-6),
    }
    for name, (column, tolerance) in columns.items():
        assert tables[name]
        for t, expected in tables[name].items():
            agree(column[int(t)] / expected, 1.0, f"{name} at {t}", tolerance)
