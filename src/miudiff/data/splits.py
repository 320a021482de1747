"""Which part of a dataset is for training and which for testing: the official split, or the paper's 80/10/10.

Patches of one slide look alike, so a slide in two parts makes a test easier than it is. MIST's official split
divides patches at random, so its parts share slides. The paper's counts (section 3) show that it pooled the
official parts and divided again, by patch or by slide it does not say. Here it is by slide where it can be.

The paper's split is a function of the seed and the names alone, not of the order of files on a disk. `leaks`
tells what the parts of any split share.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from miudiff.data.layouts import Dataset, Field, Stain
from miudiff.errors import DataError

Part = Literal["train", "val", "test"]
By = Literal["slide", "patch"]

PARTS: tuple[Part, ...] = ("train", "val", "test")
# The paper's pools: all 5,361 of MIST Ki67; 4,373 of BCI, the 4,873 less the 500 its challenge validates on.
# The paper's MIST HER2: no rounding of 5,640 gives it. The official 5,642 patches would give 4513/564/565.
PRINTED = {5640: (4513, 564, 563)}
ORDERS = 64  # random orders of slides that are tried

OFFICIAL_MIST = (
    "MIST divided patches, not slides: train and val share slides, so scores on val are optimistic"
)
BY_PATCH = "divided by patch: a slide may be in train and in test, so scores on test are optimistic"
SLIDES_UNKNOWN = f"the slides are not known ({{missing}} of {{all}} names state none), so it is {BY_PATCH}"


@dataclass(frozen=True)
class Split:
    """A dataset whose images name their part: `dataset.files("IHC", "train")`, `dataset.pairs("test")`.

    Attributes:
        warnings: What a reader of scores on this split must know, a sentence each.
    """

    name: Literal["official", "paper"]
    dataset: Dataset
    seed: int | None = None
    by: By | None = None
    warnings: tuple[str, ...] = ()

    def fields(self, part: Part, stain: Stain | None = None) -> list[Field]:
        """The images of a part, sorted by path."""
        return self.dataset.select(stain, part)

    def counts(self) -> dict[Part, int]:
        """How many patches each part has; a pair is one patch."""
        names = _patch_names(self.dataset)
        return {part: len({names[field.path] for field in self.fields(part)}) for part in PARTS}


@dataclass(frozen=True)
class Leak:
    """A slide, or the content of a file, that is in two or three parts."""

    kind: Literal["slide", "content"]
    name: str
    parts: tuple[str, ...]
    paths: tuple[Path, ...]

    def __str__(self) -> str:
        parts = " and ".join(self.parts)
        if self.kind == "slide":
            return f"slide {self.name} is in {parts} ({len(self.paths)} files)"
        return f"the same file is in {parts}: {', '.join(str(path) for path in self.paths)}"


def official_split(dataset: Dataset) -> Split:
    """The split that the folders (or BCI's names) state; images of no split are left out.

    Raises:
        DataError: Nothing states a split.
    """
    fields = tuple(field for field in dataset.fields if field.split is not None)
    if not fields:
        raise DataError(f"{dataset.root}: no official split, expected folders such as train and test")
    official = replace(dataset, fields=fields)
    # A sample whose folders somebody made by slide is not warned of: no content is read to tell it.
    apart = all(field.slide is not None for field in fields) and not leaks(official, digests={})
    mixed = dataset.layout == "mist" and len(dataset.splits) > 1 and not apart
    return Split("official", official, warnings=(OFFICIAL_MIST,) if mixed else ())


def paper_split(dataset: Dataset, seed: int, by: By | None = None) -> Split:
    """80/10/10 of all images, whatever part they were in (section 3, which states neither seed nor unit).

    Args:
        by: "slide" keeps slides whole, so the counts only come close to 80/10/10; "patch" meets the paper's
            counts, for each marker by itself. None takes slides where every name states one.

    Raises:
        DataError: By slide where some slides are not known, or fewer than three units to divide.
    """
    silent = [field for field in dataset.fields if field.slide is None]
    if by == "slide" and silent:
        raise DataError(
            f"{silent[0].path}: its name states no slide (as {len(silent)} of {len(dataset.fields)}); give a"
            " slide pattern, or divide by patch"
        )
    unit: By = by or ("patch" if silent else "slide")
    patches = _patch_names(dataset, keep_parts=dataset.layout not in ("bci", "mist"))
    units = (
        _divide_slides(dataset, patches, seed) if unit == "slide" else _divide_patches(dataset, patches, seed)
    )
    if missing := [part for part in PARTS if part not in units.values()]:
        what = f"{len(units)} {unit}{'es' if unit == 'patch' else 's'}"
        raise DataError(
            f"{dataset.root}: {what} are too few for 80/10/10, none is left for {' and '.join(missing)}; put the images into folders train and test"
        )
    warning = SLIDES_UNKNOWN.format(missing=len(silent), all=len(dataset.fields)) if silent else BY_PATCH
    fields = tuple(
        # The former part stays in the group, so that partners in trainA/1.png and testA/1.png keep apart.
        replace(
            f,
            split=units[f.slide or "" if unit == "slide" else patches[f.path]],
            group=_joined(f.split, f.group),
        )
        for f in dataset.fields
    )
    return Split("paper", replace(dataset, fields=fields), seed, unit, (warning,) if unit == "patch" else ())


def part_sizes(patches: int) -> tuple[int, int, int]:
    """Train, val and test sizes of 80/10/10: rounded down, the rest to test.

    So come all counts that the paper prints (Ki67 4288/536/537, BCI 3498/437/438) but `PRINTED`.
    """
    train, val = patches * 8 // 10, patches // 10
    return PRINTED.get(patches, (train, val, patches - train - val))


def leaks(split: Split | Dataset, digests: Mapping[Path, str] | None = None) -> list[Leak]:
    """Every slide and every file content that two parts share, slides first, sorted by name.

    Args:
        digests: A hash of each file's content, where known already; else files of equal length are read.

    Raises:
        DataError: A file that cannot be read.
    """
    fields = [f for f in (split.dataset if isinstance(split, Split) else split).fields if f.split is not None]
    known = digests if digests is not None else _digests(fields)
    slides, contents = defaultdict(list), defaultdict(list)
    for field in fields:
        if field.slide is not None:
            slides[field.slide].append(field)
        if field.path in known:
            contents[known[field.path]].append(field)
    return _shared("slide", slides) + _shared("content", contents)


def _shared(kind: Literal["slide", "content"], groups: Mapping[str, Sequence[Field]]) -> list[Leak]:
    found: list[Leak] = []
    for name, fields in sorted(groups.items()):
        there = {field.split for field in fields}
        if len(there) > 1:
            parts = tuple(part for part in PARTS if part in there)
            found.append(Leak(kind, name, parts, tuple(sorted(field.path for field in fields))))
    return found


def _digests(fields: Iterable[Field]) -> dict[Path, str]:
    """SHA-256 of the files that may have a twin: those of a length that files of two parts have."""
    by_length: dict[int, list[Field]] = defaultdict(list)
    found: dict[Path, str] = {}
    try:
        for field in fields:
            by_length[field.path.stat().st_size].append(field)
        for group in by_length.values():
            if len({field.split for field in group}) > 1:
                found |= {field.path: digest(field.path) for field in group}
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _divide_patches(dataset: Dataset, patches: Mapping[Path, str], seed: int) -> dict[str, Part]:
    """A part for each patch; each marker and each kind (pair, H&E alone, IHC alone) is divided by itself."""
    kind_of: dict[str, set[str]] = defaultdict(set)
    for field in dataset.fields:
        kind_of[patches[field.path]] |= {field.stain, field.marker or ""}
    kinds: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for patch, kind in kind_of.items():
        kinds[tuple(sorted(kind))].append(patch)
    found: dict[str, Part] = {}
    for group in kinds.values():
        train, val, test = part_sizes(len(group))
        if len(group) > 2 and not val:  # of fewer than 10 a tenth is none; each part takes one all the same
            train, val = (train, 1) if test > 1 else (train - 1, 1)
        for i, patch in enumerate(_shuffled(group, seed)):
            found[patch] = "train" if i < train else "val" if i < train + val else "test"
    return found


def _divide_slides(dataset: Dataset, patches: Mapping[Path, str], seed: int) -> dict[str, Part]:
    """A part for each slide, over all markers at once: a slide may be stained for several.

    Slides differ in size, so of some random orders the one whose parts come closest to 80/10/10 is taken.
    """
    on_slide: dict[str, set[str]] = defaultdict(set)
    for field in dataset.fields:
        on_slide[field.slide or ""].add(patches[field.path])
    sizes = {slide: len(names) for slide, names in on_slide.items()}
    # Of fewer than 10 patches a tenth is none; each part takes a slide all the same.
    wanted = {part: max(1, size) for part, size in zip(PARTS, part_sizes(sum(sizes.values())), strict=True)}
    tries = [_fill(_shuffled(sizes, seed, order), sizes, wanted) for order in range(ORDERS)]
    return min(tries, key=lambda parts: _miss(parts, sizes, wanted))


def _fill(slides: Sequence[str], sizes: Mapping[str, int], wanted: Mapping[Part, int]) -> dict[str, Part]:
    """Each slide in turn to the part that lacks most, relative to its size."""
    left: dict[Part, int] = dict(wanted)
    found: dict[str, Part] = {}
    for slide in slides:
        part = max(PARTS, key=lambda part: left[part] / wanted[part])
        found[slide] = part
        left[part] -= sizes[slide]
    return found


def _miss(parts: Mapping[str, Part], sizes: Mapping[str, int], wanted: Mapping[Part, int]) -> int:
    return sum(abs(wanted[p] - sum(sizes[slide] for slide in parts if parts[slide] == p)) for p in PARTS)


def _shuffled(names: Iterable[str], seed: int, order: int = 0) -> list[str]:
    """`names` in an order that depends on themselves, not on how they came."""
    return sorted(
        names,
        key=lambda name: hashlib.sha256(f"{seed}/{order}/{name}".encode(errors="surrogateescape")).digest(),
    )


def _patch_names(dataset: Dataset, keep_parts: bool = False) -> dict[Path, str]:
    """What the patch of each file is called in the whole dataset; partners are one patch.

    Args:
        keep_parts: `trainA/1.png` and `testA/1.png` are two patches. BCI's and MIST's names are unique.
    """
    # H&E that serves several markers makes one patch of all of them.
    shared = any(field.stain == "HE" and field.marker is None for field in dataset.fields)
    return {
        f.path: _joined(None if shared else f.marker, f.split if keep_parts else None, f.group, f.name)
        for f in dataset.fields
    }


def _joined(*words: str | None) -> str:
    return "/".join(word for word in words if word)
