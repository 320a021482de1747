"""The layers of docs/architecture.md: a file imports from lower layers, its own package, or layer 0."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "miudiff"

LAYERS = [
    {"errors", "config", "images", "stains", "noise", "device"},
    {"checkpoints", "data", "training", "tiling", "evaluation", "recipes"},
    {"diffusion", "information", "contrast"},
    {"methods"},
    {"stainer", "runs", "trajectory", "calibration", "translation", "demo", "reproduce", "doctor"},
    {"cli", "__main__"},
]
NO_NETWORKS = {"evaluation", "tiling", "data"}  # they take functions on uint8 tiles, or files


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


def imports(path: Path) -> list[str]:
    """Modules of this package that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("miudiff."):
            found.append(node.module.split(".")[1])
        if isinstance(node, ast.Import):
            found += [a.name.split(".")[1] for a in node.names if a.name.startswith("miudiff.")]
    return found


FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_from_below(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imports(path):
        inside = name == own
        below = layer(name) < layer(own)
        beside = layer(name) == layer(own) and own not in NO_NETWORKS
        assert inside or below or beside, f"{own} (layer {layer(own)}) imports {name} (layer {layer(name)})"
        if own in NO_NETWORKS:
            assert name == own or layer(name) == 0 or name == "checkpoints", (
                f"{own} knows no networks, but imports {name}"
            )


def test_nothing_imports_torchvision():
    for path in FILES:
        tree = ast.parse(path.read_text())
        names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        assert not any(name.split(".")[0] == "torchvision" for name in names), path
