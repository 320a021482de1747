"""Training the score model: images a second as `miudiff train` runs it, against a plain loop in eager fp32."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

from miudiff.bench.machine import forget_most, most_held
from miudiff.bench.timing import Clock
from miudiff.config import parse
from miudiff.device import Placement
from miudiff.diffusion.score import NetworkConfig, build_unet
from miudiff.diffusion.sde import VPSDE
from miudiff.images import write_image
from miudiff.runs.config import RunConfig
from miudiff.runs.execute import run

# The network that ships, and the paper's, which is timed on accelerators alone.
SHIPPED: dict[str, Any] = {
    "network": {
        "size": 64,
        "channels": [48, 96, 128, 192],
        "attention": [8],
        "head_channels": 32,
        "groups": 16,
    },
    "size": 64,
    "batch": 16,
}
PAPER: dict[str, Any] = {"network": {}, "size": 256, "batch": 16}


def throughput(what: dict[str, Any], steps: int, placement: Placement, clock: Clock) -> dict[str, float]:
    """Images a second of both, and their ratio; the first half of our run is not counted, and reading images is."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(4):
            pixels = np.random.default_rng(number).integers(0, 256, (512, 512, 3), np.uint8)
            write_image(root / "ihc" / f"{number}.png", pixels)
        forget_most(placement)
        ours = _ours(root, what, steps, placement)
        memory = most_held(placement)
    eager = _eager(what, placement, clock)
    return {
        "training_ratio_to_eager_fp32": round(ours / eager, 3),
        "images_per_second": round(ours, 2),
        "eager_fp32_images_per_second": round(eager, 2),
        "peak_memory_mib": memory,
    }


def _ours(root: Path, what: dict[str, Any], steps: int, placement: Placement) -> float:
    config = {
        "task": "score",
        "out": str(root / "run"),
        "steps": steps,
        "batch_size": what["batch"],
        "log_every": steps // 2,
        "save_every": steps,
        "device": str(placement.device),
        "precision": placement.precision,
        "data": {
            "root": str(root),
            "size": what["size"],
            "native": True,
            "sources": [{"files": "ihc/*.png"}],
        },
        "score": {"network": what["network"]},
    }
    run(parse(RunConfig, config, "bench"), lambda line: None)
    lines = (root / "run" / "metrics.jsonl").read_text().splitlines()
    return float(json.loads(lines[-1])["images_per_second"])


def _eager(what: dict[str, Any], placement: Placement, clock: Clock) -> float:
    """What one writes first: diffusers' network in fp32, torch's AdamW, the noise's mean squares, images that are there already."""
    torch.manual_seed(0)
    network = parse(NetworkConfig, what["network"], "bench")
    unet: UNet2DModel = build_unet(network).to(placement.device, memory_format=torch.contiguous_format)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, foreach=False, fused=False)
    shape, sde = (what["batch"], 3, what["size"], what["size"]), VPSDE()
    y0 = torch.rand(shape, device=placement.device) * 2 - 1

    def step() -> None:
        t = torch.randint(0, len(sde), shape[:1], device=placement.device)
        noise = torch.randn(shape, device=placement.device)
        output = unet(sde.perturb(y0, t, noise), t).sample
        optimizer.zero_grad(set_to_none=True)
        F.mse_loss(output[:, :3], noise).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return float(what["batch"]) / clock.seconds(step)
