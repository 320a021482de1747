"""Nothing in a step of any method waits for an accelerator.

The walk runs on torch's `meta` device, which has shapes and no numbers: what would ask it for a number fails there, and each copy
to it is seen. `test_gpu` asks CUDA itself.
"""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import miudiff.noise as noise_module
from miudiff.methods.egsde import EGSDE, EGSDEConfig
from miudiff.methods.fusion import Fusion
from miudiff.methods.ilvr import ILVR, ILVRConfig
from miudiff.methods.miu_diff import MIUDiff
from miudiff.methods.presets import preset
from miudiff.methods.sdedit import SDEdit, SDEditConfig
from miudiff.noise import NoiseKey
from tiny import CPU, tiny_classifier, tiny_estimator, tiny_score

KEYS = [NoiseKey(0, "a", 5, 7), NoiseKey(0, "b")]


class Copies(TorchDispatchMode):
    """Notes what takes tensors of the processor to the device, but numbers that a kernel has as arguments."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name
        given = [arg for arg in args if isinstance(arg, torch.Tensor)]
        on_device = any(tensor.is_meta for tensor in (*given, result) if isinstance(tensor, torch.Tensor))
        carried = [tensor for tensor in given if not tensor.is_meta and (tensor.ndim or "copy" in name)]
        if on_device and carried:
            self.found.append(name)
        return result


def guided(critic, *changes):
    changes = ("reverse.start=60", "reverse.steps=4", "reverse.palette=false", *changes)
    return MIUDiff(tiny_score(), tiny_estimator(critic), preset("fast", changes), CPU)


METHODS = {
    "fast": lambda: guided("separable"),
    "joint critic": lambda: guided("joint"),
    "Eq. 2": lambda: guided(
        "separable",
        "energy.guidance=full",
        "guidance.source_noise=matched",
        "guidance.normalise=none",
        "guidance.weight=beta",
    ),
    "histogram": lambda: guided("separable", "energy.guidance=full", "energy.entropy=histogram"),
    "second order": lambda: guided("separable", "reverse.solver=dpmpp_2m_sde"),
    "ODE": lambda: guided("separable", "reverse.solver=dpmpp_2m"),
    "Euler": lambda: guided("separable", "reverse.solver=euler_maruyama", "guidance.energy_at=current"),
    "learned variance": lambda: guided("separable", "reverse.variance=learned"),
    "clipped": lambda: guided("separable", "reverse.clip=true", "energy.guidance=none"),
    "sdedit": lambda: SDEdit(tiny_score(), SDEditConfig(steps=4, repeats=2, gray=True), CPU),
    "egsde": lambda: EGSDE(tiny_score(), tiny_classifier(), EGSDEConfig(steps=4, frozen_noise=False), CPU),
    "ilvr": lambda: ILVR(tiny_score(), ILVRConfig(steps=4), CPU),
}


@pytest.fixture
def on_device(monkeypatch):
    """Moves a method's networks to the device; noise is there by itself, as `test_noise` and `test_gpu` see to."""
    monkeypatch.setattr(
        noise_module, "upload", lambda tensor, device: torch.empty(tensor.shape, device=device)
    )
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no `meta`

    def move(method):
        for part in (method.reverse.score, *(vars(method).get(name) for name in ("estimator", "classifier"))):
            if part is not None:
                part.to("meta")
        return method

    return move


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_takes_nothing_to_the_device_and_asks_it_for_nothing(name, watched, on_device):
    method, he, seen = on_device(METHODS[name]()), torch.empty(2, 3, 64, 64, device="meta"), []
    if watched:
        method.reverse.watch = seen.append
    method.translate(he, KEYS)  # constants are copied once
    with Copies() as copies:
        assert method.translate(he, KEYS).is_meta
    assert copies.found == []
    assert len(seen) == (2 * len(method.reverse.sde) * (2 if name == "sdedit" else 1) if watched else 0)


def test_tiles_that_agree_in_each_step_take_nothing_to_the_device(on_device):
    method, fusion = on_device(guided("separable")), Fusion(112, 64, 64, 16)
    he = torch.empty(len(fusion.corners), 3, 64, 64, device="meta")
    method.reverse.fusion, method.reverse.at_once = fusion, 1
    keys = [KEYS[0].at(left, top) for top, left in fusion.corners]
    method.translate(he, keys)
    with Copies() as copies:
        method.translate(he, keys)
    assert copies.found == []
