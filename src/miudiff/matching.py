"""Palettes, measured on H&E and IHC images that need be no pairs, and matched: DAB counts as much as the model needs it to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from miudiff.cells import NUCLEUS, Mask, glass_light, nuclei_of_he, tissue_mask
from miudiff.data.tiles import TileImage
from miudiff.data.twin import SKIMAGE_MPP, render_twin
from miudiff.device import Placement
from miudiff.errors import ConfigError, DataError
from miudiff.images import Pixels, read_image, to_tensor, to_uint8
from miudiff.methods.miu_diff import MIUDiff, MIUDiffConfig
from miudiff.methods.model import Model, at_mpp
from miudiff.methods.palette import Palette, dab_of, mean_densities, measure_palette
from miudiff.naming import is_nuclear
from miudiff.noise import NoiseKey
from miudiff.normalisation import HEStains, fit_he_stains
from miudiff.stains import Floats

FIELDS = 8  # that a palette is matched on
SIDE = 256  # pixels of each, a multiple of what networks take
GAINS = (0.5, 3.0)  # what needs more is no matter of how much DAB counts
ROUNDS = 3  # the second correction is some per cent, the third less than one


def matched_palettes(
    model: Model, config: MIUDiffConfig, placement: Placement, he: Sequence[Pixels], ihc: Sequence[TileImage]
) -> dict[str, Palette]:
    """The palette of each marker that has IHC images, measured on the two sets (`measure_palette`) and matched (`match_dab`).

    Args:
        config: How to translate; refinement is left out.
        he: H&E, uint8 [H, W, 3], at the model's scale.
        ihc: IHC images of stated scales, each with the index of its marker.

    Raises:
        ConfigError: The model states no scale.
        DataError: Images that cannot be read, or without stained tissue.
    """
    mpp = model.card.mpp
    if mpp is None:
        raise ConfigError(
            f"{model.card.name}: states no 'mpp', expected the scale that the model was trained at"
        )
    made = {}
    for number, marker in enumerate(model.card.markers):
        images = [at_mpp(read_image(one.path), one.mpp, mpp) for one in ihc if one.marker == number]
        if images:
            palette = measure_palette(he, images, is_nuclear(marker), NUCLEUS / mpp)
            made[marker] = match_dab(model, marker, palette, config, placement, images)
    return made


def match_dab(
    model: Model,
    marker: str,
    palette: Palette,
    config: MIUDiffConfig,
    placement: Placement,
    ihc: Sequence[Pixels],
) -> Palette:
    """The palette with the gain at which H&E twins of its IHC set come out with the set's own DAB.

    A source that has the mean colour comes out with less DAB than the set has, because the mean lies nearer to the colour that is more
    frequent. So DAB is multiplied by what was missing of it, in a few rounds. What is compared is the DAB of nuclei, or what lies
    beside them where the antigen is none of nuclei. Twins hold the set's own tissue, so what differs is the model's doing.

    Args:
        config: How to translate; refinement is left out.
        ihc: The set at the model's scale, uint8 [H, W, 3]; the middle of at most `FIELDS` of them, at most `SIDE` pixels a side, is used.

    Raises:
        DataError: No twin has tissue with nuclei.
    """
    mpp, network = model.card.mpp or SKIMAGE_MPP, model.for_marker(marker)
    nuclear = palette.crowding is None
    where = 0 if nuclear else 1  # in nuclei, or beside them
    twins = [_Twin.of(image, nuclear, mpp) for image in _middles(ihc, network.multiple)]
    known = [twin for twin in twins if twin]
    # A twin's dyes are as strong as the rendering has them, which is not how strong they are in the H&E set.
    amounts = measure_palette([twin.he for twin in known], ihc, nuclear, NUCLEUS / mpp)
    own = {key: getattr(amounts, key) for key in ("hematoxylin", "eosin", "crowding")}
    plain = config.model_copy(update={"refinement": config.refinement.model_copy(update={"loss": "none"})})
    wanted, gain = _dab(known, [twin.real for twin in known])[where], 1.0
    for _ in range(ROUNDS):
        results = []
        for number, twin in enumerate(known):
            tried = palette.model_copy(update=own | {"gain": gain, "dyes": twin.dyes})
            method = MIUDiff(network, model.estimator, plain, placement, tried)
            he = to_tensor(twin.he).to(placement.device)
            result = method.translate(he, [NoiseKey(0, f"matched{number}")])
            results.append(to_uint8(result.detach())[0] / 255)
        gain = float(np.clip(gain * wanted / max(_dab(known, results)[where], 0.01), *GAINS).round(3))
    return palette.model_copy(update={"gain": gain})


@dataclass(frozen=True)
class _Twin:
    """An H&E twin, its dyes, the transmission of its IHC [H, W, 3], and where its nuclei and tissue are [H, W]."""

    he: Pixels
    dyes: HEStains
    real: Floats
    nuclei: Mask
    tissue: Mask

    @classmethod
    def of(cls, ihc: Pixels, nuclear: bool, mpp: float) -> _Twin | None:
        """The twin of a field; None where it has too little tissue to know its dyes by."""
        he = render_twin(ihc, "nuclear" if nuclear else "cytoplasmic", mpp)
        with suppress(DataError):
            dyes = fit_he_stains([he])
            return cls(he, dyes, ihc / glass_light(ihc), nuclei_of_he(he, NUCLEUS / mpp), tissue_mask(he))
        return None


def _dab(twins: Sequence[_Twin], colours: Sequence[Floats]) -> tuple[float, float]:
    """DAB in the mean colour of nuclei, and beside them, of transmissions [H, W, 3] each in the place of a twin's IHC."""
    kinds = [(colour, twin.nuclei, twin.tissue) for twin, colour in zip(twins, colours, strict=True)]
    inside, beside = mean_densities(kinds, "twin")
    return dab_of(inside), dab_of(beside)


def _middles(images: Sequence[Pixels], multiple: int) -> Iterator[Pixels]:
    """The middles of some images, evenly chosen, at most `SIDE` pixels a side, in multiples of `multiple`."""
    for i in np.linspace(0, len(images) - 1, min(FIELDS, len(images))).round().astype(int):
        image = images[i]
        extents = [min(length // multiple * multiple, SIDE) for length in image.shape[:2]]
        top, left = ((n - extent) // 2 for n, extent in zip(image.shape[:2], extents, strict=True))
        yield image[top : top + extents[0], left : left + extents[1]]
