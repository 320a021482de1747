"""What of an H&E goes with an antigen of cytoplasm or membranes, on real pairs: the reason for how a palette places it.

    python benchmarks/tissue_type.py BCI MIST --mpp 0.46        # folders of HE and IHC, of the same file names

No model is asked. For each pair, at 0.5 um per pixel: r of DAB with what could be read off the H&E, in tissue, over windows of 8, 32 and
64 um (of which tissue is at least half); printed is the mean over pairs. "palette" is the DAB of what the reverse process would begin from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from miudiff.cells import dab_above_glass, surroundings, tissue_mask
from miudiff.errors import DataError
from miudiff.evaluation.truth import darkness
from miudiff.images import Pixels, read_image, resize, to_tensor, to_uint8
from miudiff.methods.model import load_model
from miudiff.methods.palette import LITTLE, MOST, Palette
from miudiff.naming import SHIPPED
from miudiff.normalisation import Normaliser, fit_he_stains
from miudiff.stains import Floats

MPP, WINDOWS = 0.5, (16, 64, 128)  # um per pixel, pixels


def readings(he: Pixels, palette: Palette) -> dict[str, Floats]:
    """What could be told from an H&E, by name, [H, W] each."""
    dyes = fit_he_stains([he])
    amounts, tissue = dyes.amounts(he), tissue_mask(he)
    least, most = palette.hematoxylin
    h = ((amounts[..., 0] - least) / (most - least)).clip(0, MOST)
    e = (amounts[..., 1] / palette.eosin).clip(0, MOST)
    begun = to_uint8(palette(to_tensor(Normaliser(dyes, palette.dyes).he(he))))[0]
    return {
        "darkness": darkness(he),
        "eosin beside nuclei": e * (1 - h.clip(0, 1)),
        "crowding of nuclei": surroundings(h.clip(0, 1), tissue, palette.reach),
        "hematoxylin beside nuclei": surroundings(h, tissue & (h < 0.5), palette.reach),
        "basophilia, min(h, LITTLE)": surroundings(h.clip(0, LITTLE), tissue, palette.reach),
        "palette": dab_above_glass(begun),
    }


def windows(field: Floats, weight: Floats, side: int) -> Floats:
    """Means over square windows of what counts, of those of which at least half does."""
    rows, columns = (extent // side for extent in field.shape)

    def sums(values: Floats) -> Floats:
        return values[: rows * side, : columns * side].reshape(rows, side, columns, side).sum(axis=(1, 3))

    counted = sums(weight)
    kept = counted >= side * side / 2
    return np.asarray(sums(field * weight)[kept] / counted[kept])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("roots", type=Path, nargs="+")
    parser.add_argument("--mpp", type=float, required=True)
    parser.add_argument("--model", default=SHIPPED)
    parser.add_argument("--marker", default="CLDN18.2")
    arguments = parser.parse_args()
    palette = load_model(arguments.model).card.palette[arguments.marker]
    for root in arguments.roots:
        found: dict[str, list[list[float]]] = {}
        for path in sorted((root / "HE").iterdir()):
            partners = [other for other in (root / "IHC").iterdir() if other.stem == path.stem]
            if not partners:
                continue
            images = [read_image(each) for each in (path, partners[0])]
            he, ihc = (
                resize(image, *(round(side * arguments.mpp / MPP) for side in image.shape[:2]))
                for image in images
            )
            try:
                told = readings(he, palette)
            except DataError as error:
                print(f"{path.name} is left out: {error}")
                continue
            tissue, dab = tissue_mask(he).astype(float), dab_above_glass(ihc)
            for name, field in told.items():
                pairs = [(windows(field, tissue, side), windows(dab, tissue, side)) for side in WINDOWS]
                found.setdefault(name, []).append([float(np.corrcoef(*pair)[0, 1]) for pair in pairs])
        print(f"{root.name}: {len(found['darkness'])} pairs")
        for name, values in found.items():
            print(f"{name:28}" + "".join(f"{r:7.2f}" for r in np.nanmean(values, axis=0)))


if __name__ == "__main__":
    main()
