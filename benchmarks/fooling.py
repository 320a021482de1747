"""What fools which measure: easy wrong pictures of scikit-image's IHC picture, scored as if a method had made them.

    python benchmarks/fooling.py

Each row is one deed against the picture itself; its H&E is the twin that `miudiff.data.twin` renders of it, which gives part of the
answer away. The same deeds serve any other measure: look which rows it cannot tell from a good one.
"""

import argparse

import numpy as np
from scipy import ndimage
from skimage.data import immunohistochemistry

from miudiff.cells import dab_above_glass
from miudiff.data.twin import SKIMAGE_MPP, render_twin
from miudiff.evaluation.panel import FOREMOST
from miudiff.evaluation.scores import score_images
from miudiff.images import Pixels
from miudiff.pages.parts import markdown_table

SHOWN = ("psnr_real", "hist_rgb256", *FOREMOST, "dab_r_2um_real", "dab_r_32um_real", "gradient_r_2um_source")


def blurred(image: Pixels, micrometres: float, mpp: float) -> Pixels:
    return np.asarray(ndimage.gaussian_filter(image, (micrometres / mpp, micrometres / mpp, 0)))


def deeds(real: Pixels, source: Pixels, mpp: float) -> dict[str, Pixels]:
    """What a careless method might hand in, by name."""
    random = np.random.default_rng(0)
    noisy = np.clip(real + random.normal(0, 40, real.shape), 0, 255).astype(np.uint8)
    brown = real[dab_above_glass(real) > 0.4].mean(0).astype(np.uint8)
    return {
        "the real IHC itself": real,
        "the real IHC, noise of 40 grey levels": noisy,
        **{f"the real IHC, blurred by {s} um": blurred(real, s, mpp) for s in (1, 2, 4)},
        "the real IHC, shifted by 4 um": np.roll(real, round(4 / mpp), 1),
        "the real IHC, upside down": real[::-1].copy(),
        "one brown everywhere": np.broadcast_to(brown, real.shape).copy(),
        "no brown: grey of the same luma": np.repeat((real @ (0.299, 0.587, 0.114))[..., None], 3, -1).astype(
            np.uint8
        ),
        "red and blue swapped": real[..., ::-1].copy(),
        "the H&E itself": source,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    real = np.asarray(immunohistochemistry())
    source = render_twin(real, "cytoplasmic")
    rows: list[list[object]] = []
    for name, made in deeds(real, source, SKIMAGE_MPP).items():
        found = score_images([made], [real], [source], mpp=SKIMAGE_MPP).mean
        rows.append([name, *(round(found[key], 3) for key in SHOWN)])
        dark = [round(found[f"darkness_{key}"], 3) if f"darkness_{key}" in found else "" for key in SHOWN]
    print(markdown_table(["handed in", *SHOWN], [*rows, ["darkness of the H&E", *dark]]))


if __name__ == "__main__":
    main()
