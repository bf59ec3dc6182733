"""Packages whose public names are imported on first use, so that a command waits only for what it needs."""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def exports(package: str, modules: Mapping[str, Sequence[str]]) -> tuple[list[str], Callable[[str], Any]]:
    """What a package offers.

    Args:
        package: its `__name__`.
        modules: module, relative to the package (".runner"), -> the names that come from it.

    Returns:
        The package's `__all__` and `__getattr__`.
    """
    origin = {name: module for module, names in modules.items() for name in names}

    def __getattr__(name: str) -> Any:
        if name not in origin:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(origin[name], package), name)

    return sorted(origin), __getattr__
