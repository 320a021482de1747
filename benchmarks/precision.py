"""What bf16 changes in finished images: held-out tissue translated in fp32 and in bf16 from the same noise.

python benchmarks/precision.py [--preset tuned] [--seeds 2]
"""

import argparse
import statistics
import time

from miudiff.data.twin import at_scale, twin_region
from miudiff.evaluation.fidelity import psnr
from miudiff.stainer import VirtualStainer

SIDE = 128  # pixels; the held-out region is two of them
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--preset", default="tuned")
parser.add_argument("--seeds", type=int, default=2)
parser.add_argument("--device", default="auto")
arguments = parser.parse_args()

seconds, results = {}, {}
for precision in ("fp32", "bf16"):
    stainer = VirtualStainer.load(
        preset=arguments.preset, marker="FHL2", device=arguments.device, precision=precision
    )
    he = at_scale(twin_region("test")[0], stainer.model.card.mpp)
    tiles = [he[top : top + SIDE, :SIDE] for top in range(0, he.shape[0] - SIDE + 1, SIDE)]
    began = time.perf_counter()
    results[precision] = [
        stainer.translate(t, seed=s, name=str(i)) for s in range(arguments.seeds) for i, t in enumerate(tiles)
    ]
    seconds[precision] = time.perf_counter() - began
same = [psnr(a, b) for a, b in zip(results["bf16"], results["fp32"], strict=True)]
half = len(results["fp32"]) // 2
other = [psnr(a, b) for a, b in zip(results["fp32"][:half], results["fp32"][half:], strict=True)]
print(f"preset {arguments.preset}, {len(same)} tiles")
print(f"PSNR of bf16 against fp32, same noise: mean {statistics.mean(same):.1f} dB, least {min(same):.1f} dB")
print(f"PSNR of one seed against another, fp32:  mean {statistics.mean(other):.1f} dB")
print(
    f"time: fp32 {seconds['fp32']:.0f} s, bf16 {seconds['bf16']:.0f} s, ratio {seconds['fp32'] / seconds['bf16']:.2f}"
)
