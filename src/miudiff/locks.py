"""Locks between processes: a file that one process holds until it lets go or ends, however it ends.

They hold on one machine and on shared disks that pass locks on. Where there are none (Windows, some network disks), every
process goes on as if it were alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from miudiff.errors import DataError


def lock_of(path: Path) -> Path:
    """The lock of whoever makes the file `path`, beside it; its name is short, since that of `path` need not be."""
    return path.with_name(f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]}.lock")


@contextlib.contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[IO[str] | None]:
    """Hold the file `path`, which is made and afterwards removed; None where another process holds it.

    Args:
        wait: Until the other process lets go, for what takes a moment only.

    Raises:
        DataError: It cannot be made.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+", encoding="utf-8")
        except OSError as error:
            raise DataError(
                f"{path.parent}: cannot be written ({error.strerror}); give another target"
            ) from error
        with file:
            if not _flock(file, wait):
                yield None
                return
            if not _is_at(path, file):  # its holder removed it between our opening and our locking
                continue
            try:
                yield file
            finally:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            return


def is_held(path: Path) -> bool:
    """Whether another process holds `path`."""
    try:
        with path.open(encoding="utf-8") as file:
            return not _flock(file, wait=False)
    except OSError:
        return False


def _flock(file: IO[str], wait: bool) -> bool:
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a disk without locks
        return True
    return True


def _is_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False
