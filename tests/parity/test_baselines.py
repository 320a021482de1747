"""SDEdit, EGSDE and ILVR against the official code: single steps, and whole walks with recorded noise."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from miudiff.diffusion.resizer import low_pass
from miudiff.diffusion.sde import VPSDE
from miudiff.methods.egsde import EGSDE, EGSDEConfig, coarse_distance, similarity
from miudiff.methods.ilvr import ILVR, ILVRConfig
from miudiff.methods.sdedit import SDEdit, SDEditConfig
from tiny import CPU

TRAJECTORY = 2e-4  # the recording is float32, and EGSDE's and SDEdit's schedules are, too
OFF = {"scale_realism": 0.0, "scale_faithful": 0.0}
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


class Score:
    """A closed form in the place of a score model."""

    def __init__(self, sde, noise):
        self.sde, self.noise = sde, noise

    def predict(self, y, t, sde):
        return self.noise(y, int(sde.network_time(t))), None


class Features:
    """A closed form in the place of a classifier."""

    def __init__(self, features):
        self.features = features


@pytest.fixture(scope="session")
def score(golden, toy_noise):
    return Score(VPSDE(len(golden["betas"])), toy_noise)


@pytest.fixture(scope="session")
def classifier(golden):
    weight = torch.from_numpy(golden["egsde/dse_weight"])
    return Features(lambda y, t: F.avg_pool2d(torch.tanh(F.conv2d(y, weight.to(y), padding=1)), 2))


def settings(golden, **changes):
    return EGSDEConfig(start=int(golden["start"]), down_factor=int(golden["down_n"]), **changes)


@PRECISIONS
def test_sdedit_ends_where_the_official_one_ends(golden, score, tape, agree, dtype):
    x0 = torch.from_numpy(golden["x0"]).to(dtype)
    config = SDEditConfig(start=int(golden["start"]), gray=False)
    keys = tape(golden["tape"])
    y = SDEdit(score, config, CPU).translate(x0, keys)
    agree(y, np.clip(golden["sdedit/result"], -1, 1), "sdedit/result", TRAJECTORY)
    assert {key.used for key in keys} == {config.start}
    off = EGSDE(score, None, settings(golden, **OFF), CPU).translate(x0, tape(golden["tape"]))
    assert torch.equal(off, y)


@PRECISIONS
def test_egsde_ends_where_the_official_one_ends(golden, score, classifier, tape, agree, dtype):
    x0, config = torch.from_numpy(golden["x0"]).to(dtype), settings(golden)
    keys = tape(golden["tape"])
    y = EGSDE(score, classifier, config, CPU).translate(x0, keys)
    agree(y, np.clip(golden["egsde/result"], -1, 1), "egsde/result", TRAJECTORY)
    assert {key.used for key in keys} == {config.start}


@PRECISIONS
def test_egsde_starts_and_steps_as_the_official_one(golden, score, classifier, tape, agree, dtype):
    method = EGSDE(score, classifier, settings(golden), CPU)
    reverse, last = method.reverse, int(golden["start"]) - 1
    x0, keys = torch.from_numpy(golden["x0"]).to(dtype), tape(golden["tape"])
    source, y = reverse.begin(x0, keys)
    assert source is x0
    agree(y, golden["egsde/y_start"], "egsde/y_start", 1e-5)  # its alpha_bar is a product in float32
    he_t = y  # noised to the same level with the same noise
    moved = reverse.transition(y, last).moved(-method.shift(y, he_t, last))
    agree(reverse.step(moved, last, keys), golden["egsde/first_step"], "egsde/first_step", 2e-5)


@PRECISIONS
def test_ilvr_ends_where_the_official_one_ends(golden, toy_noise, tape, agree, dtype):
    """The recorded walk begins at S - 1: a model that knows S indices of the full chain, of which ILVR takes all."""
    start, total = int(golden["start"]), len(golden["betas"])
    score = Score(VPSDE(total, timesteps=tuple(range(start))), toy_noise)
    config = ILVRConfig(
        down_factor=int(golden["down_n"]),
        range_t=int(golden["ilvr/range_t"]),
        kernel="linear",
        variance="fixed_small",
    )
    keys = tape(np.concatenate([golden["noise"][None], golden["tape"]]))
    x0 = torch.from_numpy(golden["x0"]).to(dtype)
    y = ILVR(score, config, CPU).translate(x0, keys)
    agree(y, np.clip(golden["ilvr/result"], -1, 1), "ilvr/result", TRAJECTORY)
    # The official code also draws for the last step, where the noise is masked, after everything that is used.
    assert {key.used for key in keys} == {int(golden["ilvr/noise_used"])}


@pytest.fixture(scope="session")
def closed_form(det):
    """(y, x_t, classifier, score) of the formulas' steps."""
    weight = det((4, 3, 3, 3), 0.9, 0.2)
    features = Features(lambda z, t: torch.tanh(F.conv2d(z, weight.to(z), padding=1) + 1e-3 * t))
    score = Score(VPSDE(), lambda z, t: 0.3 * z + 1e-3 * t)
    return det((2, 3, 16, 16)), det((2, 3, 16, 16), 0.23, 0.5), features, score


def test_the_steps_of_the_formulas_agree(formulas, closed_form, agree_with_summary):
    y, he_t, features, score = closed_form
    scales = {"none": OFF, "ls": {"scale_faithful": 0.0}, "li": {"scale_realism": 0.0}, "both": {}}
    steps = {n: v for n, v in formulas["egsde_step"].items() if re.fullmatch(r"t\d+_\w+", n)}
    assert {name.split("_")[1] for name in steps} == set(scales)
    for name, summary in steps.items():
        time, which = name.removeprefix("t").split("_")
        method = EGSDE(score, features, EGSDEConfig(down_factor=4, **scales[which]), CPU)
        for dtype in (torch.float32, torch.float64):
            here, there = y.to(dtype), he_t.to(dtype)
            shift = method.shift(here, there, int(time))
            mean = method.reverse.transition(here, int(time)).moved(-shift).mean
            agree_with_summary(mean, summary, f"egsde {name} {dtype}", 1e-5)


def test_the_cosine_of_the_formulas_agrees(formulas, closed_form, agree):
    y, he_t, features, _ = closed_form
    agree(similarity(features, y, he_t, 0), formulas["egsde_step"]["cosine_similarity"], "cosine", 1e-6)


@pytest.mark.parametrize("steps", [None, 20])
def test_the_shift_of_the_distance_is_that_of_a_quadratic_weighed_by_the_chains_beta(closed_form, steps):
    """grad |phi (y - x)|^2 = 2 phi^T phi (y - x); a respaced chain has betas of its own."""
    y, he_t, _, score = closed_form
    y, he_t = y.double(), he_t.double()
    config = EGSDEConfig(steps=steps, down_factor=4, scale_realism=0.0, scale_faithful=1.0)
    method = EGSDE(score, None, config, CPU)
    beta = method.reverse.sde.betas[15]
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(0)).double()
    product = (low_pass(y - he_t, 4, "linear") * low_pass(direction, 4, "linear")).sum()
    found = (method.shift(y, he_t, 15) * direction).sum()
    torch.testing.assert_close(found, 2 * beta / (1 - beta).sqrt() * product)
    assert coarse_distance(y, y, 4, "linear").eq(0).all()
