"""Teach transformers about effitrans without importing transformers.

`import effitrans` must make `AutoModel*.from_pretrained` understand effitrans checkpoints, and must not cost
more than importing torch. So the registration waits until transformers loads one of the modules without which
nothing can be loaded, and runs as soon as none of them is halfway through its own import (they import each
other, in an order that depends on what the user asked for first).
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

AWAITED = (
    "transformers.modeling_utils",
    "transformers.modeling_layers",
    "transformers.quantizers",
    "transformers.models.auto.configuration_auto",
    "transformers.models.auto.modeling_auto",
)
"""The transformers modules whose import makes effitrans register."""

REGISTERING = ("effitrans.checkpoint", "effitrans.models")
"""Modules that register on import: the manifest and the quantizer; the base Transformer on the Auto classes."""


class _AfterImport(importlib.abc.MetaPathFinder):
    """Imports `REGISTERING` once the outermost import of an awaited module is complete."""

    def __init__(self) -> None:
        self.halfway: set[str] = set()
        self.registering = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in AWAITED:
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
            self.halfway.add(fullname)
            try:
                execute(module)
            finally:
                self.halfway.discard(fullname)
            self.register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec

    def register(self) -> None:
        if self.halfway or self.registering:
            return
        self.registering = True
        try:
            for name in REGISTERING:
                import_module(name)
        finally:
            self.registering = False


def install() -> None:
    """Register now if transformers is loaded, else when it is. Idempotent."""
    if any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        return
    finder = _AfterImport()
    sys.meta_path.insert(0, finder)
    if any(name in sys.modules for name in AWAITED):
        finder.register()
