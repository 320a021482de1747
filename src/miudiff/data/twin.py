"""The twin set: exactly aligned H&E/IHC pairs of real tissue, made from IHC images alone.

No laboratory stains one section twice, so no real pair is aligned to the pixel. A twin is: an IHC image is separated into
hematoxylin and DAB (Ruifrok), and the same tissue is rendered as H&E by Beer-Lambert: nuclei take hematoxylin, everything that
is tissue takes eosin. What DAB said about the antigen is lost on the way, as it is in a real H&E: a nucleus' density is
saturated, so that a positive nucleus is not darker than a negative one, and cytoplasmic DAB becomes ordinary eosin.

The built-in set comes from scikit-image's `immunohistochemistry` (colon, FHL2 in DAB, hematoxylin; 512 x 512): its left half is
for training, its right half is held out. Its scale is not stated by its source; 0.5 um/px is an estimate from the size of
nuclei and marked so.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import ndimage

from miudiff.errors import DataError
from miudiff.images import Pixels, list_images, read_image, write_image
from miudiff.stains import Floats, background_light, combine_stains, rgb_from_hdab, rgb_from_hed, separate_stains

Where = Literal["nuclear", "cytoplasmic"]
Region = Literal["train", "test"]

SKIMAGE_MPP = 0.5
MARKER = "FHL2"


def render_twin(ihc: Pixels, where: Where, light: Floats | None = None) -> Pixels:
    """The H&E twin of an IHC image, both uint8 [H, W, 3].

    Args:
        where: Where the antigen is: "nuclear" (Ki-67) makes DAB-positive nuclei ordinary nuclei, "cytoplasmic" (HER2, FHL2)
            makes DAB cytoplasm.
        light: The image's white [3]; None takes it from the image (`background_light`).
    """
    amounts = separate_stains(ihc, rgb_from_hdab, background_light(ihc) if light is None else light)
    hematoxylin, dab = (np.clip(amounts[..., i], 0, None) for i in (0, 1))
    chromatin = hematoxylin + dab if where == "nuclear" else hematoxylin
    # Saturation, 1 - exp(-c): positive and negative nuclei end equally dark; the texture within stays.
    nuclei = 0.75 * (1 - np.exp(-2.2 * np.clip(chromatin - 0.08, 0, None)))
    # Eosin follows all matter, smoothed: cytoplasm and stroma are pink, nuclei stay blue.
    matter = np.clip(hematoxylin, 0, 0.5) + np.clip(dab, 0, 0.5)
    matter = 0.5 * matter + 0.5 * ndimage.gaussian_filter(matter, 2.0)
    tissue = 1 - np.exp(-6 * ndimage.gaussian_filter(np.clip(matter - 0.02, 0, None), 1.0))
    eosin = tissue * (0.14 + 0.42 * (1 - np.exp(-2.5 * matter))) * (1 - 0.6 * nuclei / 0.75)
    return combine_stains(np.stack([nuclei, eosin], axis=-1), rgb_from_hed, light=np.array([246.0, 243.0, 245.0]))


def skimage_ihc(region: Region) -> Pixels:
    """A half of scikit-image's IHC image, uint8 [512, 256, 3]: left is "train", right is "test" and never trained on.

    Raises:
        DataError: `region` is neither.
    """
    from skimage.data import immunohistochemistry

    if region not in ("train", "test"):
        raise DataError(f"twin:{region}: no such region, expected twin:train or twin:test")
    image = np.asarray(immunohistochemistry())
    return image[:, :256] if region == "train" else image[:, 256:]


def twin_region(region: Region) -> tuple[Pixels, Pixels]:
    """(H&E, IHC) of a half of the built-in set, uint8 [512, 256, 3] each."""
    from skimage.data import immunohistochemistry

    ihc = skimage_ihc(region)
    return render_twin(ihc, "cytoplasmic", background_light(np.asarray(immunohistochemistry()))), ihc


def twin_region_file(region: str, which: Literal["HE", "IHC"]) -> Path:
    """The region as a file, for code that takes files; made once in the user's cache folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "miudiff" / "twin" / region / which
    path = cache / "skimage_immunohistochemistry.png"
    he, ihc = twin_region(region)  # type: ignore[arg-type]
    write_image(path, he if which == "HE" else ihc)
    return path


def make_twins(source: Path, out: Path, where: Where) -> list[Path]:
    """Twins of every IHC image of a folder (or of one file), as `out`/HE/name and `out`/IHC/name.

    Raises:
        DataError: Nothing to read, or an image that cannot be read.
    """
    written: list[Path] = []
    for path in [source] if source.is_file() else list_images(source):
        ihc = read_image(path)
        name = f"{path.name.split('.')[0]}.png"
        write_image(out / "HE" / name, render_twin(ihc, where))
        write_image(out / "IHC" / name, ihc)
        written.append(out / "HE" / name)
    return written
