"""Modules put in the places of others, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import nn

from effitrans.quantization.modules.integer import Int8Embedding, Int8Linear
from effitrans.quantization.selection import Target


@dataclass(frozen=True)
class Replacement:
    """A module of the model and the quantized one that takes its place."""

    target: Target
    quantized: nn.Module

    @classmethod
    def of(cls, target: Target, quantized: nn.Module) -> Self:
        """The replacement of a target, in its mode (training or evaluation)."""
        return cls(target, quantized.train(target.module.training))

    def install(self, model: nn.Module) -> None:
        """Put the quantized module everywhere the floating-point one was."""
        self._put(model, self.quantized)

    def undo(self, model: nn.Module) -> None:
        """Put the floating-point module back."""
        self._put(model, self.target.module)

    def _put(self, model: nn.Module, module: nn.Module) -> None:
        for path in self.target.paths:
            parent, _, name = path.rpartition(".")
            model.get_submodule(parent).register_module(name, module)


@dataclass(frozen=True)
class QuantizationResult:
    """What a scheme did to a model: all replacements are installed."""

    replacements: Sequence[Replacement]
    left: Sequence[str]
    """Paths of linear layers and tables that are left as they are."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """JSON-serializable facts for the model's history."""


def int8_replacements(targets: Sequence[Target], arguments: Mapping[nn.Module, Mapping[str, Any]]) -> list[Replacement]:
    """An int8 module for each target; what shared a weight shares its int8 weight.

    Args:
        targets: linear layers and tables.
        arguments: linear layer -> further arguments of `Int8Linear.from_float`. Layers with a factor share no weight.
    """
    shared: dict[int, nn.Parameter] = {}
    replacements = []
    for target in targets:
        original: Any = target.module
        options = arguments.get(original, {})
        kind = Int8Embedding if target.is_embedding else Int8Linear
        quantized = kind.from_float(original, **options)
        if options.get("factor") is None:
            quantized.weight = shared.setdefault(id(original.weight), quantized.weight)
        replacements.append(Replacement.of(target, quantized))
    return replacements


def install(model: nn.Module, replacements: Sequence[Replacement]) -> None:
    """Install all replacements."""
    for replacement in replacements:
        replacement.install(model)
