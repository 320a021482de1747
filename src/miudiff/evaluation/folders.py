"""Which file belongs to which: virtual stains, true IHC and H&E matched by name, and every problem named.

Names match without their endings, so `a.png` has the partner `a.jpg`. A file that is left over, that has two
candidates, cannot be read or is of another size is a `Problem`; nothing is passed over in silence but files
that are no images by their ending, and those are counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from miudiff.errors import DataError
from miudiff.evaluation.fidelity import SMALLEST
from miudiff.images import SUFFIXES, irregular, list_images, read_image, stem

Kind = Literal["unmatched", "ambiguous", "unreadable", "size"]


@dataclass(frozen=True)
class Case:
    """One image's files."""

    name: str
    generated: Path
    real: Path
    source: Path | None


@dataclass(frozen=True)
class Problem:
    """A file that cannot be scored: `message` names it, what was found, what was expected, and the fix."""

    name: str
    kind: Kind
    message: str


@dataclass(frozen=True)
class Folders:
    """What lies in the folders: cases that may be scored, problems, images in each, and files that are none."""

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    images: Mapping[str, int]
    ignored: tuple[str, ...]


def match(generated: Path, reference: Path, source: Path | None) -> Folders:
    """Match the images of two folders, or of three, by their names without endings.

    Raises:
        DataError: A folder is not there, or holds no images.
    """
    given = {"generated": generated, "reference": reference}
    folders = given if source is None else given | {"source": source}
    files = {role: list_images(folder) for role, folder in folders.items()}
    ignored = [
        str(path)
        for role, folder in folders.items()
        for path in sorted(set(folder.iterdir()) - set(files[role]))
        if not path.is_dir() or path.suffix.lower() in SUFFIXES
    ]
    ignored += [
        str(path) for folder in folders.values() for path in irregular(folder) if str(path) not in ignored
    ]
    named = {role: _by_stem(paths) for role, paths in files.items()}
    cases, problems = [], []
    for name in sorted(set().union(*named.values())):
        found = {role: named[role].get(name, []) for role in folders}
        wrong = [
            *(_ambiguous(name, paths) for paths in found.values() if len(paths) > 1),
            *(_missing(name, folders[role], found) for role, paths in found.items() if not paths),
        ]
        problems += wrong
        if not wrong:
            he = found["source"][0] if source is not None else None
            cases.append(Case(name, found["generated"][0], found["reference"][0], he))
    counts = {role: len(paths) for role, paths in files.items()}
    return Folders(tuple(cases), tuple(problems), counts, tuple(ignored))


def inspect(case: Case) -> list[Problem]:
    """What keeps a case's files from being scored: all that cannot be read, else a size that does not fit."""
    problems: list[Problem] = []
    sizes: dict[Path, tuple[int, int]] = {}
    for path in (case.generated, case.real, case.source):
        if path is None:
            continue
        try:
            height, width, _ = read_image(path).shape
            sizes[path] = (width, height)
        except DataError as error:
            problems.append(Problem(case.name, "unreadable", str(error)))
    first = sizes.get(case.generated)
    for path, size in sizes.items():
        if first is not None and size != first:
            found = f"{size[0]} x {size[1]} pixels, but {case.generated} has {first[0]} x {first[1]}"
            problems.append(
                Problem(case.name, "size", f"{path}: {found}, expected one size; resize or crop one")
            )
    if first is not None and min(first) < SMALLEST:
        found = f"{first[0]} x {first[1]} pixels, expected at least {SMALLEST} a side for VIF"
        problems.append(Problem(case.name, "size", f"{case.generated}: {found}; score larger tiles"))
    return problems


def count_kinds(problems: Sequence[Problem]) -> str:
    """How many problems of which kind, in words."""
    counts = Counter(problem.kind for problem in problems)
    return ", ".join(f"{number} {kind}" for kind, number in counts.items())


def _by_stem(paths: Sequence[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in paths:
        found.setdefault(stem(path), []).append(path)
    return found


def _ambiguous(name: str, paths: Sequence[Path]) -> Problem:
    names = " and ".join(path.name for path in paths)
    folder = paths[0].parent
    return Problem(
        name, "ambiguous", f"{folder}: {names} share one name, expected one image of it; move one away"
    )


def _missing(stem: str, folder: Path, found: Mapping[str, Sequence[Path]]) -> Problem:
    present = next(paths[0] for paths in found.values() if paths)
    message = f"{present}: has no partner in {folder}, expected {stem} with an image's ending; add it or move this one away"
    return Problem(stem, "unmatched", message)
