"""What fewer steps, another solver or another start cost: measures of the twin set's held-out region, or of your own pairs.

    python benchmarks/steps.py --steps 60 20 10 6 --solver ancestral dpmpp_2m_sde --spacing index log_snr --start 300
    python benchmarks/steps.py --pairs ROOT --mpp 0.5 --marker Ki67       # ROOT/HE and ROOT/IHC, or a set of benchmarks/twin_sets.py

Each row: seconds an image, DAB in per cent off the real one, and measures of `miudiff evaluate`, of tissue where docs/metrics.md says
so. A picture that only blurs gains PSNR and DAB correlation, and loses in sharpness. After each mean over the pairs stands its standard
deviation over seeds. `--set reverse.palette=false` begins from luma, `--set energy.guidance=none` leaves the energy out.
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from pathlib import Path

import numpy as np

from miudiff.cells import NUCLEUS
from miudiff.data.twin import at_scale, twin_region
from miudiff.evaluation.panel import measure
from miudiff.images import Pixels, list_images, read_image, resize
from miudiff.naming import SHIPPED
from miudiff.stainer import VirtualStainer

# Column: key of `miudiff evaluate`.
MEASURES = {
    "PSNR": "psnr_real",
    "VIF he": "vif_source",
    "Hist": "hist_rgb256",
    "DAB Dice": "dab_dice_real",
    "DAB r": "dab_r_real",
    "DAB r2": "dab_r_2um_real",
    "r8": "dab_r_8um_real",
    "r32": "dab_r_32um_real",
    "share": "ki67_index_generated",
    "true share": "ki67_index_real",
    "nuclei Dice": "nuclei_dice_source",
    "grad r": "gradient_r_2um_source",
    "sharp": "sharpness_real",
}
COLUMNS = ("s", "IOD %", *MEASURES)


def row(
    stainer: VirtualStainer, pairs: list[tuple[Pixels, Pixels]], mpp: float, seeds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over seeds of the means over pairs, one value for each of COLUMNS."""
    by_seed = []
    for seed in range(seeds):
        rows = []
        for number, (he, ihc) in enumerate(pairs):
            began = time.monotonic()
            made = stainer.translate(he, mpp, seed, f"pair{number}")
            seconds = time.monotonic() - began
            found = measure(made, ihc, he, nucleus=NUCLEUS / mpp, mpp=mpp)
            stained = 100 * (found["iod_generated"] / found["iod_real"] - 1)
            rows.append([seconds, stained, *(found.get(key, np.nan) for key in MEASURES.values())])
        by_seed.append(np.nanmean(rows, axis=0))
    return np.mean(by_seed, axis=0), np.std(by_seed, axis=0, ddof=min(1, seeds - 1))


def pairs_of(root: Path, side: int) -> list[tuple[Pixels, Pixels]]:
    """The middle squares of H&E and IHC images of one name, in HE and IHC or, as in CUT's layout, in testA and testB."""
    sources, targets = ("testA", "testB") if (root / "testA").is_dir() else ("HE", "IHC")
    found = []
    for path in list_images(root / sources):
        he, ihc = read_image(path), read_image(root / targets / path.name)
        top, left = (max(0, (length - side) // 2) for length in he.shape[:2])
        square = np.s_[top : top + side, left : left + side]
        found.append((he[square], resize(ihc, *he.shape[:2])[square]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[60, 20, 10, 6, 4])
    parser.add_argument("--solver", nargs="+", default=["ancestral", "dpmpp_2m_sde", "dpmpp_2m"])
    parser.add_argument("--spacing", nargs="+", default=["index", "log_snr"])
    parser.add_argument("--noise", type=float, nargs="+", default=[1.0], help="tau of dpmpp_2m_sde")
    parser.add_argument("--start", type=int, nargs="+", default=[300])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=Path, help="ROOT with HE and IHC; by default the twin set")
    parser.add_argument(
        "--mpp", type=float, default=0.5, help="of the pairs, or that the twin set is taken at"
    )
    parser.add_argument("--side", type=int, default=1024, help="of the square taken of each pair, in pixels")
    parser.add_argument("--model", default=SHIPPED)
    parser.add_argument("--marker", default="FHL2")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    arguments = parser.parse_args()
    if arguments.pairs:
        pairs = pairs_of(arguments.pairs, arguments.side)
    else:
        he, ihc = (at_scale(image, arguments.mpp) for image in twin_region("test"))
        middle = he.shape[0] // 2
        pairs = [(he[:middle], ihc[:middle]), (he[middle:], ihc[middle:])]
    print("| S | steps | solver | tau | spacing | " + " | ".join(COLUMNS) + " |")
    print("| --- " * (5 + len(COLUMNS)) + "|")
    for start, steps, solver, spacing in product(
        arguments.start, arguments.steps, arguments.solver, arguments.spacing
    ):
        for noise in arguments.noise if solver == "dpmpp_2m_sde" else [1.0]:
            settings = {"start": start, "steps": steps, "solver": solver, "spacing": spacing, "noise": noise}
            changes = [f"reverse.{key}={value}" for key, value in settings.items()]
            stainer = VirtualStainer.load(
                arguments.model,
                preset=arguments.preset,
                changes=[*changes, *arguments.changes],
                marker=arguments.marker,
            )
            means, spreads = row(stainer, pairs, arguments.mpp, arguments.seeds)
            cells = " | ".join(
                f"{mean:.3g} ± {spread:.1g}" for mean, spread in zip(means, spreads, strict=True)
            )
            print(f"| {start} | {steps} | {solver} | {noise:g} | {spacing} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
