"""Teach transformers about effitrans without importing transformers.

`import effitrans` must make `AutoModel*.from_pretrained` understand effitrans checkpoints, and must not cost
more than importing torch. So the registration runs when the transformers module that holds the registry is
imported, or that nothing can be loaded without: at once where it is there, else right after its import.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType


def _register_checkpoints() -> None:
    import effitrans.checkpoint  # noqa: F401 - registers the manifest and the quantizer


def _register_models() -> None:
    layers = sys.modules.get("transformers.modeling_layers")
    if layers is not None and not hasattr(layers, "GradientCheckpointingLayer"):
        return  # it imports the Auto classes halfway through itself; its own registration follows
    register = getattr(import_module("effitrans.models"), "register", None)
    if register is not None:  # else effitrans.models is itself being imported, and registers at its end
        register()


REGISTRATIONS: dict[str, Callable[[], None]] = {
    "transformers.modeling_utils": _register_checkpoints,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.modeling_layers": _register_models,
}
"""transformers module -> what to run once it has been imported."""


class _AfterImport(importlib.abc.MetaPathFinder):
    """Runs each registration right after the import of its module."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in REGISTRATIONS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            sys.meta_path.insert(0, self)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            REGISTRATIONS[fullname]()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Register now what can be, and the rest when transformers is imported. Idempotent."""
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _AfterImport())
    for name, register in REGISTRATIONS.items():
        if name in sys.modules:
            register()
