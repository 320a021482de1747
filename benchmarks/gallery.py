"""The pictures of docs/gallery: H&E, virtual IHC and, for twins, the real IHC of the fields that its fields.csv names.

    python benchmarks/gallery.py ROOT       # of the images that fields.csv names
    python benchmarks/gallery.py ROOT --model ihc-small --model ihc-small:turbo --model Ki67=CUT --suffix=-turbo

`kind` is where the antigen is, for an IHC image whose H&E twin is the source, or `he` for an H&E image, which has no real IHC.
`left` and `top` are of the crop, in pixels of the model's scale. Measures that `miudiff evaluate` explains go to the standard output.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from miudiff.cells import NUCLEUS
from miudiff.data.twin import render_twin, skimage_ihc
from miudiff.evaluation.panel import measure
from miudiff.images import Pixels, read_image, resize, write_image
from miudiff.naming import SHIPPED
from miudiff.stainer import VirtualStainer

FOLDER = Path(__file__).parent.parent / "docs" / "gallery"
SIDE, GAP = 384, 8  # pixels of each picture, and white between them
MEASURES = (
    "dab_dice_real",
    "dab_r_real",
    "iod_field_error",
    "nuclei_dice_source",
    "gradient_r_2um_source",
    "sharpness_real",
    "ki67_index_generated",
    "ki67_index_real",
)


def crop(row: dict[str, str], root: Path, mpp: float) -> Pixels:
    """The field, uint8 [H, W, 3], at `mpp` micrometres per pixel."""
    name = row["image"]
    image = skimage_ihc("test") if name == "twin:test" else read_image(root / name)
    factor = float(row["mpp"]) / mpp
    image = resize(image, *(round(side * factor) for side in image.shape[:2]))
    left, top = int(row["left"]), int(row["top"])
    return image[top : top + SIDE, left : left + SIDE]


def models_of(words: list[str], marker: str) -> list[VirtualStainer]:
    """The stainers that [MARKER=]MODEL[:PRESET] words name for a marker."""
    found = []
    for word in words:
        of, _, name = word.rpartition("=")
        model, _, preset = name.partition(":")
        if of in ("", marker):
            # A generator has no markers to choose from.
            found.append(VirtualStainer.load(model, preset=preset or None, marker=None if of else marker))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument(
        "--model",
        action="append",
        dest="models",
        help="[MARKER=]MODEL[:PRESET], by default the one that ships",
    )
    parser.add_argument("--only", nargs="*", help="names of fields.csv")
    parser.add_argument("--suffix", default="", help="of the pictures' names")
    arguments = parser.parse_args()
    chosen: dict[str, list[VirtualStainer]] = {}
    print("| field | model | " + " | ".join(MEASURES) + " |\n" + "| --- " * (2 + len(MEASURES)) + "|")
    with (FOLDER / "fields.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if not arguments.only or row["name"] in arguments.only]
    for row in rows:
        marker, kind = row["marker"], row["kind"]
        stainers = chosen.setdefault(marker, models_of(arguments.models or [SHIPPED], marker))
        mpp = stainers[0].model.card.mpp or 1.0
        field = crop(row, arguments.root, mpp)
        he = field if kind == "he" else render_twin(field, kind, mpp)  # type: ignore[arg-type]
        made = [stainer.translate(he, None, 0, row["name"]) for stainer in stainers]
        for stainer, ihc in zip(stainers, made, strict=True):
            found = measure(ihc, he if kind == "he" else field, he, nucleus=NUCLEUS / mpp, mpp=mpp)
            if kind == "he":
                found = {key: value for key, value in found.items() if "real" not in key and "iod" not in key}
            cells = (f"{found[key]:.2f}" if key in found else "" for key in MEASURES)
            print(f"| {row['name']} | {stainer.model.card.name} | " + " | ".join(cells) + " |", flush=True)
        shown = [he, *made] if kind == "he" else [he, *made, field]
        gap = np.full((field.shape[0], GAP, 3), 255, np.uint8)
        strip = [part for image in shown for part in (image, gap)][:-1]
        write_image(FOLDER / f"{row['name']}{arguments.suffix}.jpg", np.concatenate(strip, axis=1))


if __name__ == "__main__":
    main()
