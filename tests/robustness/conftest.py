"""The trial of the finished product: hostile files, kills, requests. A fast share runs by default, all of it with `-m robustness`.

Every test takes a `Tally`, counts what it tried, and prints its seed; `--seed` gives another, so that a failure can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from command import CommandLine, Tally


@pytest.fixture
def tally(request: pytest.FixtureRequest, record_property) -> Iterator[Tally]:
    """Counts cases; told in the summary of the run."""
    tally = Tally(request.config.getoption("--seed"))
    yield tally
    record_property("tally", (tally.seed, tally.tried, len(tally.wrong or [])))


@pytest.fixture(scope="module")
def miudiff() -> Iterator[CommandLine]:
    """The command line in a process of its own."""
    command = CommandLine()
    yield command
    command.close()


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory):
    """A model folder of random weights that stains in a moment."""
    from tiny import tiny_model

    from miudiff.methods.model import save_model

    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, tiny_model(tile=64))
    return folder
