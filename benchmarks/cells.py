"""How well `cells` finds and classes nuclei beside hand-drawn masks.

    python benchmarks/cells.py FOLDER [--mpp 0.36] [--shrink 4]

FOLDER holds NAME.jpg (or .png) with NAME_mask_positive.png and NAME_mask_negative.png, white on black. Images and masks are
shrunk by --shrink, to --mpp micrometres per pixel. A drawn object is one connected region; found and drawn ones match where
their intersection over union is above one half.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from miudiff.cells import NUCLEUS, WEAK, cell_labels, positivity
from miudiff.evaluation.structure import dice
from miudiff.images import read_image, resize
from miudiff.stains import background_light, dab_map

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", type=Path)
parser.add_argument("--mpp", type=float, default=0.36)
parser.add_argument("--shrink", type=int, default=4)
arguments = parser.parse_args()


def drawn(path: Path, height: int, width: int) -> np.ndarray:
    """Objects of a mask at the shrunken size, [height, width]; they are told apart at the size they were drawn at."""
    labels, _ = ndimage.label(np.asarray(Image.open(path)) > 0)
    half = arguments.shrink // 2
    return labels[half :: arguments.shrink, half :: arguments.shrink][:height, :width]


def matched(found: np.ndarray, true: np.ndarray) -> int:
    """Objects of the one that match an object of the other."""
    edges = [np.arange(labels.max() + 2) for labels in (found, true)]
    shared = np.histogram2d(found.ravel(), true.ravel(), bins=edges)[0]
    union = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0, keepdims=True) - shared
    return int((shared / np.maximum(union, 1) > 0.5)[1:, 1:].sum())


print("field | Dice | Dice of positive | F1 of objects | found, drawn | index found, drawn | H-score")
for path in sorted(arguments.folder.glob("*_mask_positive.png")):
    name = path.name.removesuffix("_mask_positive.png")
    image = read_image(next(f for f in path.parent.glob(f"{name}.*") if f.suffix in (".jpg", ".png")))
    height, width = (side // arguments.shrink for side in image.shape[:2])
    image = resize(image, height, width)
    positive = drawn(path, height, width)
    negative = drawn(path.with_name(f"{name}_mask_negative.png"), height, width) * (positive == 0)
    labels = cell_labels(image, NUCLEUS / arguments.mpp)
    score = positivity(image, labels)
    dab = dab_map(image, np.maximum(background_light(image), 150))
    means = ndimage.mean(dab, labels, np.arange(labels.max() + 1))
    brown = (labels > 0) & (means > WEAK)[labels]
    objects = np.where(positive > 0, positive, np.where(negative > 0, negative + positive.max(), 0))
    counts = [len(np.unique(each[each > 0])) for each in (positive, negative)]
    f1 = 2 * matched(labels, objects) / (score.cells + sum(counts))
    print(
        f"{name} | {dice(labels > 0, objects > 0):.3f} | {dice(brown, positive > 0):.3f} | {f1:.3f} | "
        f"{score.cells}, {sum(counts)} | {score.positive:.3f}, {counts[0] / sum(counts):.3f} | {score.h_score:.0f}"
    )
