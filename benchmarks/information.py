"""How much an estimator tells of an image from its gradient map: the bound on IHC that it was not trained on, by noise level.

    python benchmarks/information.py IHC_TILE... [--model ihc-small]

Donsker-Varadhan's bound in nats of the middle 128 x 128 pixels of each tile, which has the model's scale; pairs are pooled over tiles and
four draws of noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from miudiff.images import read_image, to_tensor
from miudiff.information.learner import held_out_curve
from miudiff.methods.model import load_model
from miudiff.naming import SHIPPED

SIDE = 128
TIMES = (-1, 1, 10, 50, 100, 149, 200, 299)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("tiles", type=Path, nargs="+")
parser.add_argument("--model", default=SHIPPED)
arguments = parser.parse_args()
estimator = load_model(arguments.model).estimator
if estimator is None:
    parser.error(f"{arguments.model}: has no MI estimator")
cut = []
for path in arguments.tiles:
    image = read_image(path)
    top, left = ((side - SIDE) // 2 for side in image.shape[:2])
    cut.append(image[top : top + SIDE, left : left + SIDE])
print(f"{len(cut)} tiles\n| t | structure clean | structure noised to the same level |\n| --- | --- | --- |")
for time, (clean, noised) in held_out_curve(estimator, to_tensor(cut), TIMES).items():
    print(f"| {'clean' if time < 0 else time} | {clean:.2f} | {noised:.2f} |")
