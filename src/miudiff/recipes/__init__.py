"""Training configurations that ship with the package, as YAML files beside this one."""

from importlib.resources import files
from pathlib import Path

from miudiff.config import did_you_mean
from miudiff.errors import ConfigError


def recipe_path(name: str) -> Path:
    """The file of a configuration given by path, or by a recipe's name.

    Raises:
        ConfigError: Neither.
    """
    folder = Path(str(files("miudiff.recipes")))
    for path in (Path(name), folder / f"{name}.yaml"):
        if path.is_file():
            return path
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    raise ConfigError(
        f"{name}: no such file, and no recipe of that name; recipes: {', '.join(known)}{did_you_mean(name, known)}"
    )
