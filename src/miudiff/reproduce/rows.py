"""The rows of each table: a system, its preset, and what a row changes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from miudiff.config import Strict
from miudiff.errors import ConfigError
from miudiff.methods.presets import ABLATIONS, PRESETS, preset
from miudiff.methods.systems import SYSTEMS, configure
from miudiff.reproduce.budget import Task

OURS = "MIU-Diff"
COMPARED: Mapping[str, str] = {
    "CUT": "cut",
    "ASP": "asp",
    "ILVR": "ilvr",
    "SDEdit": "sdedit",
    "EGSDE": "egsde",
}
TABLES: Mapping[str, tuple[str, ...]] = {
    "table1": (
        "Eq. 2",
        "I-guided",
        "U-guided",
        "w/o MI",
        "w/ PCL",
        "l2",
        "w/o PCL",
        "w/o MI, w/o PCL",
        "w/o palette",
        "w/o variety",
    ),
    "table2": ("w/ PCL", "t0'=80", "t0'=10", "S=500", "S=300", "S=100"),
    "figure3": (),
}


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        method: A name in `methods.systems.SYSTEMS`, or a generator's: "cut", "asp".
        config: The method's settings; None for a generator, which has none.
    """

    name: str
    method: str
    preset: str
    config: Strict | None

    @property
    def needs(self) -> tuple[Task, ...]:
        """The learners that must have been trained."""
        return _NEEDS[self.method]

    @property
    def slug(self) -> str:
        """Its folder's name."""
        words = f"{self.name} {self.preset}" if self.method == "miu-diff" else self.name
        return "-".join("".join(c if c.isalnum() else " " for c in words.lower()).split())


_NEEDS: Mapping[str, tuple[Task, ...]] = {
    "cut": ("cut",),
    "asp": ("asp",),
    "ilvr": ("score",),
    "sdedit": ("score",),
    "egsde": ("score", "classifier"),
    "miu-diff": ("score", "mi"),
}


def rows_of(table: str, base: str, reverse_steps: int | None) -> list[Row]:
    """The rows of a table; MIU-Diff's with the preset `base`.

    Args:
        reverse_steps: For every diffusion system; None takes each preset's own.

    Raises:
        ConfigError: No such table or preset.
    """
    if table not in TABLES or base not in PRESETS:
        raise ConfigError(
            f"'{table}', preset '{base}': expected one of {', '.join(TABLES)}, and one of {', '.join(PRESETS)}"
        )
    compared = (
        []
        if table == "table2"
        else [_compared(name, method, reverse_steps) for name, method in COMPARED.items()]
    )
    presets = [base] if table == "figure3" else sorted(PRESETS)
    whole = [_ours(f"{OURS}, {name}", name, (), reverse_steps) for name in presets]
    changed: list[Row] = []
    for name in TABLES[table]:
        settings = [PRESETS[base], *(preset(base, ABLATIONS[row.name]) for row in changed)]
        if preset(base, ABLATIONS[name]) not in settings:
            changed.append(_ours(name, base, ABLATIONS[name], reverse_steps))
    return [*compared, *whole, *changed]


def chosen(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    """The rows of these names; all where none is named.

    Raises:
        ConfigError: A name that no row has.
    """
    names = [row.name for row in rows]
    for name in only:
        if name not in names:
            raise ConfigError(f"--only '{name}': no such row, expected one of {'; '.join(names)}")
    return [row for row in rows if not only or row.name in only]


def _compared(name: str, method: str, steps: int | None) -> Row:
    if method not in SYSTEMS:
        return Row(name, method, "official", None)
    changes = (f"steps={steps}",) if steps else ()
    return Row(name, method, "paper", configure(method, "paper", changes))


def _ours(name: str, base: str, changes: tuple[str, ...], steps: int | None) -> Row:
    own = PRESETS[base].reverse.steps
    if steps and (own is None or steps < own):
        changes = (*changes, f"reverse.steps={steps}")
    return Row(name, "miu-diff", base, configure("miu-diff", base, changes))
