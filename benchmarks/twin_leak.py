"""How much a twin's H&E gives away of DAB: correlations of its hematoxylin, luma and red with the DAB of its IHC.

    python benchmarks/twin_leak.py --antigen nuclear --mpp 0.29 ER_PR/*.png

Every image is brought to 0.5 um per pixel and its twin made. For each, over windows of 1, 2, 8 and 32 um: r within nuclei, beside
nuclei (1 um away from them), in all tissue, and in all tissue with what "a nucleus is here" says taken out (partial correlation);
the last row is r of the nuclei's mask itself with DAB, which no H&E of a nuclear antigen can hide. Printed is the mean over images.
A window counts if a quarter of it is of the kind; a scale counts for an image from 9 windows on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

from miudiff.cells import CELL, Mask, nuclei_of_he, stained_nuclei, tissue_mask
from miudiff.data.twin import SKIMAGE_MPP, render_twin, skimage_ihc
from miudiff.errors import DataError
from miudiff.images import LUMA, Pixels, read_image, resize
from miudiff.stains import Floats, background_light, dab_map, optical_density, rgb_from_he, separate_stains

WINDOWS = (1.0, 2.0, 8.0, 32.0)  # um
FEWEST = 9  # windows


def correlation(first: Floats, second: Floats, where: Floats, side: int) -> float:
    """Pearson r of means over square windows of `side` pixels of the pixels of `where`, windows weighted by how many."""
    rows, columns = (extent // side for extent in where.shape)

    def windows(field: Floats) -> Floats:
        return field[: rows * side, : columns * side].reshape(rows, side, columns, side).sum(axis=(1, 3))

    weight = windows(where)
    kept = weight >= side * side / 4
    if kept.sum() < FEWEST:
        return float("nan")
    weight = weight[kept]
    x, y = (windows(field * where)[kept] / weight for field in (first, second))
    x, y = (values - np.average(values, weights=weight) for values in (x, y))
    scale = np.sqrt((weight * x * x).sum() * (weight * y * y).sum())
    return float((weight * x * y).sum() / scale) if scale else float("nan")


def leak(ihc: Pixels, antigen: str) -> dict[tuple[str, str], list[float]]:
    """r at each window by (place, channel), for one image at 0.5 um per pixel."""
    he = render_twin(ihc, antigen)  # type: ignore[arg-type]
    dab = dab_map(ihc, background_light(ihc))
    tissue = tissue_mask(ihc)
    nuclei = (stained_nuclei(ihc, CELL) if antigen == "nuclear" else nuclei_of_he(he, CELL)) & tissue
    beside = tissue & ~ndimage.binary_dilation(nuclei, iterations=2)
    density = optical_density(he)
    channels = {
        "hematoxylin": separate_stains(he, rgb_from_he, background_light(he))[..., 0],
        "luma": density @ np.array(LUMA),
        "red": density[..., 0],
    }
    sides = [round(window / SKIMAGE_MPP) for window in WINDOWS]

    def r(first: Floats, second: Floats, where: Mask) -> list[float]:
        return [correlation(first, second, where.astype(float), side) for side in sides]

    mask = nuclei.astype(float)
    of_mask = r(mask, dab, tissue)
    table = {}
    for name, channel in channels.items():
        for place, where in (("nuclei", nuclei), ("beside nuclei", beside), ("tissue", tissue)):
            table[place, name] = r(channel, dab, where)
        with_mask = r(channel, mask, tissue)
        table["tissue, nuclei known", name] = [
            (a - b * c) / np.sqrt(max((1 - b * b) * (1 - c * c), 1e-9))
            for a, b, c in zip(table["tissue", name], of_mask, with_mask, strict=True)
        ]
    return table | {("tissue", "where nuclei are"): of_mask}


def main() -> None:
    """Print the table of the images given, or of the built-in set."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*", type=Path, help="IHC images; none: the built-in set")
    parser.add_argument("--antigen", choices=("nuclear", "cytoplasmic"), default="cytoplasmic")
    parser.add_argument("--mpp", type=float, default=SKIMAGE_MPP)
    given = parser.parse_args()
    images = [skimage_ihc("train"), skimage_ihc("test")] if not given.images else []
    for path in given.images:
        try:
            images.append(read_image(path))
        except DataError as error:
            print(error, file=sys.stderr)
    factor = given.mpp / SKIMAGE_MPP
    images = [resize(i, round(i.shape[0] * factor), round(i.shape[1] * factor)) for i in images]
    tables = [leak(image, given.antigen) for image in images]
    if not tables:
        sys.exit("no image could be read")
    print(f"{len(tables)} images; r with DAB over windows of {', '.join(f'{w:g}' for w in WINDOWS)} um")
    for key in tables[0]:
        values = np.array([table[key] for table in tables])
        counted = np.isfinite(values).any(axis=0)
        means = np.where(counted, np.nansum(values, 0) / np.maximum(np.isfinite(values).sum(0), 1), np.nan)
        print(f"{key[0]:22s}{key[1]:18s}", "  ".join(f"{value:+.2f}" for value in means))


if __name__ == "__main__":
    main()
