"""The recipes that come with effitrans."""

from pathlib import Path

from effitrans.errors import unknown_name

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
