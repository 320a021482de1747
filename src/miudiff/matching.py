"""Palettes, measured on H&E and IHC images that need be no pairs, and matched: results are as positive as the IHC set is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from miudiff.cells import NUCLEUS, WEAK, Mask, dab_above_glass, nuclei_of_he, tissue_mask
from miudiff.data.tiles import TileImage
from miudiff.data.twin import SKIMAGE_MPP, render_twin
from miudiff.device import Placement
from miudiff.errors import ConfigError, DataError
from miudiff.evenly import evenly
from miudiff.images import Pixels, read_image, to_tensor, to_uint8
from miudiff.methods.miu_diff import MIUDiff, MIUDiffConfig
from miudiff.methods.model import Model, at_mpp
from miudiff.methods.palette import Palette, measure_palette
from miudiff.methods.presets import preset
from miudiff.naming import is_nuclear
from miudiff.noise import NoiseKey
from miudiff.normalisation import HEStains, fit_he_stains

FIELDS = 8  # that a palette is matched on
SIDE = 256  # pixels of each, a multiple of what networks take
GAINS = (0.5, 3.0)  # what needs more is no matter of shares
ROUNDS = 5  # of halving: the gain is then known to 3 %


def usual(model: Model) -> MIUDiffConfig:
    """The settings that a palette is matched with: those of images, without guidance where the model has no estimator."""
    return preset("fast", () if model.estimator else ("energy.guidance=none",))


def matched_palettes(
    model: Model, config: MIUDiffConfig, placement: Placement, he: Sequence[Pixels], ihc: Sequence[TileImage]
) -> dict[str, Palette]:
    """The palette of each marker that has IHC images, measured on the two sets (`measure_palette`) and matched (`match_share`).

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
            made[marker] = match_share(model, marker, palette, config, placement, images)
    return made


def match_share(
    model: Model,
    marker: str,
    palette: Palette,
    config: MIUDiffConfig,
    placement: Placement,
    ihc: Sequence[Pixels],
) -> Palette:
    """The palette with the gain at which H&E twins of its IHC set come out as positive as the set is.

    A source of mean colours comes out otherwise, because the mean lies nearer to the colour that is more frequent. So the share is
    multiplied by a gain, found by halving the range of gains. Twins hold the set's own tissue, so what differs is the
    model's doing.

    Args:
        config: How to translate; refinement is left out.
        ihc: The set at the model's scale, uint8 [H, W, 3]; the middle of at most `FIELDS` of them, at most `SIDE` pixels a side, is used.

    Raises:
        DataError: No twin has tissue with nuclei.
    """
    mpp, network = model.card.mpp or SKIMAGE_MPP, model.for_marker(marker)
    twins = [_Twin.of(image, palette.nuclear, mpp) for image in _middles(ihc, network.multiple)]
    known = [twin for twin in twins if twin]
    # A twin's dyes are as strong as the rendering has them, which is not how strong they are in the H&E set.
    amounts = measure_palette([twin.he for twin in known], ihc, palette.nuclear, NUCLEUS / mpp)
    own = {key: getattr(amounts, key) for key in ("hematoxylin", "eosin", "basophilia")}
    wanted = np.mean([twin.positive(twin.ihc) for twin in known])
    low, high = GAINS[0], min(GAINS[1], 1 / max(palette.share, 1e-3))  # no share is more than all
    for _ in range(ROUNDS):  # the more a share counts, the more is positive
        gain = (low * high) ** 0.5
        found = []
        for number, twin in enumerate(known):
            tried = palette.model_copy(update=own | {"gain": gain, "dyes": twin.dyes})
            method = MIUDiff(network, model.estimator, config.unrefined, placement, tried)
            he = to_tensor(twin.he).to(placement.device)
            result = method.translate(he, [NoiseKey(0, f"matched{number}")])
            found.append(twin.positive(to_uint8(result.detach())[0]))
        low, high = (gain, high) if np.mean(found) < wanted else (low, gain)
    return palette.model_copy(update={"gain": round((low * high) ** 0.5, 3)})


@dataclass(frozen=True)
class _Twin:
    """An IHC field, its H&E twin, the twin's dyes, and where the antigen may be [H, W]."""

    ihc: Pixels
    he: Pixels
    dyes: HEStains
    where: Mask

    @classmethod
    def of(cls, ihc: Pixels, nuclear: bool, mpp: float) -> _Twin | None:
        """The twin of a field; None where it has too little tissue to know its dyes by, or nothing of where the antigen may be."""
        he = render_twin(ihc, "nuclear" if nuclear else "cytoplasmic", mpp)
        nuclei = nuclei_of_he(he, NUCLEUS / mpp)
        where = tissue_mask(he) & (nuclei if nuclear else ~nuclei)
        with suppress(DataError):
            return cls(ihc, he, fit_he_stains([he]), where) if where.any() else None
        return None

    def positive(self, image: Pixels) -> float:
        """The share of where the antigen may be that is positive in an image in the place of the IHC, uint8 [H, W, 3]."""
        return float((dab_above_glass(image)[self.where] > WEAK).mean())


def _middles(images: Sequence[Pixels], multiple: int) -> Iterator[Pixels]:
    """The middles of some images, evenly chosen, at most `SIDE` pixels a side, in multiples of `multiple`."""
    for image in evenly(images, FIELDS):
        extents = [min(length // multiple * multiple, SIDE) for length in image.shape[:2]]
        top, left = ((n - extent) // 2 for n, extent in zip(image.shape[:2], extents, strict=True))
        yield image[top : top + extents[0], left : left + extents[1]]
