"""What lies in a data root: BCI or MIST as published, a CUT folder, or plain folders of H&E and IHC images.

Folders say the stain, the split and the marker; names say which images belong together, and, in MIST alone,
the slide. What neither says is None, never a guess: an invented slide hides a leak between train and test.

    BCI     HE/train HE/test IHC/train IHC/test       00007_test_1+.png: patch number, the slide's HER2 level
    MIST    HER2/TrainValAB/trainA trainB valA valB   15M2102762_18_18.jpg: slide, the patch's place; A is H&E
    CUT     trainA trainB testA testB                 names of any kind, H&E and IHC paired or not
    plain   HE IHC, or HE and a folder for each marker, or one folder of IHC; each may hold train, val, test

Any of these may lie deeper (BCI_dataset/HE/train), and several markers side by side, but not datasets of two
layouts. `splits` divides a dataset, `check` looks into its files.
"""

from __future__ import annotations

import os
import stat
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from miudiff.data.names import (
    STAINS,
    Place,
    bci_split,
    find_slide,
    read_folders,
    read_root,
)
from miudiff.data.names import Layout as Layout
from miudiff.data.names import Stain as Stain
from miudiff.data.names import name_of as name_of
from miudiff.data.names import slide_of as slide_of
from miudiff.data.recognise import recognise, refuse_several
from miudiff.errors import DataError
from miudiff.images import SUFFIXES
from miudiff.naming import compile_pattern, words_of

BCI_NOTE = "BCI names number patches and carry no slide id: whether a slide is in two parts cannot be seen"

NOT_TISSUE = {"mask", "masks", "label", "labels", "annotation", "annotations", "thumbnail", "thumbnails"}

MOST_LINKS = 100  # that may lead to one folder

_Where = tuple[str | None, str, str]  # split, group, name


@dataclass(frozen=True)
class Field:
    """One image file. What neither its folders nor its name say is None.

    Attributes:
        name: The file's name without its ending; partners have the same.
        marker: The antigen; on H&E that of the folder's IHC images.
        group: The folders that say neither stain nor split nor marker; partners have the same.
    """

    path: Path
    name: str
    stain: Stain
    split: str | None = None
    marker: str | None = None
    slide: str | None = None
    group: str = ""

    @property
    def alone(self) -> bool:
        """Whether its folder says that it has no partner, as in `IHC_unpaired`."""
        return "unpaired" in self.group.lower()


@dataclass(frozen=True)
class Pair:
    """An H&E image and the IHC image of the same place."""

    he: Field
    ihc: Field


@dataclass(frozen=True)
class Dataset:
    """The images below `root`, sorted by path.

    Attributes:
        notes: What was assumed and what the layout cannot say, a sentence each.
        left_out: Files below `root` that are no part of it.
    """

    root: Path
    layout: Layout
    fields: tuple[Field, ...]
    notes: tuple[str, ...] = ()
    left_out: tuple[Path, ...] = ()

    @property
    def markers(self) -> tuple[str, ...]:
        """The markers that the folders name, sorted."""
        return tuple(sorted({f.marker for f in self.fields if f.marker is not None}))

    @property
    def splits(self) -> tuple[str, ...]:
        """Those of train, val and test that there are."""
        found = {f.split for f in self.fields}
        return tuple(split for split in ("train", "val", "test") if split in found)

    def select(
        self, stain: Stain | None = None, split: str | None = None, marker: str | None = None
    ) -> list[Field]:
        """The images of a stain, a split, a marker; None takes all."""
        return [
            field
            for field in self.fields
            if stain in (None, field.stain)
            and split in (None, field.split)
            and marker in (None, field.marker)
        ]

    def files(
        self, stain: Stain | None = None, split: str | None = None, marker: str | None = None
    ) -> list[Path]:
        """The paths of `select`."""
        return [field.path for field in self.select(stain, split, marker)]

    def pairs(self, split: str | None = None, marker: str | None = None) -> list[Pair]:
        """H&E and IHC images of one name, sorted by the IHC path. A name of several images makes no pair."""
        he_of, ihc_of = self._by_key("HE"), self._by_key("IHC")
        found: list[Pair] = []
        for (where, antigen), ihc in ihc_of.items():
            # One H&E folder may serve the IHC folders of several markers.
            he = he_of.get((where, antigen)) or he_of.get((where, None), [])
            if len(he) == len(ihc) == 1:
                found.append(Pair(he[0], ihc[0]))
        wanted = [p for p in found if split in (None, p.ihc.split) and marker in (None, p.ihc.marker)]
        return sorted(wanted, key=lambda pair: pair.ihc.path)

    def unpaired(self) -> list[Field]:
        """The images without a partner, but not those whose folder says so; none where there is one stain."""
        if len({field.stain for field in self.fields}) < 2:
            return []
        paired = {field.path for pair in self.pairs() for field in (pair.he, pair.ihc)}
        return [field for field in self.fields if field.path not in paired and not field.alone]

    def counts(self) -> dict[tuple[Stain, str | None, str | None], int]:
        """How many images there are of each (stain, marker, split)."""
        found = Counter((field.stain, field.marker, field.split) for field in self.fields)
        return dict(sorted(found.items(), key=lambda item: tuple(part or "" for part in item[0])))

    def _by_key(self, stain: Stain) -> dict[tuple[_Where, str | None], list[Field]]:
        found: dict[tuple[_Where, str | None], list[Field]] = defaultdict(list)
        for field in self.select(stain):
            found[(field.split, field.group, field.name), field.marker].append(field)
        return found


def open_dataset(
    root: str | Path, layout: Layout | Literal["auto"] = "auto", slide_pattern: str | None = None
) -> Dataset:
    """The dataset below `root`.

    Args:
        layout: "auto" recognises it by names and folders.
        slide_pattern: A regular expression with a group `slide`, searched in the names without ending, as in
            `^(?P<slide>[^_]+)_`; for sets whose names carry the slide in their own way.

    Raises:
        DataError: No such folder, no images in it, several datasets, another layout, or folders that do not say their stain.
    """
    root = Path(root)
    pattern = None if slide_pattern is None else compile_pattern(slide_pattern)
    if layout not in ("auto", *get_args(Layout)):
        raise DataError(f"layout '{layout}': not known, expected auto, {', '.join(get_args(Layout))}")
    images, others = _walk(root)
    if not images:
        raise DataError(f"{root}: no images below it, expected files ending in {', '.join(SUFFIXES)}")
    if layout not in ("cut", "plain"):
        refuse_several(root, images)
    recognised = recognise(root, images)
    found = recognised if layout == "auto" else layout
    if found == "bci" and recognised != "bci":
        raise DataError(
            f"{root}: not BCI, found names as {images[0].name}, expected 00007_test_1+.png; try auto"
        )
    places, notes = _places(root, images, found)
    fields = [
        Field(
            path=path,
            name=name_of(path),
            stain=place.stain,
            split=place.split or (bci_split(name_of(path)) if found == "bci" else None),
            marker=place.marker or ("HER2" if found == "bci" else None),
            slide=find_slide(name_of(path), found, pattern),
            group=place.group,
        )
        for path, place in places.items()
        if place.stain is not None
    ]
    taken = {field.path for field in fields}
    others += [path for path in images if path not in taken]
    if found == "bci" and pattern is None:
        notes.append(BCI_NOTE)
    return Dataset(
        root, found, tuple(sorted(fields, key=lambda field: field.path)), tuple(notes), tuple(sorted(others))
    )


def _walk(root: Path) -> tuple[list[Path], list[Path]]:
    """Image files by their endings, and what else there is: other files, and what is named like an image and is no file.

    Hidden ones are neither.
    """
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise DataError(f"{root}: {found}, expected the folder that holds the images")
    images: list[Path] = []
    others: list[Path] = []
    visits: Counter[str] = Counter()
    for folder, below, names in os.walk(root, followlinks=True, onerror=_unreadable):
        visits[os.path.realpath(folder)] += 1
        if visits[os.path.realpath(folder)] > MOST_LINKS:
            raise DataError(
                f"{folder}: more than {MOST_LINKS} links lead to this folder; remove links between folders"
            )
        if os.path.realpath(folder) in {os.path.realpath(parent) for parent in Path(folder).parents}:
            below.clear()  # a link that leads back to a folder above it
            continue
        below[:] = sorted(name for name in below if not name.startswith("."))
        others += [Path(folder, name) for name in below if name.lower().endswith(SUFFIXES)]
        for name in sorted(name for name in names if not name.startswith(".")):
            path = Path(folder, name)
            (images if name.lower().endswith(SUFFIXES) and not why_special(path) else others).append(path)
    return images, others


def why_special(path: Path) -> str | None:
    """What a path is that is there and is no regular file; reading it might never end."""
    try:
        mode = path.stat().st_mode
    except OSError:  # who reads it says what is wrong with it
        return None
    if stat.S_ISREG(mode):
        return None
    what = "a folder" if stat.S_ISDIR(mode) else "a pipe, a socket or a device, left out"
    return f"is {what}, expected an image file"


def left_out(folder: Path) -> list[tuple[Path, str]]:
    """What lies directly in `folder` under an image's name and is no file, and what it is."""
    named = sorted(p for p in folder.iterdir() if p.name.lower().endswith(SUFFIXES) and p.name[0] != ".")
    return [(path, why) for path in named if (why := why_special(path))]


def _unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename}: cannot be read ({error.strerror})") from error


def _places(root: Path, images: list[Path], layout: Layout) -> tuple[dict[Path, Place], list[str]]:
    """What the folders say of each image, completed where they leave no doubt; and what was assumed."""
    above = read_root(root)
    folders = {f: read_folders(f.relative_to(root).parts, above) for f in {path.parent for path in images}}
    silent = {folder: place for folder, place in folders.items() if place.stain is None}
    notes: list[str] = []
    if silent:
        completed, notes = _complete(root, images, folders, silent, layout)
        folders |= completed
    return {path: folders[path.parent] for path in images}, notes


def _complete(
    root: Path,
    images: list[Path],
    folders: dict[Path, Place],
    silent: dict[Path, Place],
    layout: Layout,
) -> tuple[dict[Path, Place], list[str]]:
    """The stain of folders that do not say it: beside one stain a single folder is the other, alone IHC."""
    said = {place.stain for place in folders.values() if place.stain is not None}
    # Images beside named folders, and masks, are of no stain.
    aside = {folder for folder in silent if words_of(folder.name) & NOT_TISSUE or (said and folder == root)}
    candidates = {folder: place for folder, place in silent.items() if folder not in aside}
    names = sorted({place.group for place in candidates.values()})
    if not said and layout == "bci":
        raise DataError(
            f"{root}: BCI images outside of folders HE and IHC, expected HE/train, IHC/train, ..."
        )
    if len(names) != 1 or said == {"HE", "IHC"}:
        if not said:
            found = _quoted(sorted({place.group for place in silent.values()}))
            raise DataError(
                f"{root}: the folders {found} do not say their stain; rename that of H&E to HE and the others"
                " to IHC or their marker"
            )
        return {}, [f"left out, since their folders say no stain: {_quoted(names)}"] if names else []
    stain: Stain = "HE" if said == {"IHC"} else "IHC"
    for path in () if said else images:
        if "HE" in {STAINS.get(word) for word in words_of(name_of(path))}:
            raise DataError(
                f"{root}: the name of {path.name} says H&E, its folder nothing; make folders HE and IHC"
            )
    # Beside a named folder this one's own name stands for its stain, so it is no part of the group.
    group = names[0].rpartition("/")[0] if said else names[0]
    completed = {folder: replace(place, stain=stain, group=group) for folder, place in candidates.items()}
    where = f"folder '{names[0]}'" if names[0] else "folder"
    return completed, [f"the {where} does not say its stain; it is taken as {stain}"]


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name or '.'}'" for name in names)
