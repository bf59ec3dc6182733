"""Modules put in the places of others, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from effitrans.errors import UsageError
from effitrans.quantization.config import Scheme, scheme_name
from effitrans.quantization.modules.integer import Int8Embedding, Int8Linear
from effitrans.quantization.selection import Candidate, select, unskipped


@dataclass(frozen=True)
class Swap:
    """A floating-point module and the quantized one that takes its place."""

    candidate: Candidate
    built: nn.Module

    def install(self, model: nn.Module) -> None:
        """Put the quantized module everywhere the floating-point one was."""
        self._put(model, self.built)

    def restore(self, model: nn.Module) -> None:
        """Put the floating-point module back."""
        self._put(model, self.candidate.module)

    def _put(self, model: nn.Module, module: nn.Module) -> None:
        for path in self.candidate.paths:
            parent, _, name = path.rpartition(".")
            model.get_submodule(parent).register_module(name, module)


@dataclass(frozen=True)
class Outcome:
    """What a scheme did to a model: all swaps are installed."""

    swaps: Sequence[Swap]
    left: Sequence[str]
    """Paths of linear layers and tables that stay as they are."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """JSON-serializable facts for the model's history."""


def take(model: nn.Module, config: Scheme) -> tuple[list[Candidate], list[str]]:
    """The modules that a scheme quantizes, and the paths of those it leaves.

    Raises:
        UsageError: nothing in the model can be quantized under this config, a name to skip matches nothing, or layers
            are stored sparsely.
    """
    taken, left = select(model, embeddings=config.embeddings, skip=config.skip, must_match=config.must_match)
    if sparse := unskipped(model, "sparse_linear", config.skip):
        raise UsageError(
            f"{len(sparse)} layers, {sparse[0]} the first, store nothing but their nonzero weights (prune --sparsity), "
            f"and {scheme_name(config)} stores whole rows: quantize a model that was not made sparse, or leave these "
            "layers as they are by naming them in skip"
        )
    if not taken:
        raise UsageError(
            f"{scheme_name(config)} changes nothing in {type(model).__name__}: it holds {len(left)} linear layers and "
            f"embedding tables, and all are left as they are (embeddings={config.embeddings}, "
            f"skip={config.skipped})"
        )
    return taken, left


def with_tables(taken: Sequence[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """(tables and the layers tied to them, which share one int8 weight; the other linear layers)."""
    tables = {id(candidate.module.weight) for candidate in taken if candidate.is_embedding}
    tied = [candidate for candidate in taken if id(candidate.module.weight) in tables]
    return tied, [candidate for candidate in taken if id(candidate.module.weight) not in tables]


def build_int8(taken: Sequence[Candidate], arguments: Mapping[nn.Module, Mapping[str, Any]]) -> list[Swap]:
    """An int8 module for each candidate; what shared a weight shares its int8 weight.

    Args:
        taken: linear layers and tables.
        arguments: linear layer -> further arguments of `Int8Linear.from_float`. Layers with a factor share no weight.
    """
    shared: dict[int, nn.Parameter] = {}
    swaps = []
    for candidate in taken:
        original = candidate.module
        options = arguments.get(original, {})
        if candidate.is_embedding:
            built = Int8Embedding.from_float(original)  # type: ignore[arg-type]
        else:
            built = Int8Linear.from_float(original, **options)  # type: ignore[arg-type]
        if options.get("factor") is None:
            built.weight = shared.setdefault(id(original.weight), built.weight)
        swaps.append(Swap(candidate, built.train(original.training)))
    return swaps


def install(model: nn.Module, swaps: Sequence[Swap]) -> None:
    """Install all swaps."""
    for swap in swaps:
        swap.install(model)
