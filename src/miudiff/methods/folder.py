"""A model's folder on disk: it appears whole or not at all, and its index says the digests of its files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from miudiff.checkpoints import WEIGHTS
from miudiff.errors import CheckpointError, ConfigError, DataError, unwritable
from miudiff.methods.palette import Palette

INDEX = "model_index.json"
PARTS = ("unet", "scheduler", "mi_estimator", "classifier", "generator", "student")


def check_free(folder: Path, overwrite: bool) -> None:
    """Make sure that a model may be written to `folder`.

    Raises:
        ConfigError: A model is there and is not to be overwritten.
        DataError: Something else is there.
    """
    if not folder.is_dir():
        if folder.exists():
            raise DataError(f"{folder}: is a file, expected a folder to write; give another name")
        return
    names = sorted(path.name for path in folder.iterdir())
    foreign = [name for name in names if name not in (*PARTS, INDEX, "README.md")]
    if foreign:
        raise DataError(
            f"{folder}: holds '{foreign[0]}', which is no part of a model; move it away, or give another folder"
        )
    if names and not overwrite:
        raise ConfigError(f"{folder}: is there already; give --overwrite, or another folder")


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A new folder to write a model to; it takes the place of `folder` and all in it when the block ends well.

    Raises:
        DataError: It cannot be written, or `folder` holds more than a model.
    """
    folder = folder.resolve()
    new, old = (folder.with_name(f".{folder.name}.{kind}.part") for kind in ("new", "old"))
    try:
        if old.exists() and not folder.exists():  # a kill came between the two renames below
            os.replace(old, folder)
        check_free(folder, overwrite=True)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a model's parts, by its path in `folder`."""
    files = sorted(path for part in PARTS for path in (folder / part).glob("*"))
    return {path.relative_to(folder).as_posix(): _digest(path.read_bytes()) for path in files}


def fingerprint(folder: Path, index: Mapping[str, Any], palette: Mapping[str, Palette] | None = None) -> str:
    """Short digest of every weights file and palette: two trainings of one name are two models.

    Args:
        index: The content of `model_index.json`; files whose digests it states are held to them.

    Raises:
        CheckpointError: A file is not the one that the index states.
    """
    stated = index.get("sha256", {})
    if not isinstance(stated, Mapping):
        raise CheckpointError(f"{folder / INDEX}: 'sha256': found {stated!r:.60}, expected digests by file")
    short = hashlib.sha256()
    for path in sorted(path for path in folder.glob("*/*") if path.is_file()):
        expected = stated.get(path.relative_to(folder).as_posix())
        if expected is None and path.name != WEIGHTS:
            continue
        content = path.read_bytes()
        if expected not in (None, _digest(content)):
            raise CheckpointError(
                f"{path}: has changed since the model was made (its SHA-256 is not the one in {INDEX}); copy the model again, or, if the change is yours, remove 'sha256' from {INDEX}"
            )
        if path.name == WEIGHTS:
            short.update(content)
    for marker, curve in sorted((palette or {}).items()):
        short.update(f"{marker} {curve.model_dump_json()}".encode())
    return short.hexdigest()[:16]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
