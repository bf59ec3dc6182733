"""The kinds of module a manifest may name, beyond those that the architecture itself builds.

A kind is an `nn.Module` subclass with `kind` (its name), `spec()` (a JSON mapping that says how to build it
empty) and `from_spec(spec, original)` (builds it; called on the meta device). One line here registers it. The annotated
parameters of its constructor (`bits: Literal[2, 3, 4, 8]`) say which specs are valid, or a config of its own, `Spec`. A
kind may have a class method `activate(model)`, called once when the modules are in their places, and `settle()`, called
when its tensors are loaded.
"""

import inspect
from functools import lru_cache
from importlib import import_module
from typing import Any, ClassVar, Protocol, Self, get_type_hints

import pydantic
from torch import nn

from effitrans.config import Config
from effitrans.errors import CheckpointError

MODULE_KINDS: dict[str, str] = {
    "int8_linear": "effitrans.quantization.modules.integer:Int8Linear",
    "int8_embedding": "effitrans.quantization.modules.integer:Int8Embedding",
    "packed_linear": "effitrans.quantization.modules.packed:PackedLinear",
    "four_bit_linear": "effitrans.quantization.schemes.bits_and_bytes.four_bit:FourBitLinear",
    "llm_int8_linear": "effitrans.quantization.schemes.bits_and_bytes.llm_int8:LLMInt8Linear",
    "fake_quant_linear": "effitrans.quantization.modules.fake:FakeQuantLinear",
    "fake_quant_embedding": "effitrans.quantization.modules.fake:FakeQuantEmbedding",
    "fake_packed_linear": "effitrans.quantization.modules.fake_packed:FakePackedLinear",
    "attention_operator": "effitrans.attention.operator:AttentionOperator",
    "absent_attention": "effitrans.architectures.absent:AbsentAttention",
    "zero": "effitrans.architectures.absent:Zero",
    "same": "effitrans.architectures.absent:Same",
    "sparse_linear": "effitrans.pruning.sparse.modules:SparseLinear",
}
"""Kind -> "module:class", imported when a manifest names it."""


class ModuleKind(Protocol):
    """What a class listed in `MODULE_KINDS` provides."""

    kind: ClassVar[str]

    def spec(self) -> dict[str, Any]: ...

    @classmethod
    def from_spec(cls, spec: dict[str, Any], original: nn.Module | None) -> Self: ...


def module_kind(name: str) -> Any:
    """The class of a kind.

    Raises:
        CheckpointError: the kind is not known to this version of effitrans.
    """
    if name not in MODULE_KINDS:
        raise CheckpointError(
            f"unknown module kind {name!r} in the manifest: this version knows {', '.join(MODULE_KINDS)}. "
            "The checkpoint was written by another version of effitrans; upgrade it."
        )
    module, _, attribute = MODULE_KINDS[name].partition(":")
    return getattr(import_module(module), attribute)


class Spec(Config):
    """Base of what a manifest says of a module: nothing is converted, as `true` to 1."""

    model_config = pydantic.ConfigDict(strict=True, allow_inf_nan=False)


@lru_cache
def spec_config(kind: Any) -> type[Config]:
    """The config that the specs of a kind must fit: its `Spec`, else what its constructor takes beside `dtype`."""
    if hasattr(kind, "Spec"):
        return kind.Spec
    types = get_type_hints(kind.__init__, include_extras=True)
    fields: dict[str, Any] = {
        name: (types[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(kind).parameters.items()
        if name != "dtype" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }
    return pydantic.create_model(kind.kind, __base__=Spec, **fields)
