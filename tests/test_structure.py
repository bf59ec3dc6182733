"""Imports run downward: a room of the package knows those that stand before it, and none that stand after it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import effitrans

ROOT = Path(effitrans.__file__).parent
ROOMS = [
    "lazy",
    "errors",
    "config",
    "versions",
    "layers",
    "yaml_files",
    "processes",
    "files",
    "registration",
    "skeleton",
    "models",
    "architectures",
    "checkpoint",
    "tasks",
    "attention",
    "quantization.modules",
    "pruning.sparse.modules",
    "inference",
    "evaluation",
    "training",
    "pruning",
    "distillation",
    "quantization",
    "exporting",
    "reporting",
    "recipes",
    "cli",
    "__init__",
    "__main__",
]
"""From the ground to the roof; docs/architecture.md shows them."""


def room_of(module: str) -> str:
    """The room that a module lies in: the longest name in `ROOMS` that it begins with."""
    parts = module.split(".")[1:]
    names = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((name for name in names if name in ROOMS), "__init__")


def modules() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts), ast.parse(file.read_text())


def imported(tree: ast.Module) -> Iterator[str]:
    """What a module imports of effitrans, also within functions, but for what type checkers alone see."""
    checked = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    unseen = {id(node) for block in checked for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("effitrans") and id(node) not in unseen:
            for name in node.names:
                if name.name != "__version__":
                    yield f"{node.module}.{name.name}"


def test_every_module_has_a_room():
    assert {room_of(name) for name, _ in modules()} == set(ROOMS)


@pytest.mark.parametrize("name", ROOMS)
def test_imports_run_downward(name):
    upward = [
        f"{module} imports {other}"
        for module, tree in modules()
        if room_of(module) == name
        for other in imported(tree)
        if ROOMS.index(room_of(other)) > ROOMS.index(name)
    ]
    assert not upward


def test_the_page_on_the_architecture_names_every_room():
    page = (ROOT.parent / "docs" / "architecture.md").read_text()
    assert [
        name for name in ROOMS if not name.startswith("__") and not re.search(rf"\b{re.escape(name)}\b", page)
    ] == []


def test_the_page_on_the_architecture_names_files_that_are_there():
    page = (ROOT.parent / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([a-z_]+/[a-z_/]+\.py)", page))
    assert named
    assert [name for name in named if not ((ROOT / name).exists() or (ROOT.parent / name).exists())] == []
