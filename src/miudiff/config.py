"""Typed configuration from YAML: strict, with one line for each mistake. A key that is not known names the nearest that is.

A run is one YAML file; `key=value` words after it override single values (`score.optimizer.lr=2e-5`, `data.sources.0.mpp=0.5`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from miudiff.errors import ConfigError


class Strict(BaseModel):
    """The base of every configuration class: frozen, and unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Config = TypeVar("Config", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-4` as a string; here it is the number that everybody means. A key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key.value}' stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: No such file, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise ConfigError(f"{path}: cannot be read ({reason}), expected a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}:{where} is not YAML ({getattr(error, 'problem', 'syntax error')})"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys with values, found {type(content).__name__}")
    return content


def override(values: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """`values` with each `key.path=value` of `words` put in; values are read as YAML.

    Raises:
        ConfigError: A word without "=", or a path through something that holds no keys.
    """
    result = yaml.load(yaml.safe_dump(dict(values)), _Loader)
    for word in words:
        path, equals, text = word.partition("=")
        if not equals or not path:
            raise ConfigError(f"'{word}': expected key=value, as in score.optimizer.lr=2e-5")
        try:
            value = yaml.load(text, _Loader)
        except yaml.YAMLError as error:
            raise ConfigError(f"'{word}': the value is not YAML") from error
        *parents, last = path.split(".")
        here: Any = result
        for parent in parents:
            if isinstance(here, list):
                here = _item(here, parent, word)
            elif isinstance(here, dict):
                here = here.setdefault(parent, {})
            else:
                raise ConfigError(
                    f"'{word}': '{parent}' lies inside of a value, expected a key that holds keys"
                )
        if isinstance(here, list):
            _item(here, last, word)
            here[int(last)] = value
        elif isinstance(here, dict):
            here[last] = value
        else:
            raise ConfigError(f"'{word}': '{last}' lies inside of a value, expected a key that holds keys")
    return result


def _item(items: list[Any], index: str, word: str) -> Any:
    if not index.isdigit() or int(index) >= len(items):
        raise ConfigError(
            f"'{word}': '{index}' is no item of a list of {len(items)}, expected 0 to {len(items) - 1}"
        )
    return items[int(index)]


def parse(kind: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """`values` as a `kind`; `where` names their origin in messages.

    Raises:
        ConfigError: One line with the first mistake: the key, what was found and what was expected.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_mistake(kind, error)}") from error


def _first_mistake(kind: type[BaseModel], error: ValidationError) -> str:
    mistakes = error.errors(include_url=False)
    # An unknown key explains a missing one; so it is told first.
    first = next((m for m in mistakes if m["type"] == "extra_forbidden"), mistakes[0])
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return unknown_key(key, path[-1], _known_keys(kind, path[:-1]))
    if first["type"] == "missing":
        return f"'{key}' is missing"
    found = first.get("input")
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    told = "" if isinstance(found, Mapping) else f"found {found!r}; "
    return f"'{key}': {told}{message[:1].lower()}{message[1:]}{more}"


def unknown_key(key: str, last: str, known: Sequence[str]) -> str:
    """The message for a key that is not known: the nearest that is, or all of them."""
    close = difflib.get_close_matches(last, known, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(sorted(known)) or 'none'}"
    return f"unknown key '{key}'; {hint}"


def _known_keys(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The keys that are allowed at `path` inside `kind`; union branches are searched all."""
    models: list[type[BaseModel]] = [kind]
    for part in path:
        if part.isdigit():
            continue
        inner = [
            m
            for model in models
            if part in model.model_fields
            for m in _models(model.model_fields[part].annotation)
        ]
        models = inner or models
    return sorted({name for model in models for name in model.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def to_yaml(config: BaseModel) -> str:
    """The configuration, defaults included, as YAML that reads back to the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
