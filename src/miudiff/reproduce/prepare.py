"""Making a case's images: divided into training and test, shrunk as a whole, at one scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from miudiff.data.layouts import Dataset, Field, Pair, open_dataset
from miudiff.data.splits import Split, leaks, official_split, paper_split
from miudiff.data.twin import MARKER, at_scale, twin_region
from miudiff.errors import DataError
from miudiff.images import write_image
from miudiff.reproduce.scale import CaseScale
from miudiff.reproduce.sources import TWIN_MPP, Source

TWIN_TILE = 256
SplitName = Literal["auto", "official", "paper", "all"]
STAINS: tuple[Literal["HE"], Literal["IHC"]] = ("HE", "IHC")


@dataclass(frozen=True)
class Settings:
    """How the images of a case are made.

    Attributes:
        side: The longer side of a prepared image in pixels.
        most: Test images at most; None takes all.
        split: "all" tests on every pair and trains on none (`whole`).
        split_seed: Of the paper's split.
        slide_pattern: Finds the slide in a file name, as `open_dataset` has it.
        scale: Of "all": the micrometres per pixel that images of a known scale are resampled to.
    """

    side: int
    most: int | None = None
    split: SplitName = "auto"
    split_seed: int = 0
    slide_pattern: str | None = None
    scale: float | None = None


def prepare_twin(images: Path) -> dict[str, Any]:
    """The twin set: its training half whole, its held-out half as tiles. Returns what `case.json` says of it."""
    for stain, image in zip(STAINS, twin_region("train"), strict=True):
        write_image(images / "train" / stain / "left.png", at_scale(image, TWIN_MPP))
    names: list[str] = []
    for stain, image in zip(STAINS, twin_region("test"), strict=True):
        scaled = at_scale(image, TWIN_MPP)
        names = []
        for y in range(0, scaled.shape[0] - TWIN_TILE + 1, TWIN_TILE):
            for x in range(0, scaled.shape[1] - TWIN_TILE + 1, TWIN_TILE):
                names.append(f"right_{y}_{x}")
                tile = scaled[y : y + TWIN_TILE, x : x + TWIN_TILE]
                write_image(images / "test" / stain / f"{names[-1]}.png", tile)
    note = "Twin set: the H&E image is rendered from the IHC image's own tissue; trained on its left half, tested on its right half, of one slide."
    return {
        "marker": MARKER,
        "mpp": TWIN_MPP,
        "paired": True,
        "notes": [note],
        "train": [1, 1],
        "test": names,
    }


def open_source(source: Source, settings: Settings) -> tuple[Dataset, Path]:
    """A dataset of the user's, made sure that it has one marker, and its root.

    Raises:
        DataError: No dataset there, or one of several markers.
    """
    if source.root is None:
        raise ValueError("the twin set has no root")
    dataset = open_dataset(source.root, slide_pattern=settings.slide_pattern)
    if len(dataset.markers) > 1:
        raise DataError(
            f"{source.root}: holds {', '.join(dataset.markers)}; one case has one marker, give --data {source.name}={source.root}/... of one"
        )
    return dataset, source.root


def prepare_root(source: Source, images: Path, settings: Settings) -> dict[str, Any]:
    """A dataset of the user's, into `images`/{train,test}/{HE,IHC}. Returns what `case.json` says of it.

    Raises:
        DataError: Several markers, no pairs to test on, no images to train on, an unreadable image, or several scales.
    """
    dataset, root = open_source(source, settings)
    divided = _divide(dataset, settings.split, settings.split_seed)
    test_part = "test" if divided.fields("test") else "val"  # MIST's official test part is named val
    pairs = divided.dataset.pairs(test_part)[: settings.most]
    training = {stain: divided.fields("train", stain) for stain in STAINS}
    for kind, fields in training.items():
        if not fields:
            raise DataError(f"{root}: no {kind} images in its training part; see `miudiff data check`")
    if not pairs:
        raise DataError(f"{root}: no H&E/IHC pairs in its test part to measure on; see `miudiff data check`")
    scale = CaseScale(source, dataset.layout, settings.side)
    paired = divided.dataset.pairs("train")
    _write_training(images / "train", training, paired, root, scale)
    names = _write_test(images / "test", pairs, root, scale)
    part = f"{divided.name} split, test part '{test_part}'"
    if divided.seed is not None:
        part += f", seed {divided.seed}, divided by {divided.by}"
    return {
        "marker": dataset.markers[0] if dataset.markers else None,
        "mpp": scale.mpp,
        "paired": bool(paired),
        "notes": [
            part,
            *scale.notes(),
            *divided.warnings,
            *_shared(divided, test_part),
            *_alone(len(paired), max(len(training["HE"]), len(training["IHC"]))),
            *dataset.notes,
        ],
        "train": [len(training["HE"]), len(training["IHC"])],
        "test": names,
    }


def _divide(dataset: Dataset, split: SplitName, seed: int) -> Split:
    states = {"train"} < set(dataset.splits)  # train, and something to test on
    if split == "official" or (split == "auto" and states):
        return official_split(dataset)
    return paper_split(dataset, seed)


def _write_training(
    folder: Path,
    training: dict[Literal["HE", "IHC"], list[Field]],
    paired: Sequence[Pair],
    root: Path,
    scale: CaseScale,
) -> None:
    # Partners get one name; ASP finds them by it, and no other system looks at names.
    partner = {pair.ihc.path: pair.he.path for pair in paired}
    alone = [f for f in training["IHC"] if f.path not in partner]
    names = unique_names([*training["HE"], *alone], root)
    for stain, fields in training.items():
        for field in fields:
            name = names[partner.get(field.path, field.path)]
            write_image(folder / stain / f"{name}.png", scale.cut(field.path))


def _write_test(folder: Path, pairs: Sequence[Pair], root: Path, scale: CaseScale) -> list[str]:
    names = unique_names([p.he for p in pairs], root)
    for pair in pairs:
        he, ihc = (scale.cut(field.path) for field in (pair.he, pair.ihc))
        if he.shape != ihc.shape:
            raise DataError(
                f"{pair.ihc.path}: {ihc.shape[1]} x {ihc.shape[0]} once shrunk, but {pair.he.path} is {he.shape[1]} x {he.shape[0]}; a test pair has one size"
            )
        for stain, image in zip(STAINS, (he, ihc), strict=True):
            write_image(folder / stain / f"{names[pair.he.path]}.png", image)
    return sorted(names.values())


def unique_names(fields: Sequence[Field], root: Path) -> dict[Path, str]:
    """A name for each file, no two alike: its own where no other has it, else with its folders, at worst with a number."""
    count = Counter(f.name for f in fields)
    found: dict[Path, str] = {}
    taken: set[str] = {name for name, times in count.items() if times == 1}
    for field in fields:
        if count[field.name] == 1:
            found[field.path] = field.name
            continue
        parts = (*field.path.relative_to(root).parts[:-1], field.name)
        plain = name = "_".join(parts).replace(" ", "_")
        number = 1
        while name in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name)
        found[field.path] = name
    return found


def _alone(pairs: int, images: int) -> list[str]:
    """What ASP does not see, a sentence."""
    return (
        [f"ASP trains on {pairs} pairs, all others on {images} images of a stain"]
        if 0 < pairs < images
        else []
    )


def _shared(divided: Split, test_part: str) -> list[str]:
    """What training and test have in common, a sentence for each kind."""
    both = [leak for leak in leaks(divided) if {"train", test_part} <= set(leak.parts)]
    told = []
    for kind, what in (("slide", "slides are"), ("content", "files are, byte for byte,")):
        found = [leak.name if kind == "slide" else leak.paths[0].name for leak in both if leak.kind == kind]
        if found:
            told.append(f"{len(found)} {what} both in training and in test ({found[0]} is the first)")
    return told
