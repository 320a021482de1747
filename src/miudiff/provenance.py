"""What a result was made of, and whether that is what a command would make it of now.

A record is JSON: settings by name, the source by a digest of its content. A result is taken for a command's own only where its
record has every setting of the command; what is free to differ (where a file lies, how long it took) is named by the caller.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from miudiff.errors import DataError

WHOLE = 64 * 2**20  # bytes: files up to this are digested whole
SAMPLES, SAMPLE = (
    256,
    2**16,
)  # a larger file is digested at so many places, of so many bytes each; the first is its header
SOURCE = "source_sha256"  # the key of a source's digest in a record; "source" beside it says where it lay


def source_digest(path: Path, fingerprint: str = "") -> str:
    """What a source is known by, in hexadecimal.

    A file of at most `WHOLE` bytes is known by its content; a larger one by its size, its modification time, its first bytes and
    samples all over it.

    Args:
        fingerprint: What a reader knows of files that belong to it.

    Raises:
        DataError: It cannot be read.
    """
    try:
        status = path.stat()
        with path.open("rb") as file:
            if status.st_size <= WHOLE:
                digest = hashlib.file_digest(file, "sha256")
            else:
                digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns}".encode())
                for i in range(SAMPLES):
                    file.seek((status.st_size - SAMPLE) * i // (SAMPLES - 1))
                    digest.update(file.read(SAMPLE))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    digest.update(fingerprint.encode())
    return digest.hexdigest()[:32]


def difference(now: Mapping[str, Any], before: Mapping[str, Any], free: Collection[str] = ()) -> str:
    """What `before` has otherwise than `now`, in words: the first setting, and the source; "" if they are alike.

    Args:
        free: Keys that may differ.
    """
    other = [key for key in now if key not in free and before.get(key) != now[key]]
    words = []
    if settings := [key for key in other if key != SOURCE]:
        path, was, is_now = _innermost(settings[0], before.get(settings[0]), now[settings[0]])
        words.append(f"another '{path}' ({_short(was)}, now {_short(is_now)})")
    if SOURCE in other:
        lay, lies = before.get("source"), now.get("source")
        where = f"{lay}, now {lies}" if lay != lies else f"{lies} has changed"
        words.append(f"another source ({where})")
    return " and ".join(words)


def settings_digest(now: Mapping[str, Any], free: Collection[str] = ()) -> str:
    """A digest of what is not free to differ."""
    fixed = {key: value for key, value in sorted(now.items()) if key not in free}
    return hashlib.sha256(repr(fixed).encode(errors="backslashreplace")).hexdigest()


def _innermost(key: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The first difference within two values, and where it lies."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for inner in now:
            if before.get(inner) != now[inner]:
                return _innermost(f"{key}.{inner}", before.get(inner), now[inner])
    return key, before, now


def _short(value: Any) -> str:
    text = "none" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
