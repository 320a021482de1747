"""A CSV of slides, row by row; what is wrong with it names the table and the line."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from miudiff.config import check_mpp
from miudiff.errors import DataError

COLUMNS = ("slide", "mpp", "roi")
LARGEST = 64 * 2**20  # bytes


@dataclass(frozen=True)
class Entry:
    """A row: paths are relative to the folder of the table."""

    slide: Path
    mpp: float | None
    roi: Path | None


def read_table(table: Path) -> list[Entry]:
    """The slides that a CSV names, one to a row; columns other than `COLUMNS` are the user's own.

    Raises:
        DataError: It cannot be read as CSV, or a row cannot be followed.
    """
    (_, names), *rows = [*_rows(table)] or [(1, [])]
    names = [name.strip() for name in names]
    if not rows or "slide" not in names:
        found = ", ".join(names)[:80] if rows else "no rows"
        raise DataError(
            f"{table}: found {found}, expected a column 'slide', and 'mpp' and 'roi' if wanted, parted by commas"
        )
    if twice := [name for name in COLUMNS if names.count(name) > 1]:
        raise DataError(f"{table}, line 1: the column '{twice[0]}' is there twice; leave one out")
    return [_entry(f"{table}, line {line}", names, row, table.parent) for line, row in rows]


def _entry(where: str, names: list[str], row: list[str], folder: Path) -> Entry:
    if len(row) != len(names):
        raise DataError(
            f"{where}: {len(row)} fields, expected {len(names)} as in the first line; "
            "put a field that holds a comma into quotes"
        )
    if any("\0" in field for field in row):
        raise DataError(f"{where}: holds a NUL, expected text; save the table as CSV (UTF-8)")
    found = {name: field for name, field in zip(names, row, strict=True) if field.strip()}
    if "slide" not in found:
        raise DataError(f"{where}: names no slide; fill in the column 'slide', or delete the line")
    roi = folder / found["roi"] if "roi" in found else None
    return Entry(folder / found["slide"], _mpp(where, found.get("mpp")), roi)


def _mpp(where: str, text: str | None) -> float | None:
    if text is None:
        return None
    try:
        mpp = float(text)
    except ValueError as error:
        raise DataError(f"{where}: mpp '{text[:40]}', expected micrometres per pixel") from error
    try:
        check_mpp(mpp)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return mpp


def _rows(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Each row that is not blank, with the number of its first line."""
    reader = csv.reader(io.StringIO(_text(table), newline=""), strict=True, skipinitialspace=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{table}, line {line}: cannot be read as CSV ({error})") from error


def _text(table: Path) -> str:
    try:
        if table.exists() and not table.is_file():
            raise DataError(f"{table}: cannot be read as CSV (is no regular file)")
        if (size := table.stat().st_size) > LARGEST:
            raise DataError(
                f"{table}: {size / 2**20:.0f} MiB, expected a table of slides of at most {LARGEST >> 20} MiB"
            )
        content = table.read_bytes()
    except OSError as error:
        raise DataError(f"{table}: cannot be read as CSV ({error.strerror})") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{table}, line {line}: is not UTF-8; save the table as CSV (UTF-8)") from error
