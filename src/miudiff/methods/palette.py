"""The palette of a marker: H&E's two dyes in the colours that nuclei and what lies beside them have in the marker's IHC.

Removing colour leaves luma, which says "dark" of eosin and of hematoxylin alike, so cytoplasm is stained as nuclei are. The palette
(an extension of the paper) keeps the dyes apart. What the reverse process begins from is, at each pixel, the mean of the marker's
IHC given all that the H&E says there: nucleus or not, and how much of it.

    D = h N + (1 - min(h, 1)) e (G + w A)        optical density
    h = (hematoxylin - h_0) / (h_1 - h_0),   e = eosin / e_1

with N and G + A the densities of the mean colours of nuclei and of all else in the IHC set, A being DAB and G the rest of it, h_0 and h_1 the mean hematoxylin beside and
in the nuclei of the H&E set, and e_1 its mean eosin beside nuclei. For antigens of cytoplasm and membranes w is how crowded nuclei are around, over its mean: these
are antigens of epithelium more often than of stroma (on the real HER2 pairs here no other property of the H&E went with DAB as
closely: docs/results.md). For antigens of nuclei w = 1. The two sets need not be pairs. Nothing says which nucleus is
positive, so all begin alike, between blue and brown, and the score model decides. It decides for blue too often: a mixture of the
colours lies nearer to the one that most nuclei have. So `matching.match_dab` has it decide on H&E twins of the IHC set, and
multiplies the DAB in N, or A where the antigen is none of nuclei, by what brings the results' mean to that of the set.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import avg_pool2d

from miudiff.cells import (
    CELL,
    Mask,
    blue_nuclei,
    glass_light,
    nuclei_of_he,
    stained_nuclei,
    surroundings,
    tissue_mask,
)
from miudiff.config import Strict
from miudiff.errors import DataError
from miudiff.images import Pixels
from miudiff.normalisation import Colour, HEStains, fit_he_stains, rounded
from miudiff.stains import Floats, rgb_from_hdab, stain_matrix

MOST = 1.4  # of h and e: denser is not more positive, but a fold, pigment, or a nucleus that is crowded
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
    nuclei: Colour = Field(
        description="Optical density of the mean colour of nuclei in the IHC set, without its DAB."
    )
    ground: Colour = Field(description="The same of tissue beside nuclei.")
    dab: tuple[float, float] = Field(
        description="Densities of DAB in the mean colours of nuclei and beside them."
    )
    gain: float = Field(
        1.0,
        gt=0,
        description="How many times DAB counts: that in nuclei, or beside them where DAB follows crowding.",
    )
    crowding: float | None = Field(
        None, gt=0, description="Mean of h around the tissue beside nuclei; None: DAB does not follow it."
    )
    reach: int = Field(
        1, ge=1, description="Pixels, odd: side of the square that h is averaged over for it, twice."
    )

    def __call__(self, he: Tensor) -> Tensor:
        """H&E [B, 3, H, W] in [-1, 1] with the dyes of the set, in the marker's colours; the same shape."""
        unmix = np.linalg.pinv(stain_matrix(self.dyes.hematoxylin, self.dyes.eosin)[:2]) / self.dyes.strength
        light = he.new_tensor(self.dyes.light).view(1, 3, 1, 1)
        density = -torch.log10((127.5 * (he + 1)).clamp(min=1.0) / light).clamp(max=0)
        amounts = torch.einsum("bchw,cs->bshw", density, he.new_tensor(unmix))
        beside, inside = self.hematoxylin
        h = ((amounts[:, :1] - beside) / (inside - beside)).clamp(0, MOST)
        e = (amounts[:, 1:] / self.eosin).clamp(0, MOST)
        in_nuclei, beside_them = self.dab
        if self.crowding:
            beside_them *= self.gain
        else:
            in_nuclei *= self.gain
        nuclei, rest, dab = (
            he.new_tensor(c).view(1, 3, 1, 1)
            for c in (
                self.nuclei + in_nuclei * rgb_from_hdab[1],
                self.ground,
                beside_them * rgb_from_hdab[1],
            )
        )
        ground = rest + dab
        if self.crowding:
            around = h.clamp(max=1)
            for _ in range(2):  # a box has edges, which would be seen as structure; twice, it has none
                around = avg_pool2d(around, self.reach, 1, self.reach // 2, count_include_pad=False)
            ground = rest + (around / self.crowding).clamp(max=2) * dab
        return 2 * 10 ** -(h * nuclei + (1 - h.clamp(max=1)) * e * ground) - 1


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
    find = stained_nuclei if nuclear else blue_nuclei
    colours = [(image / glass_light(image), find(image, diameter), tissue_mask(image)) for image in ihc]
    of_nuclei, of_ground = mean_densities(colours, "IHC")
    dab = tuple(round(dab_of(density), 4) for density in (of_nuclei, of_ground))
    return Palette(
        dyes=fit_he_stains(he),
        hematoxylin=(round(float(beside[0]), 4), round(float(inside[0]), 4)),
        eosin=round(max(float(beside[1]), 1e-3), 4),
        nuclei=rounded(of_nuclei - dab[0] * rgb_from_hdab[1]),
        ground=rounded(of_ground - dab[1] * rgb_from_hdab[1]),
        dab=dab,
        crowding=None if nuclear else round(max(float(_means(crowds, "H&E")[1]), 1e-3), 4),
        reach=reach,
    )


def mean_densities(images: Sequence[tuple[Floats, Mask, Mask]], stain: str) -> tuple[Floats, Floats]:
    """Optical densities [3] of the mean colours of nuclei and of tissue beside them.

    Args:
        images: (transmission [H, W, 3] in [0, 1], nuclei [H, W], tissue [H, W]) each.
        stain: What to call the images in a message.

    Raises:
        DataError: None has enough pixels of both.
    """
    inside, beside = (-np.log10(colour.clip(1 / 255, 1)) for colour in _means(images, stain))
    return inside, beside


def dab_of(density: Floats) -> float:
    """The DAB, at least 0, in an optical density [3]."""
    return max(float((density @ np.linalg.inv(rgb_from_hdab))[1]), 0.0)


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
