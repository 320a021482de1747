"""What several tests share: numbers of the official code, its inputs, recorded noise, the shared folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault(
    "OMP_WAIT_POLICY", "PASSIVE"
)  # idle threads must not spin: several processes share the cores

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from miudiff.cli import main
from miudiff.methods.model import save_model
from tiny import tiny_model

torch.set_num_threads(1)

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"

Array = NDArray[Any]
Agree = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=1, help="of the robustness trial")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how much the robustness trial tried, and how much of it went wrong."""
    reports = [r for some in terminalreporter.stats.values() for r in some if hasattr(r, "user_properties")]
    told = {(r.nodeid, *value) for r in reports for name, value in r.user_properties if name == "tally"}
    for test, seed, tried, wrong in sorted(told):
        terminalreporter.write_line(f"{test}: seed {seed}, tried {tried}, failed {wrong}")


@pytest.fixture(autouse=True)
def guards_heard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources of most tests are drawn, as the guards rightly say; their own tests hear it."""
    monkeypatch.setattr(
        logging.getLogger("miudiff.guards.findings"), "disabled", "guards" not in request.node.path.stem
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with random weights."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(folder, tiny_model())
    return folder


@pytest.fixture
def translate(
    request: pytest.FixtureRequest, model: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command as quickly as the module's QUICK says; gives its exit code and what it wrote on stdout and stderr."""

    def run(*words: object, model: Path = model) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in ("translate", *words, "--model", model, *request.module.QUICK)])
        told = capsys.readouterr()
        code = left.value.code
        assert isinstance(code, int)
        return code, told.out, told.err

    return run


class Tape:
    """Recorded draws in place of a `noise.NoiseKey`: each call for normal noise takes the next one."""

    def __init__(self, draws: Tensor) -> None:
        self.draws, self.used = draws, 0

    def normal(self, stream: str, step: int, shape: tuple[int, int, int]) -> Tensor:
        draw = self.draws[self.used]
        assert draw.shape == shape, f"the tape holds {tuple(draw.shape)}, asked for {shape}"
        self.used += 1
        return draw

    def integers(self, stream: str, step: int, count: int, high: int) -> Tensor:
        raise NotImplementedError("a tape holds normal noise only")

    def permutation(self, stream: str, step: int, length: int) -> Tensor:
        raise NotImplementedError("a tape holds normal noise only")


@pytest.fixture
def tape() -> Callable[[Array], list[Tape]]:
    """Makes one `Tape` for each image from recorded draws [draws, B, C, H, W]."""
    return lambda recorded: [Tape(torch.from_numpy(recorded[:, image])) for image in range(recorded.shape[1])]


@pytest.fixture(scope="session")
def golden() -> Mapping[str, Array]:
    """Arrays of the official code, from the file that MIUDIFF_GOLDEN names or the copy here."""
    with np.load(os.environ.get("MIUDIFF_GOLDEN", GOLDEN / "reference.npz")) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="session")
def formulas() -> dict[str, Any]:
    """Statistics of official functions on inputs of `det`."""
    content: dict[str, Any] = json.loads((GOLDEN / "formulas.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder `shared` beside the repository, which holds data too large to carry along."""
    folder = HERE.parent.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}: it holds the data sets that this test reads")
    return folder


@pytest.fixture(scope="session")
def det() -> Callable[..., Tensor]:
    """The inputs of `formulas`: sin(a n + b) in C order, float32."""

    def generate(shape: tuple[int, ...], a: float = 0.37, b: float = 0.11) -> Tensor:
        wave = np.sin(a * np.arange(np.prod(shape)) + b)
        return torch.from_numpy(wave.astype(np.float32).reshape(shape))

    return generate


@pytest.fixture(scope="session")
def toy_noise() -> Callable[[Tensor, int], Tensor]:
    """The noise estimate eps(y, t) that the recorded loops were run with; t is an index of the full chain."""

    def estimate(y: Tensor, t: int) -> Tensor:
        bent = 0.7 * y + 0.1 * torch.roll(y, 1, -1) - 0.3 * torch.roll(y, 2, -2) * t / 1000
        return torch.tanh(bent) + 0.05 * t / 1000

    return estimate


@pytest.fixture(scope="session")
def agree() -> Agree:
    """Compares with recorded numbers: same shape, within `tolerance` times the largest (at least 1)."""

    def compare(actual: Any, expected: Any, name: str = "", tolerance: float = 1e-5) -> None:
        found = torch.as_tensor(actual, dtype=torch.float64).detach()
        wanted = torch.as_tensor(expected, dtype=torch.float64)
        assert found.shape == wanted.shape, f"{name}: {tuple(found.shape)}, expected {tuple(wanted.shape)}"
        error = (found - wanted).abs().max().item()
        limit = tolerance * max(1.0, wanted.abs().max().item())
        assert error <= limit, f"{name}: differs by {error:.3g}, allowed {limit:.3g}"

    return compare


@pytest.fixture(scope="session")
def agree_with_summary(agree: Agree) -> Agree:
    """Compares a tensor with an entry of `formulas`: its shape, moments and some of its values."""

    def compare(actual: Tensor, summary: Mapping[str, Any], name: str = "", tolerance: float = 1e-5) -> None:
        values = actual.detach().double()
        assert list(values.shape) == summary["shape"], name
        found = torch.stack([values.mean(), values.abs().mean(), values.std(correction=0)])
        agree(found, [summary["mean"], summary["absmean"], summary["std"]], f"{name} statistics", tolerance)
        agree(values.flatten()[summary["idx"]], summary["val"], f"{name} values", tolerance)

    return compare
