"""What lies on disk: weights to use (a diffusers-style folder, safetensors) and states to resume a run from.

A state is one file, `state-00001000.pt`, tensors and plain values only, read with `weights_only=True`. Every file appears whole
or not at all (`images.atomic`), so a run killed at any moment finds its last whole state.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from miudiff.errors import CheckpointError, unwritable
from miudiff.images import atomic, write_bytes, write_text


class Part(Protocol):
    """Anything with a state: a module, an optimizer, an average."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


WEIGHTS = "diffusion_pytorch_model.safetensors"  # what diffusers calls them, so that it finds them
STATE = re.compile(r"state-(\d{8})\.pt")
LARGEST_JSON = 64 * 2**20  # bytes; the record of 100,000 images has about 30 MB
DEEPEST_JSON = 64


def save_state(folder: Path, step: int, parts: Mapping[str, Part], keep: int = 2) -> Path:
    """Write the state after `step` steps; the `keep` newest stay.

    Raises:
        DataError: It cannot be written.
    """
    path = folder / f"state-{step:08d}.pt"
    content = {"step": step, "parts": {name: p.state_dict() for name, p in parts.items()}}
    with atomic(path) as part, part.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # On a full disk torch fails a second time while it closes its archive, and hides why.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise
    for _, old in find_states(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def find_states(folder: Path) -> list[tuple[int, Path]]:
    """(step, file) of each state in `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted((int(m[1]), p) for p in folder.iterdir() if (m := STATE.fullmatch(p.name)))


def load_state(path: Path, parts: Mapping[str, Part]) -> int:
    """Put a state back into `parts`; returns its step.

    Raises:
        CheckpointError: Damaged, or made by a run of other parts or sizes.
    """
    try:
        content = load_tensors(path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; without it the same command goes on from the state before"
        ) from error
    if (
        not isinstance(content, dict)
        or set(content) != {"step", "parts"}
        or not isinstance(content["step"], int)
        or not isinstance(content["parts"], dict)
        or set(content["parts"]) != set(parts)
    ):
        raise CheckpointError(f"{path}: is no state of this run; start in another folder")
    try:
        for name, part in parts.items():
            part.load_state_dict(content["parts"][name])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path}: does not fit the configuration ({reason}); start in another folder"
        ) from error
    return content["step"]


def load_tensors(path: Path) -> Any:
    """A `torch.save` file, read without running anyone's code.

    Raises:
        CheckpointError: Not there, damaged, or holding more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except Exception as error:  # zipfile, pickle and torch each raise their own
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: cannot be loaded as plain tensors ({reason})") from error


def save_weights(path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Write a safetensors file; floating-point tensors become `dtype` if one is given."""
    from safetensors.torch import save

    content = {
        name: (t.to(dtype) if dtype and t.is_floating_point() else t).detach().cpu().contiguous()
        for name, t in tensors.items()
    }
    write_bytes(path, save(content, metadata={"format": "pt"}))


def load_weights(path: Path) -> dict[str, Tensor]:
    """A safetensors file; floating-point tensors come back as float32.

    Raises:
        CheckpointError: Not there or damaged.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        tensors = load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path}: damaged weights ({str(error).splitlines()[0][:120]})") from error
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], where: object, network: str, assign: bool = False
) -> None:
    """Put weights into a network: all that it has, and no others.

    Args:
        where: Their origin, named in the message as `network` is.
        assign: The tensors themselves become the network's, whose own are on the meta device perhaps, in place of copies.

    Raises:
        CheckpointError: They do not fit.
    """
    own = module.state_dict()
    wrong = [f"has no '{name}'" for name in own if name not in tensors]
    wrong += [f"has '{name}', which the network has not" for name in tensors if name not in own]
    wrong += [
        f"'{name}' is {_shape(tensors[name])}, expected {_shape(value)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    wrong += [
        f"'{name}' is {str(tensors[name].dtype).removeprefix('torch.')}, expected {str(value.dtype).removeprefix('torch.')}"
        for name, value in own.items()
        if name in tensors and tensors[name].is_floating_point() != value.is_floating_point()
    ]
    if wrong:
        more = f"; and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CheckpointError(f"{where}: does not fit {network} ({wrong[0]}{more})")
    module.load_state_dict(tensors, assign=assign)


def _shape(tensor: Tensor) -> str:
    return " x ".join(str(length) for length in tensor.shape) or "one number"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write readable JSON, whole or not at all; a file's name that is no text reads back as it was."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def append_json(path: Path, line: Mapping[str, Any]) -> None:
    """Add one line of JSON to a log.

    Raises:
        DataError: It cannot be written.
    """
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    except OSError as error:
        raise unwritable(path, error) from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of bounded size and depth, whose numbers a float holds and whose strings can be written.

    Raises:
        CheckpointError: Not there, or not such an object.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would keep the reader waiting
            raise CheckpointError(f"{path}: cannot be read (not a regular file)")
        with path.open("rb") as file:
            data = file.read(LARGEST_JSON + 1)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > LARGEST_JSON:
        raise CheckpointError(f"{path}: more than {LARGEST_JSON:,} bytes, which no JSON of miudiff has")
    try:
        content = json.loads(data.decode())
        _check_values(content, DEEPEST_JSON)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise CheckpointError(f"{path}: is not JSON ({reason})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content


def _check_values(content: Any, depth: int) -> None:
    """Refuse what Python's reader takes and what later fails in arithmetic, in printing or in recursion.

    Raises:
        ValueError: It is of that kind.
    """
    if isinstance(content, str):
        try:
            os.fsencode(content)  # a file's name that is no text passes
        except UnicodeEncodeError as error:
            raise ValueError("a string with half of a surrogate pair") from error
    elif isinstance(content, int | float):
        if not abs(content) <= sys.float_info.max:
            raise ValueError("a number that is not finite, or larger than a float can be")
    elif content is not None:
        if not depth:
            raise RecursionError
        for each in content:
            _check_values(each, depth - 1)
        for value in content.values() if isinstance(content, dict) else ():
            _check_values(value, depth - 1)
