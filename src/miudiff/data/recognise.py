"""Which layout a folder has, by its names and folders, and whether it holds more than one dataset."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from miudiff.data.names import BCI_NAME, MIST_NAME, Layout, Place, cut_folder, name_of, read_folders
from miudiff.errors import DataError

PUBLISHED: dict[Layout, re.Pattern[str]] = {"bci": BCI_NAME, "mist": MIST_NAME}


def recognise(root: Path, images: Iterable[Path]) -> Layout:
    """The layout that most names, or else the folders, speak for."""
    paths = list(images)
    folders = {part.lower() for path in paths for part in path.relative_to(root).parts[:-1]}
    if _most_match(BCI_NAME, paths):
        return "bci"
    if _most_match(MIST_NAME, paths) or "trainvalab" in folders:
        return "mist"
    return "cut" if any(cut_folder(folder) for folder in folders) else "plain"


def _most_match(pattern: re.Pattern[str], paths: list[Path]) -> bool:
    return sum(pattern.fullmatch(name_of(path)) is not None for path in paths) * 2 > len(paths)


def refuse_several(root: Path, images: Sequence[Path]) -> None:
    """Refuse a root below which datasets of two layouts lie: taken as one, what one of them says of its slides is lost.

    Raises:
        DataError: Names of BCI and of MIST, or folders that hold both stains and differ in layout.
    """
    top: dict[Path, list[Path]] = defaultdict(list)
    for path in images:
        below = path.relative_to(root).parts[:-1]
        top[root / below[0] if below else root].append(path)
    if len(top) == 1 and root not in top:
        ((folder, paths),) = top.items()
        return refuse_several(folder, paths)
    found: dict[Layout, Path] = {}
    for layout, pattern in PUBLISHED.items():
        if named := [folder for folder, paths in top.items() if _any_match(pattern, paths)]:
            found[layout] = named[0]
    if len(found) < 2:
        whole = [folder for folder, paths in top.items() if folder != root and _both_stains(folder, paths)]
        found = {recognise(folder, top[folder]): folder for folder in whole}
    if len(found) > 1:
        each = " and ".join(f"{layout} in {folder}" for layout, folder in sorted(found.items()))
        raise DataError(f"{root}: holds several datasets, {each}; take them one by one")


def _any_match(pattern: re.Pattern[str], paths: Iterable[Path]) -> bool:
    return any(pattern.fullmatch(name_of(path)) for path in paths)


def _both_stains(folder: Path, paths: Iterable[Path]) -> bool:
    """Whether the folders below say both stains, as those of a whole dataset do."""
    nothing = Place(None, None, None, "")
    parts = {path.relative_to(folder).parts[:-1] for path in paths}
    return {"HE", "IHC"} <= {read_folders(part, nothing).stain for part in parts}
