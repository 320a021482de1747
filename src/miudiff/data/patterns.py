"""The files that patterns as in `trainB/*.jpg` name, and those that they leave out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from miudiff.errors import DataError
from miudiff.images import list_images


def matching(root: Path, pattern: str, what: str) -> list[Path]:
    """The files below `root` that a pattern names, or the images of the folder that it is; hidden ones are left out.

    Args:
        what: What to call the pattern in a message.

    Raises:
        DataError: It cannot be a pattern, or is a folder without images.
    """
    with _refused(what, pattern):
        if (root / pattern).is_dir():
            return list_images(root / pattern)
        return sorted(p for p in root.glob(pattern) if p.is_file() and not p.name.startswith("."))


def without(paths: Sequence[Path], patterns: Sequence[str], what: str) -> list[Path]:
    """The paths that no pattern names.

    Raises:
        DataError: One cannot be a pattern.
    """
    kept = list(paths)
    for pattern in patterns:
        with _refused(what, pattern):
            kept = [path for path in kept if not path.match(pattern)]
    return kept


@contextlib.contextmanager
def _refused(what: str, pattern: str) -> Iterator[None]:
    """Tell what pathlib raises for a pattern that is none."""
    try:
        yield
    except (ValueError, NotImplementedError, RecursionError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise DataError(
            f"{what} '{pattern[:80]}': cannot be used as a pattern ({reason}), expected one as in trainB/*.jpg"
        ) from error
