"""The twin set: exactly aligned H&E/IHC pairs of real tissue, made from IHC images alone.

No laboratory stains one section twice, so no real pair is aligned to the pixel. A twin is: an IHC image is separated into
hematoxylin and DAB (Ruifrok), and its tissue is rendered as H&E by Beer-Lambert. What DAB said about the antigen must be lost on
the way, as it is in a real H&E, or a method that takes darkness for positivity would score well. So a twin keeps where nuclei,
tissue and glass are, and nothing of how dense they were where DAB may have made them so:

- each nucleus takes a density drawn at random and a texture of noise, whatever its hematoxylin and DAB;
- what lies beside nuclei takes eosin by the rank of its texture, of which all that is linear in DAB at 0, 2, 8 and 32 um is taken out;
- the cytoplasm of epithelium takes more hematoxylin than stroma does, which a real H&E shows as well. Where the antigen is one of
  cytoplasm or membranes, this haze follows DAB over 8 um as loosely as in real HER2 pairs (docs/data.md); else it is even.

`benchmarks/twin_leak.py` measures what is left; `docs/data.md` shows it for many images. That a nucleus is there at all does tell
something of a nuclear antigen, in a real H&E as here.

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
from scipy.special import ndtr

from miudiff.cells import (
    CELL,
    NUCLEUS,
    Labels,
    Mask,
    blue_nuclei,
    split_cells,
    stained_nuclei,
    surroundings,
    tissue_mask,
)
from miudiff.data.layouts import left_out, name_of
from miudiff.errors import DataError
from miudiff.images import Pixels, list_images, read_image, read_scale, resize, write_image
from miudiff.noise import NoiseKey
from miudiff.stains import (
    Floats,
    background_light,
    combine_stains,
    optical_density,
    rgb_from_hdab,
    rgb_from_he,
    separate_stains,
)

Where = Literal["nuclear", "cytoplasmic"]
Region = Literal["train", "test"]

SKIMAGE_MPP = NUCLEUS / CELL
MARKER = "FHL2"
LEAK_SCALES = (0.0, 2.0, 8.0, 32.0)  # um over which DAB is averaged to be taken out; 0 is the pixel

# How a twin looks, in optical density and um. Densities are those of the H&E fields of docs/data.md, by eye.
_LIGHT = np.array([246.0, 243.0, 245.0])
_NUCLEUS, _NUCLEUS_SPREAD = 0.6, 0.3  # median density of a nucleus; log standard deviation over nuclei
_HAZE = (0.04, 0.3)  # hematoxylin of stroma and of cytoplasm
_TYPE = 0.45  # how much of what haze there is DAB over _TYPE_SCALE um tells, as a correlation
_TYPE_SCALE = 8.0
_EOSIN = (
    0.12,
    0.44,
)  # of the palest and the densest tissue beside nuclei; under nuclei it is that of the palest


def render_twin(
    ihc: Pixels, where: Where, mpp: float = SKIMAGE_MPP, light: Floats | None = None, seed: int = 0
) -> Pixels:
    """The H&E twin of an IHC image, both uint8 [H, W, 3].

    Args:
        where: Where the antigen is: in "nuclear" stains (Ki-67) brown is a nucleus, in "cytoplasmic" ones (HER2, FHL2) it is not.
        mpp: Micrometres per pixel.
        light: The image's white [3]; None takes it from the image (`background_light`).
        seed: Of what is drawn at random: the nuclei's densities and their texture.
    """
    light = background_light(ihc) if light is None else light
    amounts = separate_stains(ihc, rgb_from_hdab, light)
    hematoxylin, dab = (np.clip(amounts[..., i], 0, None) for i in (0, 1))
    density = optical_density(ihc, light).mean(axis=-1)
    # Pale stroma among stained tissue is tissue; only wide gaps are glass.
    tissue = (_blurred(density, 1.0, mpp) > 0.025) | (_blurred(density, 5.0, mpp) > 0.03)
    diameter = NUCLEUS / mpp
    find = stained_nuclei if where == "nuclear" else blue_nuclei
    nuclei = split_cells(find(ihc, diameter, light) & tissue, diameter)
    chromatin = _chromatin(nuclei, dab, mpp, seed)
    inside = nuclei > 0
    # The palest stroma is apart: ranked with the rest, it would tell where DAB is absent.
    eosin = _eosin(hematoxylin, density, dab, tissue & tissue_mask(ihc) & ~inside, mpp)
    eosin = np.where(inside | (tissue & (eosin == 0)), _EOSIN[0], eosin)
    beside = tissue & ~inside
    haze = beside * (
        _HAZE[0] + (_HAZE[1] - _HAZE[0]) * (0.5 if where == "nuclear" else _type(dab, beside, mpp, seed))
    )
    stains = np.stack([_blurred(chromatin, 0.2, mpp) + haze, _blurred(eosin, 0.2, mpp)], axis=-1)
    return combine_stains(stains, rgb_from_he, _LIGHT)


def _chromatin(nuclei: Labels, dab: Floats, mpp: float, seed: int) -> Floats:
    """Hematoxylin [H, W] of each nucleus: drawn, grained, denser at its rim, and knowing nothing of its DAB."""
    inside = nuclei > 0
    drawn, fine, coarse = (
        NoiseKey(seed, "twin").normal("start", 0, (3, *nuclei.shape)).numpy().astype(np.float64)
    )
    of_nucleus = np.zeros(int(nuclei.max()) + 1)
    for label, middle in enumerate(ndimage.center_of_mass(inside, nuclei, range(1, len(of_nucleus))), 1):
        of_nucleus[label] = drawn[
            round(middle[0]), round(middle[1])
        ]  # by place, so the order of labels is of no account
    grain = 0.16 * _unit(_blurred(fine, 0.4, mpp)) + 0.16 * _unit(_blurred(coarse, 1.0, mpp))
    rim = 0.12 * np.exp(-ndimage.distance_transform_edt(inside) * mpp / 0.5)
    density = _NUCLEUS * np.exp(_NUCLEUS_SPREAD * of_nucleus[nuclei]) * (1 + grain + rim)
    return np.asarray(np.clip(unrelated(density, dab, inside, mpp), 0.15, 1.6) * inside)


def _type(dab: Floats, where: Mask, mpp: float, seed: int) -> Floats:
    """How much of epithelium tissue is, [H, W] in [0, 1]: what DAB says of it, and noise as coarse."""
    if not where.any():
        return np.zeros(dab.shape)
    noise = NoiseKey(seed, "twin").normal("start", 1, (1, *dab.shape)).numpy()[0].astype(np.float64)
    told = _unit(surroundings(dab, where, _TYPE_SCALE / mpp), where)
    rest = _unit(_blurred(noise, _TYPE_SCALE / 2, mpp), where)
    return np.asarray(ndtr(_TYPE * told + (1 - _TYPE**2) ** 0.5 * rest))


def _eosin(hematoxylin: Floats, density: Floats, dab: Floats, where: Mask, mpp: float) -> Floats:
    """Eosin [H, W] of what lies beside nuclei: the rank of its texture, fine and coarse, without what DAB says."""
    eosin = np.zeros(where.shape)
    if not where.any():
        return eosin
    fine = _blurred(hematoxylin, 0.2, mpp) - _blurred(hematoxylin, 6.0, mpp)
    coarse = surroundings(density, where, 6 / mpp)
    texture = sum(
        weight * _unit(unrelated(part, dab, where, mpp), where)
        for weight, part in ((0.8, fine), (0.6, coarse))
    )
    texture = unrelated(np.asarray(texture), dab, where, mpp)[where]
    ranks = np.empty(len(texture))
    ranks[np.argsort(texture, kind="stable")] = (np.arange(len(texture)) + 0.5) / len(texture)
    eosin[where] = _EOSIN[0] + (_EOSIN[1] - _EOSIN[0]) * ranks**2  # most tissue is pale
    return eosin


def unrelated(field: Floats, dab: Floats, where: Mask, mpp: float) -> Floats:
    """The field [H, W] without what is linear in DAB [H, W], pixel by pixel and averaged over `LEAK_SCALES`, within `where`.

    Its mean stays. An average over windows is a projection, so averages of what is left do not correlate with averages of DAB.
    """
    parts = [dab if not scale else surroundings(dab, where, scale / mpp) for scale in LEAK_SCALES]
    known = np.stack([part[where] for part in parts], axis=1)
    if len(known) < 10 * len(parts):
        return field
    known = known - known.mean(axis=0)
    slopes = np.linalg.lstsq(known, field[where], rcond=None)[0]
    left = field.copy()
    left[where] -= known @ slopes
    return left


def _blurred(field: Floats, sigma: float, mpp: float) -> Floats:
    return np.asarray(ndimage.gaussian_filter(field, sigma / mpp))


def _unit(field: Floats, where: Mask | None = None) -> Floats:
    """The field with mean 0 and standard deviation 1 (within `where`)."""
    values = field if where is None else field[where]
    return np.asarray((field - values.mean()) / max(float(values.std()), 1e-6))


def skimage_ihc(region: Region) -> Pixels:
    """A half of scikit-image's IHC image, uint8 [512, 256, 3]: left is "train", right is "test" and never trained on.

    Raises:
        DataError: `region` is neither.
    """
    if region not in ("train", "test"):
        raise DataError(f"twin:{region}: no such region, expected twin:train or twin:test")
    image = _skimage()
    return image[:, :256] if region == "train" else image[:, 256:]


def twin_region(region: Region) -> tuple[Pixels, Pixels]:
    """(H&E, IHC) of a half of the built-in set, uint8 [512, 256, 3] each."""
    ihc = skimage_ihc(region)
    return render_twin(ihc, "cytoplasmic", light=background_light(_skimage())), ihc


def twin_picture() -> tuple[Pixels, Pixels]:
    """(H&E, IHC) of the built-in set's whole picture, uint8 [512, 512, 3] each: its left half is trained on, its right half held out."""
    ihc = _skimage()
    return render_twin(ihc, "cytoplasmic"), ihc


def _skimage() -> Pixels:
    """scikit-image's IHC image, uint8 [512, 512, 3]."""
    from skimage.data import immunohistochemistry

    return np.asarray(immunohistochemistry())


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


def make_twins(
    source: Path, out: Path, where: Where, mpp: float | None = None
) -> tuple[list[Path], list[str]]:
    """Twins of every IHC image of a folder (or of one file), as `out`/HE/name and `out`/IHC/name.

    Args:
        mpp: Micrometres per pixel of all of them; None takes what each file states, and 0.5 of one that states none.

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
            he = render_twin(ihc, where, mpp or read_scale(path) or SKIMAGE_MPP)
        except DataError as error:
            failed.append(str(error))
            continue
        write_image(twin, he)
        write_image(out / "IHC" / twin.name, ihc)
        written[twin] = None
    return list(written), failed
