"""What VIF costs here and in sewar, and whether both agree, in one run; then the seconds of a whole panel.

    python benchmarks/metrics.py [--side 1024] [--pairs 3]

Both take the same pieces of scikit-image's IHC picture, one after the other, so a machine whose speed drifts treats both
alike. Needs the test extra (sewar).
"""

import argparse
import statistics
import time

import numpy as np
from sewar.full_ref import vifp
from skimage.data import immunohistochemistry

from miudiff.evaluation.fidelity import vif
from miudiff.evaluation.panel import measure
from miudiff.images import Pixels, resize

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--side", type=int, default=1024)
parser.add_argument("--pairs", type=int, default=3)
arguments = parser.parse_args()

picture = np.asarray(immunohistochemistry())
tiles = [resize(np.rot90(picture, turn).copy(), arguments.side, arguments.side) for turn in range(4)]


def seconds(image: Pixels, reference: Pixels) -> tuple[float, float, float]:
    began = time.perf_counter()
    ours = vif(image, reference)
    between = time.perf_counter()
    theirs = vifp(reference, image)
    return between - began, time.perf_counter() - between, abs(ours - theirs)


seconds(tiles[0], tiles[1])  # not counted
found = [seconds(tiles[pair % 3], tiles[3]) for pair in range(arguments.pairs)]
print(f"VIF here     {statistics.median(ours for ours, _, _ in found):.2f} s")
print(f"VIF of sewar {statistics.median(theirs for _, theirs, _ in found):.2f} s")
print(
    f"ratio        {statistics.median(theirs / ours for ours, theirs, _ in found):.1f}  ({len(found)} pairs)"
)
print(f"difference   {max(difference for _, _, difference in found):.1e} at most")
for nucleus in (None, 16.0):
    began = time.perf_counter()
    measure(tiles[0], tiles[1], tiles[2], nucleus)
    cells = "with cells" if nucleus else "without cells"
    print(f"a panel      {time.perf_counter() - began:.1f} s an image, {cells}")
