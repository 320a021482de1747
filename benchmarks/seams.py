"""Can tiles be seen? The gradient across their borders over the gradient elsewhere, for three ways of joining them.

    python benchmarks/seams.py he.png --mpp 0.5 --side 544 [--set reverse.steps=20] [--out seams]

cut    tiles beside each other, each with noise of its own
blend  overlapping tiles with one field of noise, blended (`translate --mode blend`)
fuse   overlapping tiles that agree after every step (`translate --mode fuse`)

The first part measures seams on a field of the picture. The second repeats one small piece of it, mirrored, over a field of the same
size: the same tissue again and again, in different tiles. How much the mean DAB of its copies spreads is what tiles and noise add.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from PIL import Image

from miudiff.evaluation.stain import dab_density
from miudiff.images import read_image, resize, write_image
from miudiff.noise import NoiseKey
from miudiff.slides.seams import seams
from miudiff.stainer import VirtualStainer
from miudiff.tiling import places

PIECE = 96  # pixels of the piece that uniform tissue is made of


def cut(stainer: VirtualStainer, image: np.ndarray, tile: int) -> np.ndarray:
    result = np.empty_like(image)
    for top in range(0, image.shape[0], tile):
        for left in range(0, image.shape[1], tile):
            piece = image[top : top + tile, left : left + tile]
            key = NoiseKey(0, f"{top} {left}")
            result[top : top + tile, left : left + tile] = stainer.stain([piece], [key])[0]
    return result


def uniform(image: np.ndarray, side: int) -> np.ndarray:
    piece = image[:PIECE, :PIECE]
    square = np.concatenate([np.concatenate([piece, piece[:, ::-1]], 1)] * 2)
    square[PIECE:] = square[:PIECE][::-1]
    count = -(-side // (2 * PIECE))
    return np.tile(square, (count, count, 1))[:side, :side]


def spread(result: np.ndarray) -> tuple[float, float]:
    """(mean, standard deviation) of the mean DAB density of squares that show the same tissue in different tiles."""
    density, side = dab_density(result), 2 * PIECE
    means = [
        density[top : top + side, left : left + side].mean()
        for top in range(0, density.shape[0] - side + 1, side)
        for left in range(0, density.shape[1] - side + 1, side)
    ]
    return float(np.mean(means)), float(np.std(means, ddof=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path)
    parser.add_argument("--mpp", type=float, required=True)
    parser.add_argument("--side", type=int, default=544, help="of the field, in pixels at the model's scale")
    parser.add_argument("--tile", type=int, help="instead of the model's; smaller shows more borders")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--out", type=Path, default=Path("seams"))
    parser.add_argument("--skip-uniform", action="store_true")
    arguments = parser.parse_args()
    pixels = read_image(arguments.image)
    for mode in ("cut", "blend", "fuse"):
        changes = [*arguments.changes, *(["refinement.loss=none"] if mode == "fuse" else [])]
        stainer = VirtualStainer.load(
            changes=changes, glass="stain", mode="fuse" if mode == "fuse" else "blend"
        )
        if arguments.tile:
            card = stainer.model.card.model_copy(update={"tile": arguments.tile})
            object.__setattr__(stainer.model, "card", card)
        rows, columns = stainer.working_size(pixels.shape[0], pixels.shape[1], arguments.mpp)
        side = min(arguments.side, rows, columns) // 32 * 32
        image = resize(pixels, rows, columns)[:side, :side]
        tile = stainer.tile
        # the borders of network tiles, and in mode fuse those of blocks as well, which here hold the whole field
        lefts = (
            list(range(0, side, tile))
            if mode == "cut"
            else places(side, tile, stainer.overlap if mode == "blend" else stainer._fused)
        )
        for name, field in (("tissue", image), ("uniform", uniform(image, side))):
            if name == "uniform" and arguments.skip_uniform:
                continue
            began = time.monotonic()
            result = (
                cut(stainer, field, tile) if mode == "cut" else stainer.translate(field, None, 0, "field")
            )
            write_image(arguments.out / f"{name}-{mode}.png", result)
            found = seams(result, lefts, lefts, (tile, tile))
            source = seams(field, lefts, lefts, (tile, tile))
            mean, deviation = spread(result)
            told = f"; DAB of the same tissue {mean:.4f}, SD {deviation:.4f}" if name == "uniform" else ""
            print(
                f"{name} {mode}: border {found.border:.3f} (of the H&E itself {source.border:.3f}), blend {found.blend:.3f}; "
                f"{len(lefts)} x {len(lefts)} tiles of {tile}, {time.monotonic() - began:.0f} s{told}",
                flush=True,
            )
    Image.fromarray(image).save(arguments.out / "tissue-he.png")


if __name__ == "__main__":
    main()
