"""What `--data`, `--mpp`, `--model` and `--marker` ask for, made sure of before anything is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from miudiff.config import check_mpp
from miudiff.errors import DataError
from miudiff.naming import SHIPPED

TWIN = "twin"
TWIN_MPP = 0.5  # the shipped weights' scale


@dataclass(frozen=True)
class Source:
    """One dataset of the comparison.

    Attributes:
        root: None for the twin set.
        mpp: Micrometres per pixel of its files, where the user states it.
        model: The model that its diffusion systems use, None where theirs is to be trained.
        marker: The marker that this model stains it for, where the user states it.
    """

    name: str
    root: Path | None
    mpp: float | None = None
    model: str | None = None
    marker: str | None = None


def parse_sources(
    data: Sequence[str],
    scales: Sequence[str] = (),
    models: Sequence[str] = (),
    markers: Sequence[str] = (),
) -> list[Source]:
    """The datasets that `data` names: `twin`, or NAME=ROOT.

    Args:
        scales: NAME=UM_PER_PIXEL words.
        models: NAME=MODEL words; the twin set has the shipped model where none is named.
        markers: NAME=MARKER words, each for a dataset that has a model.

    Raises:
        DataError: A word of no such form, a name given twice or not at all, no such folder, or no scale of a microscope.
    """
    roots = [_root(word) for word in data]
    names = [name for name, _ in roots]
    for name in names:
        if len([other for other in names if other.lower() == name.lower()]) > 1:
            raise DataError(f"--data {name}: given twice, expected one dataset of each name")
    mpp = _by_name("--mpp", scales, [n for n in names if n != TWIN], lambda name: f"{name}=0.46")
    model = _by_name("--model", models, names, lambda name: f"{name}=models/her2")
    marker = _by_name("--marker", markers, names, lambda name: f"{name}=Ki67")
    for name in marker:
        if name != TWIN and name not in model:
            raise DataError(
                f"--marker {name}={marker[name]}: says which of a model's markers is stained, but {name} has none; give --model {name}=FOLDER, too"
            )
    return [
        Source(
            name,
            root,
            _scale(name, mpp[name]) if name in mpp else TWIN_MPP if root is None else None,
            model.get(name, SHIPPED if root is None else None),
            marker.get(name),
        )
        for name, root in roots
    ]


def _root(word: str) -> tuple[str, Path | None]:
    if word == TWIN:
        return TWIN, None
    name, _, root = word.partition("=")
    if not root or not name.strip() or any(c in name for c in "/\\") or name.startswith("."):
        raise DataError(
            f"--data {word}: expected twin, or NAME=ROOT such as bci=/data/BCI_dataset; NAME is a folder's, without slashes or a leading dot"
        )
    if name == TWIN:
        raise DataError(
            f"--data {word}: the name twin is that of the set that ships; give the dataset another, as in my{word}"
        )
    if not Path(root).is_dir():
        found = "is a file" if Path(root).is_file() else "no such folder"
        raise DataError(f"--data {word}: {found}, expected the folder that holds the images")
    return name, Path(root)


def _by_name(
    option: str, words: Sequence[str], names: Sequence[str], example: Callable[[str], str]
) -> dict[str, str]:
    """NAME=VALUE words by name; each must be that of a dataset, and only once."""
    found: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if not value:
            raise DataError(f"{option} {word}: expected NAME=VALUE, as in {example(name or 'bci')}")
        if name not in names:
            given = f"expected one of {', '.join(names)}" if names else "none of --data takes it"
            raise DataError(f"{option} {word}: no dataset of this name, {given}")
        if name in found:
            raise DataError(f"{option} {word}: '{name}' has {found[name]} already, expected one value")
        found[name] = value
    return found


def _scale(name: str, value: str) -> float:
    try:
        mpp = float(value)
    except ValueError:
        raise DataError(f"--mpp {name}={value}: expected NAME=number, as in {name}=0.46") from None
    try:
        check_mpp(mpp)
    except DataError as error:
        raise DataError(f"--mpp {name}={value}: {error}") from None
    return mpp
