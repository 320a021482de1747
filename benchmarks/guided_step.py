"""What the MI energy costs: a guided step over a plain U-Net step, on the paper's network at 256 x 256, in one run.

    python benchmarks/guided_step.py [--device auto] [--pairs 9] [--threads N]

Plain and guided steps alternate, so a machine whose speed drifts treats both alike; the ratio is the median over pairs.
"""

import argparse
import statistics
import time

import torch

from miudiff.device import place
from miudiff.diffusion.score import NetworkConfig, ScoreModel, build_unet, parameter_count
from miudiff.information.estimator import Estimator, EstimatorConfig
from miudiff.methods.miu_diff import MIUDiff
from miudiff.methods.presets import preset
from miudiff.noise import NoiseKey

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--device", default="auto")
parser.add_argument("--pairs", type=int, default=9)
parser.add_argument("--threads", type=int)
arguments = parser.parse_args()
if arguments.threads:
    torch.set_num_threads(arguments.threads)

placement = place(arguments.device)
score = ScoreModel(build_unet(NetworkConfig())).eval().requires_grad_(False).to(placement.device)
estimator = Estimator(EstimatorConfig()).eval().requires_grad_(False).to(placement.device)
print(f"{parameter_count(score) / 1e6:.1f} M parameters, {placement}")
he = (torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1).to(placement.device)
keys = [NoiseKey(0, "bench")]
guided = MIUDiff(score, estimator, preset("paper"), placement)
plain = MIUDiff(score, estimator, preset("paper", ("energy.guidance=none",)), placement)
source, y = guided.begin(he, keys)


def seconds(method: MIUDiff, index: int) -> float:
    if placement.device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    method._step(y, source, index, keys, None, None)
    if placement.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


for method in (plain, guided):  # a step each that is not counted
    seconds(method, 299)
pairs = [(seconds(plain, 200), seconds(guided, 200)) for _ in range(arguments.pairs)]
ratios = sorted(g / p for p, g in pairs)
print(f"plain step   {statistics.median(p for p, _ in pairs):.3f} s")
print(f"guided step  {statistics.median(g for _, g in pairs):.3f} s")
print(
    f"ratio        {statistics.median(ratios):.3f}  (from {ratios[0]:.3f} to {ratios[-1]:.3f}, {len(pairs)} pairs)"
)
