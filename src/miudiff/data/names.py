"""What names say: a folder's of the stain, the split and the marker, a file's of its partner, its part and its slide.

What a name does not say is None, never a guess: an invented slide hides a leak between train and test. `layouts` joins what the
names say to a dataset.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from miudiff.images import SUFFIXES
from miudiff.naming import MARKERS, compile_pattern, markers_in, squeeze, words_of

Layout = Literal["bci", "mist", "cut", "plain"]
Stain = Literal["HE", "IHC"]

BCI_NAME = re.compile(r"\d{5}_(train|val|test)_[0-3]\+?")
MIST_NAME = re.compile(r"\d+[A-Z]\d+_\d+_\d+")

STAINS: dict[str, Stain] = {"he": "HE", "h&e": "HE", "ihc": "IHC"}
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLITS |= {"test": "test", "testing": "test"}


@dataclass(frozen=True)
class Place:
    """What the folders above a file say."""

    stain: Stain | None
    split: str | None
    marker: str | None
    group: str


def name_of(path: str | PurePath) -> str:
    """A file's name without the endings that only say the format: `a.ome.tif` and `a.png` are both `a`."""
    name = PurePath(path).name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    return name[:-4] if name.lower().endswith(".ome") else name


def slide_of(name: str, layout: Layout, slide_pattern: str | None = None) -> str | None:
    """The slide that a file's name states, or None: BCI's names state none, and other sets' need a pattern.

    Raises:
        DataError: `slide_pattern` is no regular expression or has no group `slide`.
    """
    pattern = None if slide_pattern is None else compile_pattern(slide_pattern)
    return find_slide(name_of(name), layout, pattern)


def find_slide(name: str, layout: Layout, pattern: re.Pattern[str] | None) -> str | None:
    """As `slide_of`, of a name without its ending."""
    if pattern is not None:
        match = pattern.search(name)
        return match["slide"] if match else None
    if layout == "mist" and "_" in name:
        return name.partition("_")[0] or None
    return None


def read_folders(parts: tuple[str, ...], above: Place) -> Place:
    """What the folders `parts` say together with `above`, which says what they leave open."""
    stain, split, marker = above.stain, above.split, above.marker
    rest: list[str] = []
    for part in parts:
        here = _meaning(part)
        # The folder nearest to the file decides.
        stain, split, marker = here.stain or stain, here.split or split, here.marker or marker
        rest += [here.group] if here.group else []
    if stain is None and marker is not None:
        stain = "IHC"
    return Place(stain, split, marker, "/".join(rest))


def _meaning(folder: str) -> Place:
    """What one folder's name says; `group` is the name itself where it says nothing."""
    if cut := cut_folder(folder):
        return cut
    words = words_of(folder)
    stains = {STAINS[word] for word in words if word in STAINS}
    splits = {SPLITS[word] for word in words if word in SPLITS}
    markers = markers_in(folder)
    if folder in ("A", "B"):  # as pix2pix names the two sides
        stains = {"HE" if folder == "A" else "IHC"}
    # "HE_IHC" or "train_test" holds both and says neither.
    stain = stains.pop() if len(stains) == 1 else None
    split = splits.pop() if len(splits) == 1 else None
    marker = markers.pop() if len(markers) == 1 else None
    silent = stain is None and split is None and marker is None
    return Place(stain, split, marker, folder if silent else "unpaired" if "unpaired" in words else "")


def cut_folder(folder: str) -> Place | None:
    """What a folder of CUT's or MIST's says (trainA, valB, ...); None for any other."""
    match = re.fullmatch(r"(train|val|valid|test)_?([AB])", folder, re.IGNORECASE)
    if match is None:
        return None
    return Place("HE" if match[2].upper() == "A" else "IHC", SPLITS[match[1].lower()], None, "")


def read_root(root: Path) -> Place:
    """What the root's own name says, where it is nothing but a stain, a split or a marker."""
    real = root.resolve()
    name = real.parent.name if real.name.lower() == "trainvalab" else real.name
    squeezed = squeeze(name)
    return Place(STAINS.get(squeezed), SPLITS.get(squeezed), MARKERS.get(squeezed), "")


def bci_split(name: str) -> str | None:
    """The part that a name of BCI's says."""
    match = BCI_NAME.fullmatch(name)
    return match[1] if match else None
