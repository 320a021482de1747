"""Which pixels a tone curve should move: each field mapped by the curve of the others, beside its real IHC, before any diffusion.

python benchmarks/grounds.py HE IHC [--leave-out NAME ...]

HE and IHC are folders of pairs of one name, fields of one size; names that begin with one of --leave-out are test fields and not looked at.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

import miudiff.methods.tone as tone
from miudiff.images import list_images, luma, read_image, to_tensor

SIDE = 256
CHROMAS = (None, (0.01, 0.03), (0.015, 0.05), (0.015, 0.1), (0.015, 0.2), (0.015, 0.3))

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("he", type=Path)
parser.add_argument("ihc", type=Path)
parser.add_argument("--leave-out", nargs="*", default=[])
arguments = parser.parse_args()


def shrunk(path: Path) -> np.ndarray:
    return np.asarray(Image.fromarray(read_image(path)).resize((SIDE, SIDE), Image.Resampling.BOX))


def shares(greys: np.ndarray) -> np.ndarray:
    return np.histogram(greys, 64, (-1, 1))[0]


files = [path for path in list_images(arguments.he) if not path.name.startswith(tuple(arguments.leave_out))]
pairs = [(shrunk(path), shrunk(arguments.ihc / path.name)) for path in files]
print(f"{len(pairs)} fields: correlation of 64-bin luma histograms, difference of mean luma (of 1)")
for chroma in CHROMAS:
    tone.CHROMA = chroma or tone.CHROMA
    found = []
    for i, (he, ihc) in enumerate(pairs):
        others = [pair for j, pair in enumerate(pairs) if j != i]
        curve = tone.measure_tone(*zip(*others, strict=True), keep_ground=chroma is not None)
        mapped, real = curve(to_tensor(he))[0, 0].numpy(), luma(to_tensor(ihc))[0].numpy()
        correlation = np.corrcoef(shares(mapped), shares(real))[0, 1]
        found.append((correlation, abs(mapped.mean() - real.mean()) / 2))
    print(f"{chroma or 'every pixel moved'}: {np.mean(found, axis=0).round(3)}")
