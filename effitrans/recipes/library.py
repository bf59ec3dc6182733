"""The recipes that come with effitrans."""

from pathlib import Path

from effitrans.errors import unknown_name
from effitrans.yaml_files import read_yaml

_PACKAGE = Path(__file__).resolve().parent.parent
_FOLDERS = (_PACKAGE / "recipes_library", _PACKAGE.parent / "recipes")
"""In an installed wheel, and in a checkout."""


def list_recipes(kind: str = "") -> dict[str, Path]:
    """Name -> file of every recipe that comes with effitrans, sorted by name; of every study for kind "studies"."""
    files = [file for folder in _FOLDERS for file in sorted((folder / kind).glob("*.yaml"))]
    return {file.stem: file for file in files}


def find_recipe(name_or_path: str | Path, kind: str = "") -> Path:
    """The file of a recipe (or study) given as a path or as the name of one that comes with effitrans.

    Raises:
        UsageError: no such file and no such name.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    known = list_recipes(kind)
    if path.name.removesuffix(".yaml") in known and path.parent.name in ("", kind or "recipes"):
        return known[path.name.removesuffix(".yaml")]
    raise unknown_name("study" if kind else "recipe", str(name_or_path), known)


def outline(path: Path) -> tuple[str, str, str]:
    """Task, names of the steps and description of a recipe file, which is not checked otherwise."""
    recipe = read_yaml(path, str(path), "a recipe")
    steps = [next(iter(step.items())) for step in recipe["steps"]]
    names = [str((fields or {}).get("name", verb)) for verb, fields in steps]
    task = recipe["task"]
    return task if isinstance(task, str) else task.get("name", ""), " ".join(names), recipe.get("description", "")
