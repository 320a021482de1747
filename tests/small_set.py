"""Small datasets in the published layouts, and a budget of tiny networks: what the tests of the comparison share."""

import numpy as np
import yaml

from miudiff.images import write_image
from miudiff.reproduce import Options, reproduce

NETWORK = {"size": 32, "channels": [16, 32], "attention": [16], "head_channels": 8, "groups": 8}
GAN = {"generator": {"width": 4, "blocks": 2}, "taps": [0, 4, 8]}
TINY = {
    "description": "tiny",
    "side": 64,
    "images": 1,
    "seeds": 2,
    "reverse_steps": 3,
    "score": {"steps": 2, "batch_size": 1, "tile": 32, "settings": {"network": NETWORK, "ema": 0.9}},
    "mi": {
        "steps": 2,
        "batch_size": 1,
        "tile": 64,
        "settings": {"estimator": {"channels": [8, 8], "patch": 16}},
    },
    "classifier": {
        "steps": 2,
        "batch_size": 1,
        "tile": 32,
        "settings": {"network": {**NETWORK, "layers": 1}},
    },
    "cut": {
        "steps": 2,
        "batch_size": 1,
        "tile": 64,
        "settings": {**GAN, "discriminator": {"width": 4}},
    },
    "asp": {
        "steps": 2,
        "batch_size": 1,
        "tile": 64,
        "settings": {**GAN, "discriminator": {"width": 4, "layers": 3}},
    },
}


def tissue(height, width, seed):
    y, x = np.mgrid[:height, :width] / 32
    waves = [np.sin(9 * x + k + seed) * np.cos(7 * y - k) for k in range(3)]
    return np.round(150 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)


def bci(root, train=2, test=2, size=(96, 96)):
    """A dataset in BCI's layout."""
    for part, count in (("train", train), ("test", test)):
        for i in range(count):
            for k, stain in enumerate(("HE", "IHC")):
                write_image(root / stain / part / f"{i:05d}_{part}_2+.png", tissue(*size, seed=i + 5 * k))
    return root


def mist(root, slides=("11M2100001", "12M2100002"), size=(96, 96)):
    """A dataset in MIST's layout: trainA, trainB, valA, valB; each slide has a patch in both parts."""
    for k, (part, side) in enumerate((p, s) for p in ("train", "val") for s in "AB"):
        for i, slide in enumerate(slides):
            name = f"{slide}_{i}_{k // 2}.jpg"
            write_image(root / "HER2" / "TrainValAB" / f"{part}{side}" / name, tissue(*size, seed=i + 5 * k))
    return root / "HER2"


def plain(root, pairs=10, size=(96, 96)):
    """Folders HE and IHC, of which nothing says the split or the marker."""
    for i in range(pairs):
        for k, stain in enumerate(("HE", "IHC")):
            write_image(root / stain / f"{i}.png", tissue(*size, seed=i + 5 * k))
    return root


def budget_file(path, **changes):
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return str(path)


def options(table, root, out, budget, mpp=("set=0.5",), **changes):
    return Options(table, (f"set={root}",), out, budget, mpp=mpp, device="cpu", precision="fp32", **changes)


def make(asked, plan=False):
    """What `reproduce` made, and what it said."""
    said = []
    return reproduce(asked, plan, said.append), said
