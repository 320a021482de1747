"""Typed configuration from YAML: strict, with one line for each mistake. A key that is not known names the nearest that is.

A run is one YAML file; `key=value` words after it override single values (`score.optimizer.lr=2e-5`, `data.sources.0.mpp=0.5`).
"""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from miudiff.errors import ConfigError, DataError

LONGEST = 2_000_000  # characters of a configuration file, which a list of 50,000 names of images fits into
MOST_VALUES = 200_000  # of a configuration, where an alias counts as all that it repeats
MOST_MERGED = 50  # mappings of one "<<"
DEEPEST = 40  # levels of keys and lists inside each other
LARGEST_TILE = 4096  # pixels of its side
LAST_STEP = 99_999_999  # what the eight digits of a state's file name can say

Scale = Annotated[float, Field(ge=0.05, le=20)]  # micrometres per pixel that a light microscope can have
Width = Annotated[int, Field(ge=1, le=16_384)]  # channels of a layer


class Strict(BaseModel):
    """The base of every configuration class: frozen; unknown keys, infinities and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Config = TypeVar("Config", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-4` as a string; here it is the number that everybody means. A key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in _keys(node):
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{key.value}' stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, (_, merged) in zip(_keys(node), node.value):
            if (
                key.value == "<<"
                and isinstance(merged, yaml.SequenceNode)
                and len(merged.value) > MOST_MERGED
            ):
                raise yaml.MarkedYAMLError(
                    problem=f"'<<' merges {len(merged.value)} mappings, expected at most {MOST_MERGED}",
                    problem_mark=key.start_mark,
                )
        super().flatten_mapping(node)
        # Each key once, or merges of merges multiply.
        node.value = list({key.value: pair for key, pair in zip(_keys(node), node.value)}.values())

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # What int(), date() and their like make of 0x_, 2024-13-45 or !!int abc.
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{_shown(node.value)} is no {kind}", problem_mark=node.start_mark
            ) from error


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _keys(node: yaml.Node) -> list[yaml.ScalarNode]:
    """The keys of a mapping; none for what is no mapping, which PyYAML refuses."""
    keys = [key for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    for key in keys:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.MarkedYAMLError(
                problem="a list or a mapping stands as a key, expected a word", problem_mark=key.start_mark
            )
    return keys


def _load(text: str) -> Any:
    """What YAML says, as plain values of bounded size.

    Raises:
        yaml.YAMLError: Not YAML, or more than a configuration can be.
    """
    if len(text) > LONGEST:
        raise yaml.MarkedYAMLError(problem=f"{len(text)} characters, expected at most {LONGEST}")
    try:
        return _plain(yaml.load(text, _Loader), iter(range(MOST_VALUES)))
    except RecursionError as error:
        raise _too_deep() from error


def _plain(value: Any, room: Iterator[int], depth: int = 0) -> Any:
    """A copy that shares nothing with `value`; `room` gives out as many values as there may be.

    Raises:
        yaml.YAMLError: Too many values, too deep, or a key or a value that no setting has.
    """
    if next(room, None) is None:
        raise yaml.MarkedYAMLError(problem=f"more than {MOST_VALUES} values; are aliases repeated?")
    if depth > DEEPEST:
        raise _too_deep()
    match value:
        case dict():
            if wrong := [key for key in value if not isinstance(key, str)]:
                raise yaml.MarkedYAMLError(problem=f"the key {_shown(wrong[0])} is no word; put it in quotes")
            return {_plain(k, room, depth): _plain(v, room, depth + 1) for k, v in value.items()}
        case list() | tuple():
            return [_plain(item, room, depth + 1) for item in value]
        case str() if re.search("[\0\ud800-\udfff]", value):
            raise yaml.MarkedYAMLError(problem=f"{_shown(value)} holds a character that is no text")
        case int() if abs(value) > 10**100:
            raise yaml.MarkedYAMLError(problem="a whole number of more than 100 digits")
    return value


def _too_deep() -> yaml.YAMLError:
    return yaml.MarkedYAMLError(problem=f"nested deeper than {DEEPEST} levels")


def _problem(error: yaml.YAMLError) -> str:
    """What is wrong, in a few words."""
    found = getattr(error, "problem", None) or getattr(error, "reason", None) or "syntax error"
    return " ".join(str(found).split())[:160]


def _shown(value: object) -> str:
    """A value in a message: in Python's words, of bounded length."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 80
    brief.maxlong = 60
    return brief.repr(value)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: No such file, not YAML, or not a mapping.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            content = _load(file.read(LONGEST + 1))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not text"
        raise ConfigError(f"{path}: cannot be read ({reason}), expected a YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}:{where} is not YAML ({_problem(error)})") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys with values, found {type(content).__name__}")
    return content


def override(values: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """`values` with each `key.path=value` of `words` put in; values are read as YAML.

    Raises:
        ConfigError: A word without "=", or a path through something that holds no keys.
    """
    result: dict[str, Any] = _plain(dict(values), iter(range(MOST_VALUES)))
    for word in words:
        path, equals, text = word.partition("=")
        shown = word if len(word) <= 80 else f"{word[:80]}..."
        if not equals or not path:
            raise ConfigError(f"'{shown}': expected key=value, as in score.optimizer.lr=2e-5")
        try:
            value = _load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"'{shown}': the value is not YAML ({_problem(error)})") from error
        *parents, last = path.split(".")
        if len(parents) > DEEPEST:
            raise ConfigError(f"'{shown}': {len(parents) + 1} keys, expected at most {DEEPEST}")
        here: Any = result
        for parent in parents:
            if isinstance(here, list):
                here = _item(here, parent, shown)
            elif isinstance(here, dict):
                here = here.setdefault(parent, {})
            else:
                raise ConfigError(
                    f"'{shown}': '{parent}' lies inside of a value, expected a key that holds keys"
                )
        if isinstance(here, list):
            _item(here, last, shown)
            here[int(last)] = value
        elif isinstance(here, dict):
            here[last] = value
        else:
            raise ConfigError(f"'{shown}': '{last}' lies inside of a value, expected a key that holds keys")
    return result


def _item(items: list[Any], index: str, word: str) -> Any:
    if not re.fullmatch("[0-9]{1,9}", index) or int(index) >= len(items):
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
    told = "" if isinstance(found, Mapping) else f"found {_shown(found)}; "
    return f"'{key}': {told}{message[:1].lower()}{message[1:]}{more}"


def unknown_key(key: str, last: str, known: Sequence[str]) -> str:
    """The message for a key that is not known: the nearest that is, or all of them."""
    near = nearest(last, known, 0.5)
    if not near:
        return f"unknown key '{key}'; known here: {', '.join(sorted(known)) or 'none'}"
    whole = f" ({key.removesuffix(last)}{near})" if key != last else ""
    return f"unknown key '{key}'; did you mean '{near}'?{whole}"


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Which of the `known` words is meant by one that is not among them, whatever its case; None where none is like it."""
    folded = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known; nothing where none is like it."""
    near = nearest(word, known)
    return f'; did you mean "{near}"?' if near else ""


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


def check_mpp(mpp: float) -> None:
    """Refuse micrometres per pixel that no light microscope has.

    Raises:
        DataError: Less than 0.05, more than 20, or no number.
    """
    if not 0.05 <= mpp <= 20:
        raise DataError(
            f"mpp {mpp:g}: expected micrometres per pixel between 0.05 and 20; 0.25 is a 40x scan, 0.5 a 20x"
        )
