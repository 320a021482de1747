"""How often the guards are wrong: warnings on H&E, and wrong images without one; then blur and wrong scales, made of the H&E.

    python benchmarks/guards.py --right HE FOLDER=0.5 FOLDER=0.25 ... --wrong IHC FOLDER ...

A word is an image, a slide, or a folder of images, =MPP its micrometres per pixel; files without a scale are judged by colour alone.
Files whose name holds "mask" are left out. H&E with a finding is listed, and so is what is wrong and was not named.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from miudiff.errors import MiudiffError
from miudiff.guards import Finding, inspect
from miudiff.guards.findings import SHARP
from miudiff.guards.texture import nuclear_size, part, sharpness
from miudiff.images import SUFFIXES, Pixels, read_image, read_scale, resize
from miudiff.slides.choice import tissue_samples
from miudiff.slides.overview import tissue_mask
from miudiff.slides.reader import is_slide, open_slide

TIMES = (0.25, 0.5, 1.0, 2.0, 4.0)
BLURS = (0.5, 1.0, 2.0, 3.0)  # micrometres, sigma
ENLARGED = (2, 4)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--right", nargs="+", default=[])
parser.add_argument("--wrong", nargs="+", default=[])
arguments = parser.parse_args()


def files(word: str) -> list[tuple[Path, float | None]]:
    """The images that a word of the command line names, with their scale."""
    name, _, mpp = word.partition("=")
    path = Path(name)
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return [
        (one, float(mpp) if mpp else None)
        for one in found
        if (one.suffix.lower() in SUFFIXES or is_slide(one)) and "mask" not in one.name
    ]


def pixels_of(path: Path, mpp: float | None) -> tuple[list[Pixels], float | None] | None:
    """The image, an opaque picture made of a transparent one, or places of a slide, and the scale; None where reading refuses the file."""
    try:
        if is_slide(path):
            with open_slide(path) as slide:
                return tissue_samples(slide, mpp or slide.mpp, tissue_mask(slide, mpp or slide.mpp or 1.0))
        return [read_image(path)], mpp or read_scale(path)
    except MiudiffError as error:
        try:
            with Image.open(path) as image:
                if image.mode == "RGBA":
                    return [np.asarray(image.convert("RGB"))], mpp
        except OSError:
            pass
        print(f"  refused by reading: {error}")
        return None


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    return np.rint(ndimage.gaussian_filter(pixels.astype(np.float32), (sigma, sigma, 0))).astype(np.uint8)


def enlarged(pixels: Pixels, times: int) -> Pixels:
    height, width = pixels.shape[:2]
    return resize(resize(pixels, height // times, width // times), height, width)


def named(findings: tuple[Finding, ...]) -> str:
    return ", ".join(one.kind for one in findings) or "nothing"


def judge(words: list[str], right: bool) -> list[tuple[Pixels, float]]:
    """Print a row for each word; returns the images of known scale."""
    kept, total, odd, seconds = [], 0, 0, 0.0
    for word in words:
        counts: Counter[str] = Counter()
        for path, mpp in files(word):
            read = pixels_of(path, mpp)
            if read is None:
                counts["refused"] += 1
                continue
            samples, scale = read
            began = time.process_time()
            findings = inspect(samples, scale)
            seconds += time.process_time() - began
            counts[named(findings)] += 1
            if bool(findings) == right:
                odd += 1
                print(f"  {path}: {'; '.join(one.text for one in findings) or 'nothing found'}")
            if right and scale is not None and len(samples) == 1:
                kept.append((samples[0], scale))
        total += sum(counts.values())
        print(f"{word}: {sum(counts.values())} images: {dict(counts)}")
    told = "false alarms" if right else "missed"
    print(
        f"== {told}: {odd} of {total}; {1000 * seconds / max(total, 1):.0f} ms of processor time an image\n"
    )
    return kept


def texture(pixels: Pixels, mpp: float) -> tuple[float, float]:
    parts, scale = part([pixels], mpp)
    return sharpness(parts, scale), nuclear_size(parts, scale)


def kinds(pixels: Pixels, mpp: float) -> set[str]:
    return {one.kind for one in inspect([pixels], mpp)}


known = judge(arguments.right, right=True)
judge(arguments.wrong, right=False)
if known:
    print(f"{len(known)} H&E images of known scale")
    for times in TIMES:
        sizes = [texture(pixels, mpp * times)[1] for pixels, mpp in known]
        wrong = [kinds(pixels, mpp * times) for pixels, mpp in known]
        spread = " ".join(f"{value:.2f}" for value in np.nanpercentile(sizes, (0, 1, 50, 99, 100)))
        print(
            f"scale stated {times:g} times too large: named as scale {sum('scale' in one for one in wrong)}, as anything {sum(map(bool, wrong))}; nuclear size, min 1 50 99 max: {spread}"
        )
    changes = [(f"blurred by {s:g} um", lambda p, m, s=s: blurred(p, s / m)) for s in BLURS]
    changes += [(f"enlarged {n} times", lambda p, m, n=n: enlarged(p, n)) for n in ENLARGED]
    for what, change in [("as it is", lambda p, m: p), *changes]:
        sharp = np.array([texture(change(pixels, mpp), mpp)[0] for pixels, mpp in known])
        spread = " ".join(f"{value:.2f}" for value in np.nanpercentile(sharp, (0, 50, 100)))
        print(f"{what}: named as focus {int((sharp < SHARP).sum())}; sharpness, min 50 max: {spread}")
