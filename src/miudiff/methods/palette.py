"""The palette of a marker: H&E's two dyes in the colours that nuclei and what lies beside them have in the marker's IHC.

Removing colour leaves luma, which says "dark" of eosin and of hematoxylin alike, so cytoplasm is stained as nuclei are. The palette
(an extension of the paper) keeps the dyes apart. What the reverse process begins from is, at each pixel, what the marker's IHC shows of
such a place: nucleus or not, and how much of it.

    D = h N + (1 - min(h, 1)) e G        optical density
    h = (hematoxylin - h_0) / (h_1 - h_0),   e = eosin / e_1
    N = p N+ + (1 - p) N-     for antigens of nuclei      p = Phi(v u + sqrt(1 + v^2) Phi^-1(share))
    G = q G+ + (1 - q) G-     for all others              q = min(w share, 1)

with N+ and N- the densities of the typical colours of positive and negative nuclei in the IHC set, G+ and G- those of stained and unstained
tissue beside nuclei, h_0 and h_1 the mean hematoxylin beside and in the nuclei of the H&E set, and e_1 its mean eosin beside nuclei.

Nothing in an H&E says which nucleus is positive, but the share of them is known. u is noise of unit variance, about as wide as a nucleus:
with v = 0 each begins as the mean of both, and the larger the variety v, the more of them begin as one or the other; the mean of p is
the share for every v. Antigens of cytoplasm and membranes are antigens of epithelium more often than of stroma: w = (1 + c) / 2 with c how
crowded nuclei are around, over its mean (docs/method.md says what real HER2 pairs tell of it).

The two sets need not be pairs. How positive results are hangs on the model as well, so `matching.match_share` has it stain H&E twins of the
IHC set, and multiplies the share by the gain at which as much of the results is positive as of the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool2d

from miudiff.cells import (
    CELL,
    WEAK,
    Mask,
    blue_nuclei,
    dab_above_glass,
    glass_light,
    nuclei_of_he,
    split_cells,
    stained_nuclei,
    surroundings,
    tissue_mask,
)
from miudiff.config import Strict
from miudiff.errors import DataError
from miudiff.images import Pixels
from miudiff.normalisation import Colour, HEStains, fit_he_stains, rounded
from miudiff.stains import Floats, stain_matrix

MOST_CROWDED = 3.0  # of c
MOST = 1.4  # of h and e: denser is not more positive, but a fold, pigment, or a nucleus that is crowded
GRAIN = 0.7  # nuclei across: the same of u
REACH = 1.5  # nuclei across: the square that says, averaged over twice, how crowded they are
FEWEST = 300  # pixels of a kind for an image to count


class Palette(Strict):
    """What the dyes of an H&E set are in a marker's IHC."""

    dyes: HEStains = Field(description="The dyes of the H&E set.")
    hematoxylin: tuple[float, float] = Field(
        description="Mean hematoxylin beside and in nuclei of the H&E set, 1 being the set's strength."
    )
    eosin: float = Field(
        gt=0, description="Mean eosin beside nuclei of the H&E set, 1 being the set's strength."
    )
    nuclei: Colour = Field(description="Optical density of nuclei without the antigen in the IHC set, N-.")
    ground: Colour = Field(description="The same of tissue beside nuclei, G-.")
    positive: Colour = Field(description="The same of nuclei with the antigen, N+, or of tissue beside, G+.")
    nuclear: bool = Field(description="Whether the antigen is one of nuclei.")
    share: float = Field(
        ge=0, le=1, description="How much of the area of nuclei, or of tissue beside them, has it."
    )
    gain: float = Field(1.0, gt=0, description="How many times the share counts.")
    crowding: float | None = Field(
        None, gt=0, description="Mean of h around the tissue beside nuclei; None: DAB does not follow it."
    )
    reach: int = Field(
        1, ge=1, description="Pixels, odd: side of the square that h is averaged over for it, twice."
    )
    grain: int = Field(
        1, ge=1, description="Pixels, odd: side of the square that noise is averaged over for u, twice."
    )

    def __call__(self, he: Tensor, noise: Tensor | None = None, variety: float = 0.0) -> Tensor:
        """H&E [B, 3, H, W] in [-1, 1] with the dyes of the set, in the marker's colours; the same shape.

        Args:
            noise: Standard normal [B, 1, H, W], where `variety` is not 0.
            variety: v, at least 0.
        """
        unmix = np.linalg.pinv(stain_matrix(self.dyes.hematoxylin, self.dyes.eosin)[:2]) / self.dyes.strength
        light = he.new_tensor(self.dyes.light).view(1, 3, 1, 1)
        density = -torch.log10((127.5 * (he + 1)).clamp(min=1.0) / light).clamp(max=0)
        amounts = torch.einsum("bchw,cs->bshw", density, he.new_tensor(unmix))
        beside, inside = self.hematoxylin
        h = ((amounts[:, :1] - beside) / (inside - beside)).clamp(0, MOST)
        e = (amounts[:, 1:] / self.eosin).clamp(0, MOST)
        nuclei, ground, positive = (
            he.new_tensor(c).view(1, 3, 1, 1) for c in (self.nuclei, self.ground, self.positive)
        )
        if self.nuclear:
            nuclei = nuclei + self._positive(h, noise, variety) * (positive - nuclei)
        else:
            ground = ground + (self._crowded(h) * self.gain * self.share).clamp(max=1) * (positive - ground)
        return 2 * 10 ** -(h * nuclei + (1 - h.clamp(max=1)) * e * ground) - 1

    def _positive(self, h: Tensor, noise: Tensor | None, variety: float) -> Tensor:
        """p, like h [B, 1, H, W]."""
        share = min(self.gain * self.share, 1.0)
        if noise is None or not variety:
            return torch.full_like(h, share)
        share = min(max(share, 1e-3), 1 - 1e-3)  # of which there is a finite quantile
        return torch.special.ndtr(
            variety * _smooth_noise(noise, self.grain) + (1 + variety**2) ** 0.5 * NormalDist().inv_cdf(share)
        )

    def _crowded(self, h: Tensor) -> Tensor:
        """w, like h [B, 1, H, W]."""
        if self.crowding is None:
            return torch.ones_like(h)
        around = h.clamp(max=1)
        for _ in range(2):  # a box has edges, which would be seen as structure; twice, it has none
            around = avg_pool2d(around, self.reach, 1, self.reach // 2, count_include_pad=False)
        return (1 + (around / self.crowding).clamp(max=MOST_CROWDED)) / 2


def _smooth_noise(noise: Tensor, side: int) -> Tensor:
    """Standard normal noise [B, 1, H, W], averaged twice over a square and of unit variance again, but near the border, where less is averaged."""
    for _ in range(2):
        noise = avg_pool2d(noise, side, 1, side // 2, count_include_pad=False)
    # A box twice is a triangle, in each direction; its weights' squares sum to this.
    triangle = side - np.abs(np.arange(1 - side, side))
    return noise * side**4 / np.square(triangle).sum()


def measure_palette(
    he: Sequence[Pixels], ihc: Sequence[Pixels], nuclear: bool, diameter: float = CELL
) -> Palette:
    """The palette between two unpaired sets of uint8 [H, W, 3]; each image counts alike, whatever its size.

    Args:
        nuclear: Whether the antigen is one of nuclei, so that what is brown is a nucleus; else a nucleus is blue.
        diameter: Pixels across a nucleus.

    Raises:
        DataError: A set without tissue, or without nuclei.
    """
    kinds = []
    for image in he:
        with suppress(DataError):  # too little tissue to know the image's own dyes by
            own = fit_he_stains([image]).amounts(image)
            kinds.append((own, nuclei_of_he(image, diameter), tissue_mask(image)))
    inside, beside = _means(kinds, "H&E")
    if inside[0] <= beside[0]:
        raise DataError("the H&E set has no more hematoxylin in nuclei than beside them; expected H&E")
    reach = round(REACH * diameter) // 2 * 2 + 1
    crowds = [
        (
            surroundings(((own[..., 0] - beside[0]) / (inside[0] - beside[0])).clip(0, 1), tissue, reach),
            nuclei,
            tissue,
        )
        for own, nuclei, tissue in kinds
    ]
    stained = [_Stained.of(image, nuclear, diameter) for image in ihc]
    plain = [one.plain for one in stained if one.plain is not None]
    colours = {kind: [one.kinds[kind] for one in stained if kind in one.kinds] for kind in (False, True)}
    if not plain or not any(colours.values()):
        raise DataError(
            f"no IHC image has {FEWEST} pixels of nuclei and as many of tissue beside them; expected stained tissue"
        )
    # A set of one kind alone has it for the other as well.
    without, with_it = (_typical(colours[kind] or colours[not kind]) for kind in (False, True))
    return Palette(
        dyes=fit_he_stains(he),
        hematoxylin=(round(float(beside[0]), 4), round(float(inside[0]), 4)),
        eosin=round(max(float(beside[1]), 1e-3), 4),
        nuclei=without if nuclear else _typical(plain),
        ground=_typical(plain) if nuclear else without,
        positive=with_it,
        nuclear=nuclear,
        share=round(float(np.mean([one.share for one in stained if one.kinds])), 4),
        crowding=None if nuclear else round(max(float(_means(crowds, "H&E")[1]), 1e-3), 4),
        reach=reach,
        grain=round(GRAIN * diameter) // 2 * 2 + 1,
    )


class _Stained(NamedTuple):
    """What an IHC image holds of where the antigen may be, by whether it is there, and of all else: mean transmissions [3]."""

    kinds: dict[bool, Floats]
    share: float
    plain: Floats | None

    @classmethod
    def of(cls, image: Pixels, nuclear: bool, diameter: float) -> _Stained:
        """Of uint8 [H, W, 3]; what has less than FEWEST pixels is left out."""
        colour, dab, tissue = image / glass_light(image), dab_above_glass(image), tissue_mask(image)
        nuclei = (stained_nuclei if nuclear else blue_nuclei)(image, diameter)
        if nuclear:  # a nucleus is positive or not as a whole, and what is brown beside it is its rim
            labels = split_cells(nuclei, diameter)
            of_nuclei = np.asarray(ndimage.mean(dab, labels, np.arange(labels.max() + 1)))[labels]
            places = {kind: tissue & nuclei & ((of_nuclei > WEAK) == kind) for kind in (False, True)}
            beside = tissue & ~nuclei & (dab <= WEAK)
        else:
            places = {kind: tissue & ~nuclei & ((dab > WEAK) == kind) for kind in (False, True)}
            beside = tissue & nuclei
        kinds = {kind: colour[at].mean(axis=0) for kind, at in places.items() if at.sum() >= FEWEST}
        share = places[True].sum() / max(sum(at.sum() for at in places.values()), 1)
        plain = colour[beside].mean(axis=0) if beside.sum() >= FEWEST else None
        return cls(kinds, float(share), plain)


def _typical(colours: Sequence[Floats]) -> Colour:
    """The density of the median over images of transmissions [3]: one odd section does not colour them all."""
    return rounded(-np.log10(np.median(colours, axis=0).clip(1 / 255, 1)))


def _means(images: Sequence[tuple[Floats, Mask, Mask]], stain: str) -> tuple[Floats, Floats]:
    """Mean over images of the mean value in nuclei, and beside them, of (values, nuclei, tissue)."""
    found: list[list[Floats]] = [[], []]
    for values, nuclei, tissue in images:
        for means, where in zip(found, (tissue & nuclei, tissue & ~nuclei), strict=True):
            if where.sum() >= FEWEST:
                means.append(values[where].mean(axis=0))
    if not all(found):
        raise DataError(
            f"no {stain} image has {FEWEST} pixels of nuclei and as many of tissue beside them; expected stained tissue"
        )
    return np.mean(found[0], axis=0), np.mean(found[1], axis=0)
