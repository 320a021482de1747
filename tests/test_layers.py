"""The layers of docs/architecture.md: which part may import which, checked on every import of every file."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "src" / "miudiff"

GROUND = {
    "ahead",
    "cells",
    "errors",
    "evenly",
    "config",
    "formats",
    "images",
    "naming",
    "stains",
    "tissue",
    "normalisation",
    "noise",
    "device",
    "progress",
    "provenance",
    "locks",
}  # layer 0: anyone may import these
LEARNING = {"checkpoints", "data", "training"}
CORE = {"diffusion", "information", "contrast", "gan"}

# Besides itself and the ground, each part may import:
ALLOWED = {
    **{name: set() for name in GROUND},
    "recipes": set(),
    "guards": set(),  # knows no networks: it takes pixels
    "tiling": set(),  # knows no networks: it takes a function on uint8 tiles
    "slides": {"checkpoints", "tiling"},  # knows no networks: it takes pixels
    "pages": set(),  # knows nothing of what it shows
    "evaluation": {"checkpoints", "pages"},  # knows no networks: it takes pixels and files
    "checkpoints": set(),
    "data": set(),
    "training": {"checkpoints"},
    "contrast": set(),
    "gan": {"checkpoints"},
    "diffusion": LEARNING,
    "information": {*LEARNING, "diffusion"},
    "methods": {*LEARNING, *CORE, "guards", "tiling"},
    "distillation": {*LEARNING, *CORE, "methods"},
    "stainer": {"methods", "tiling"},
    "runs": {*LEARNING, *CORE, "methods", "distillation"},
    "trajectory": {"methods"},
    "calibration": {"methods", "stainer"},
    "matching": {"data", "methods"},
    "samples": {"methods"},
    "result_folder": {"checkpoints"},
    "estimate": {"methods", "slides", "stainer"},
    "section": {"guards", "result_folder", "stainer"},
    "translation": {
        "checkpoints",
        "estimate",
        "guards",
        "methods",
        "result_folder",
        "section",
        "slides",
        "stainer",
    },
    "cluster": {"slides", "stainer"},
    "slide_info": {"estimate", "guards", "slides", "stainer"},
    "whole_slide": {
        "checkpoints",
        "cluster",
        "estimate",
        "guards",
        "result_folder",
        "section",
        "slide_report",
        "slides",
        "stainer",
        "translation",
    },
    "slide_report": {"checkpoints", "evaluation", "pages", "slides"},  # measures pixels and knows no networks
    "demo": {"checkpoints", "data", "evaluation", "pages", "stainer", "trajectory", "methods"},
    "reproduce": {
        *LEARNING,
        *CORE,
        "evaluation",
        "matching",
        "methods",
        "pages",
        "recipes",
        "runs",
        "stainer",
    },
    "viewer": {"checkpoints", "pages", "slides"},
    "doctor": {"methods"},
    "bench": {
        *LEARNING,
        *CORE,
        "estimate",
        "evaluation",
        "distillation",
        "methods",
        "runs",
        "slides",
        "stainer",
    },
}
ALLOWED["cli"] = set(ALLOWED)
ALLOWED["__main__"] = {"cli"}


def imports(path: Path) -> set[str]:
    """Parts of this package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("miudiff."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "miudiff":
            found |= {alias.name for alias in node.names if not alias.name.startswith("__")}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("miudiff.")}
    return found


FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_imports_only_what_its_part_may(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    # the ground holds no order of its own but this: nothing in it imports what is above
    allowed = GROUND | ALLOWED[own] | {own}
    assert imports(path) <= allowed, f"{own} may not import {', '.join(sorted(imports(path) - allowed))}"


def test_no_two_parts_import_each_other():
    for part, others in ALLOWED.items():
        for other in others:
            assert part not in ALLOWED[other], f"{part} and {other}"


def test_nothing_imports_torchvision():
    for path in FILES:
        tree = ast.parse(path.read_text())
        names = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        names += [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        assert not any(name.split(".")[0] == "torchvision" for name in names), path
