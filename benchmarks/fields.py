"""H&E fields and what a model makes of them, side by side, with how much of their structure is kept.

    python benchmarks/fields.py FIELD... --mpp 0.25 --marker Ki67 --sheet sheet.jpg

Of each field the middle square at the model's scale is translated, for each marker that is given. Nuclei Dice: cells of the result against nuclei of the H&E; gradient
r at 2 um against the H&E; positive: the share of the result's nuclei, in per cent; DAB: optical density per pixel. See docs/metrics.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from miudiff.cells import NUCLEUS
from miudiff.evaluation.panel import measure
from miudiff.images import Pixels, read_image, read_scale, resize, write_image
from miudiff.naming import SHIPPED
from miudiff.stainer import VirtualStainer

MEASURES = {
    "nuclei Dice": "nuclei_dice_source",
    "gradient r": "gradient_r_2um_source",
    "positive": "ki67_index_generated",
    "DAB": "iod_generated",
}


def square(path: Path, mpp: float | None, target: float, side: int) -> Pixels:
    """The middle of an image at `target` micrometres per pixel, at most `side` pixels a side."""
    image = read_image(path)
    factor = (mpp or read_scale(path) or target) / target
    image = resize(image, *(round(length * factor) for length in image.shape[:2]))
    top, left = (max(0, (length - side) // 2) for length in image.shape[:2])
    return image[top : top + side, left : left + side]


def sheet(groups: list[list[Pixels]], side: int, columns: int) -> Pixels:
    """Groups of pictures beside each other, `columns` of them in a row, white where a field is small."""
    width = len(groups[0]) * side + 16
    rows = -(-len(groups) // columns)
    canvas = np.full((rows * (side + 8), columns * width, 3), 255, np.uint8)
    for number, group in enumerate(groups):
        top, left = number // columns * (side + 8), number % columns * width
        for i, image in enumerate(group):
            high, wide = image.shape[:2]
            canvas[top : top + high, left + i * side : left + i * side + wide] = image
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("fields", type=Path, nargs="+")
    parser.add_argument("--mpp", type=float, help="of fields that state no scale; else the model's")
    parser.add_argument("--side", type=int, default=384, help="of the square, in pixels of the model's scale")
    parser.add_argument("--model", default=SHIPPED)
    parser.add_argument("--marker", action="append", help="may be given again")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--sheet", type=Path, help="an image of all pairs")
    parser.add_argument("--columns", type=int, default=3, help="fields in a row of the sheet")
    arguments = parser.parse_args()
    stainers = [
        VirtualStainer.load(
            arguments.model, preset=arguments.preset, changes=arguments.changes, marker=marker
        )
        for marker in arguments.marker or [None]
    ]
    mpp = stainers[0].model.card.mpp or 1.0
    groups = [[square(path, arguments.mpp, mpp, arguments.side)] for path in arguments.fields]
    for stainer in stainers:
        print(f"\n{stainer.marker}\n\n| field | seconds | " + " | ".join(MEASURES) + " |")
        print("| --- " * (2 + len(MEASURES)) + "|")
        rows = []
        for path, group in zip(arguments.fields, groups, strict=True):
            he = group[0]
            began = time.monotonic()
            made = stainer.translate(he, None, 0, path.stem)
            seconds = time.monotonic() - began
            found = measure(made, made, he, nucleus=NUCLEUS / mpp, mpp=mpp)
            found["iod_generated"] /= made[..., 0].size
            found["ki67_index_generated"] *= 100
            rows.append([seconds, *(found.get(key, np.nan) for key in MEASURES.values())])
            group.append(made)
            print(line(path.stem, rows[-1]), flush=True)
        print(line(f"**mean of {len(rows)}**", np.nanmean(rows, axis=0).tolist()))
    if arguments.sheet:
        write_image(arguments.sheet, sheet(groups, arguments.side, arguments.columns))


def line(name: str, values: list[float]) -> str:
    return f"| {name} | " + " | ".join(f"{value:.3g}" for value in values) + " |"


if __name__ == "__main__":
    main()
