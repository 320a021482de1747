"""The twin set: exactly aligned H&E/IHC pairs of real tissue, made from IHC images alone.

No laboratory stains one section twice, so no real pair is aligned to the pixel. A twin is: an IHC image is separated into
hematoxylin and DAB (Ruifrok), and the same tissue is rendered as H&E by Beer-Lambert: nuclei take hematoxylin, everything that
is tissue takes eosin. What DAB said about the antigen is lost on the way, as it is in a real H&E: a nucleus' density is
saturated, so that a positive nucleus, however dense, is at most an eighth darker than a typical negative one, and cytoplasmic DAB becomes ordinary eosin.

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
from skimage.filters import threshold_otsu

from miudiff.data.layouts import left_out, name_of
from miudiff.errors import DataError
from miudiff.images import Pixels, list_images, read_image, resize, write_image
from miudiff.stains import (
    Floats,
    background_light,
    combine_stains,
    rgb_from_hdab,
    rgb_from_he,
    separate_stains,
)

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
    chromatin = hematoxylin + dab if where == "nuclear" else np.clip(hematoxylin - 0.1 * dab, 0, None)
    # Saturation: beyond twice the half-point a nucleus is a nucleus, however much DAB it holds.
    # Never below 0.1, or the grain of a pale camera field would become nuclei.
    half = max(0.1, 0.5 * _typical_nucleus(hematoxylin, dab))
    nuclei = chromatin**3 / (chromatin**3 + half**3)
    # Eosin follows all matter: cytoplasm strong, stroma weak, glass none; nuclei displace it.
    matter = 0.5 * (hematoxylin + dab) + 0.5 * ndimage.gaussian_filter(hematoxylin + dab, 1.5)
    tissue = ndimage.gaussian_filter(1 - np.exp(-(((hematoxylin + dab) / 0.05) ** 2)), 2.0)
    cytoplasm = 1 - np.exp(-2.0 * matter)
    eosin = tissue * (0.12 + 0.33 * cytoplasm) * (1 - 0.7 * nuclei)
    return combine_stains(
        np.stack([0.85 * nuclei, eosin], axis=-1), rgb_from_he, light=np.array([246.0, 243.0, 245.0])
    )


def _typical_nucleus(hematoxylin: Floats, dab: Floats) -> float:
    """The median hematoxylin of nuclei without DAB: of what lies above Otsu's threshold there."""
    blue = hematoxylin[(dab < 0.5 * hematoxylin) & (hematoxylin > 0.02)]
    if blue.size < 64:
        return 0.3  # an empty field, or one all brown, has no nuclei to measure
    blue = np.clip(blue, 0, np.percentile(blue, 98))
    return float(np.median(blue[blue >= threshold_otsu(blue)]))


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


def at_scale(image: Pixels, mpp: float | None) -> Pixels:
    """An image of the built-in set, uint8 [H, W, 3], at `mpp` micrometres per pixel; None leaves it."""
    factor = SKIMAGE_MPP / mpp if mpp else 1.0
    return resize(image, round(image.shape[0] * factor), round(image.shape[1] * factor))


def twin_region_file(region: str, which: Literal["HE", "IHC"]) -> Path:
    """The region as a file, for code that takes files; made once in the user's cache folder."""
    cache = (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "miudiff" / "twin" / region / which
    )
    path = cache / "skimage_immunohistochemistry.png"
    he, ihc = twin_region(region)  # type: ignore[arg-type]
    write_image(path, he if which == "HE" else ihc)
    return path


def make_twins(source: Path, out: Path, where: Where) -> tuple[list[Path], list[str]]:
    """Twins of every IHC image of a folder (or of one file), as `out`/HE/name and `out`/IHC/name.

    Returns:
        The H&E files written, and a line for each image that could not be read.

    Raises:
        DataError: Nothing to read, or the twins cannot be written.
    """
    written: dict[Path, None] = {}
    failed: list[str] = []
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    if not source.is_dir() and not source.is_file():
        raise DataError(f"{source}: is no regular file, expected an image or a folder of images")
    folder = source.parent if source.is_file() else source
    if folder.resolve() in [(out / stain).resolve() for stain in ("HE", "IHC")]:
        raise DataError(f"{out}: its pairs would lie among the sources in {folder}; give another folder")
    paths = [source] if source.is_file() else list_images(source)
    if source.is_dir():
        failed += [f"{path}: {why}" for path, why in left_out(source)]
    for path in paths:
        twin = out / "HE" / f"{name_of(path)}.png"
        if twin in written:
            failed.append(f"{path}: another image is named {name_of(path)} as well; rename one")
            continue
        try:
            ihc = read_image(path)
            he = render_twin(ihc, where)
        except DataError as error:
            failed.append(str(error))
            continue
        write_image(twin, he)
        write_image(out / "IHC" / twin.name, ihc)
        written[twin] = None
    return list(written), failed
