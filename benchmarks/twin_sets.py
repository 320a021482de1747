"""Sets of twins that systems can be trained and compared on: the images that `ihc-small` was trained on, and those held out of it.

    python benchmarks/twin_sets.py ROOT OUT          # ROOT holds the folder ihc that src/miudiff/weights/ihc-small/README.md tells of

OUT/Ki67, OUT/ER-PR and OUT/CLDN18.2 are sets in CUT's layout (`trainA` H&E twins, `trainB` IHC, `testA`, `testB`) of tiles at 0.5 um per
pixel. A field's twin is rendered whole and then cut. `miudiff reproduce` takes them with `--mpp NAME=0.5`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from miudiff.data.twin import Where, render_twin
from miudiff.images import read_image, resize, write_image

SIDE, MPP = 192, 0.5  # pixels of a tile, the largest that an ER/PR image fills; um per pixel

# set -> where the antigen is; (files, um per pixel); names that are held out
SETS: dict[str, tuple[Where, tuple[tuple[str, float], ...], tuple[str, ...]]] = {
    "Ki67": (
        "nuclear",
        (
            ("os2_ki67_hamamatsu.ome.tif", 0.2271),
            ("os2_ki67_olympus.ome.tif", 0.3461),
            ("ar_ki67_p1_2?.jpg", 0.09),
            ("ar_ki67_p3_26.jpg", 0.09),
        ),
        ("ar_ki67_p3_26",),
    ),
    "ER-PR": (
        "nuclear",
        (("er_pr_endonuke/*.png", 0.29),),
        tuple(f"endonuke_tile_{n:03d}" for n in (4, 12, 20, 28, 36)),
    ),
    "CLDN18.2": (
        "cytoplasmic",
        (("cldn18/*.png", 0.46),),
        ("cldn18_strong_1", "cldn18_weak_5"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    for name, (where, sources, held_out) in SETS.items():
        counts = {"train": 0, "test": 0}
        for pattern, mpp in sources:
            for path in sorted((arguments.root / "ihc").glob(pattern)):
                ihc = read_image(path)
                ihc = resize(ihc, *(round(side * mpp / MPP) for side in ihc.shape[:2]))
                he = render_twin(ihc, where, MPP)
                part = "test" if path.stem in held_out else "train"
                for top in range(0, ihc.shape[0] - SIDE + 1, SIDE):
                    for left in range(0, ihc.shape[1] - SIDE + 1, SIDE):
                        for stain, image in (("A", he), ("B", ihc)):
                            tile = image[top : top + SIDE, left : left + SIDE]
                            file = f"{path.name.split('.')[0]}_{top}_{left}.png"
                            write_image(arguments.out / name / f"{part}{stain}" / file, tile)
                        counts[part] += 1
        print(f"{name}: {counts['train']} tiles to train on, {counts['test']} to test on")


if __name__ == "__main__":
    main()
