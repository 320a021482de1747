"""How far a result moves with how its H&E was stained: share of positive nuclei and IOD, normalised and not.

    python benchmarks/robustness.py FIELD... [--mpp 0.25] [--marker Ki67]

Each field is shrunk to the model's scale and stained anew: its hematoxylin, its eosin or both times a factor, or the colours of both dyes
turned about grey. Dyes are told apart by the reference colours, not by what normalisation fits. Rows are means over the fields;
the range is the largest mean less the smallest, and the last line has how much of it normalisation leaves.
"""

import argparse
from pathlib import Path

import numpy as np

from miudiff.cells import NUCLEUS, cell_labels, positivity
from miudiff.evaluation.stain import integrated_optical_density
from miudiff.images import Pixels, read_image, read_scale, resize
from miudiff.stainer import VirtualStainer
from miudiff.stains import Floats, background_light, combine_stains, rgb_from_he, separate_stains

FACTORS = (0.6, 0.8, 1.25, 1.6)
TURNS = (-20, -10, 10, 20)  # degrees

Variant = tuple[float, float, float]  # hematoxylin, eosin, degrees


def restained(field: Pixels, variant: Variant) -> Pixels:
    """A field with its two dyes times a factor each, and their colours turned; what no dye explains stays."""
    hematoxylin, eosin, degrees = variant
    light = background_light(field)
    amounts = separate_stains(field, rgb_from_he, light) * (hematoxylin, eosin, 1.0)
    return combine_stains(amounts, rgb_from_he @ about_grey(degrees), light)


def about_grey(degrees: float) -> Floats:
    """The rotation of optical densities about their grey axis, for rows [N, 3]."""
    x, y, z = np.full(3, 3**-0.5)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) - np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def measured(stainer: VirtualStainer, fields: list[Pixels], variant: Variant, mpp: float) -> Floats:
    """The share of positive nuclei in per cent and the mean DAB per pixel, means over the fields."""
    rows = []
    for number, field in enumerate(fields):
        made = stainer.translate(restained(field, variant), None, 0, f"field{number}")
        share = positivity(made, cell_labels(made, NUCLEUS / mpp)).positive
        rows.append((100 * share, integrated_optical_density(made) / made[..., 0].size))
    return np.mean(rows, axis=0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fields", type=Path, nargs="+")
    parser.add_argument("--mpp", type=float, help="of fields that state no scale")
    parser.add_argument("--marker")
    parser.add_argument("--preset", default="fast")
    arguments = parser.parse_args()
    stainers = [
        VirtualStainer.load(preset=arguments.preset, marker=arguments.marker, normalise=how)
        for how in ("off", "image")
    ]
    mpp = stainers[0].model.card.mpp or 1.0
    images = [(read_image(path), read_scale(path) or arguments.mpp or mpp) for path in arguments.fields]
    fields = [resize(he, *(round(side * scale / mpp) for side in he.shape[:2])) for he, scale in images]
    variants: dict[str, list[tuple[str, Variant]]] = {
        "hematoxylin": [(f"× {f:g}", (f, 1.0, 0.0)) for f in FACTORS],
        "eosin": [(f"× {f:g}", (1.0, f, 0.0)) for f in FACTORS],
        "both": [(f"× {f:g}", (f, f, 0.0)) for f in FACTORS],
        "hue": [(f"{turn:+d}°", (1.0, 1.0, float(turn))) for turn in TURNS],
    }
    unchanged = np.stack([measured(one, fields, (1.0, 1.0, 0.0), mpp) for one in stainers])
    print("| H&E | positive, % | normalised | DAB per pixel | normalised |\n| --- | --- | --- | --- | --- |")
    print(line("as it is", unchanged), flush=True)
    for kind, rows in variants.items():
        found = [unchanged]
        for name, variant in rows:
            found.append(np.stack([measured(one, fields, variant, mpp) for one in stainers]))
            print(line(f"{kind} {name}", found[-1]), flush=True)
        before, after = np.ptp(np.stack(found), axis=0)
        print(line(f"**range over {kind}**", np.stack([before, after])))
        left = after / before
        print(f"| left of it | | {left[0]:.2f} | | {left[1]:.2f} |", flush=True)


def line(name: str, values: Floats) -> str:
    """A row of [off or normalised, measure]."""
    (share, dab), (share_after, dab_after) = values
    return f"| {name} | {share:.1f} | {share_after:.1f} | {dab:.4f} | {dab_after:.4f} |"


if __name__ == "__main__":
    main()
