"""The attention operators. Adding one is its file and one line here."""

from collections.abc import Mapping
from typing import Any

from effitrans.attention.block_sparse import BlockSparse
from effitrans.attention.by_length import ByLength
from effitrans.attention.full import Full
from effitrans.attention.hybrid import Hybrid
from effitrans.attention.kernel import Kernel
from effitrans.attention.linear import Linear
from effitrans.attention.linformer import Linformer
from effitrans.attention.local import Local
from effitrans.attention.nystrom import Nystrom
from effitrans.attention.operator import OperatorConfig
from effitrans.attention.performer import Performer
from effitrans.attention.strided import Strided
from effitrans.errors import unknown_name

OPERATORS: dict[str, type[OperatorConfig]] = {
    "block_sparse": BlockSparse,
    "by_length": ByLength,
    "full": Full,
    "hybrid": Hybrid,
    "kernel": Kernel,
    "linear": Linear,
    "linformer": Linformer,
    "local": Local,
    "nystrom": Nystrom,
    "performer": Performer,
    "strided": Strided,
}
"""Name -> config, which builds the operator."""


def operator_config(name: str, values: Mapping[str, Any] | None = None) -> OperatorConfig:
    """The config of the operator `name` with these settings.

    >>> operator_config("local", {"window": 64}).window
    64

    Raises:
        UsageError: an unknown operator, an unknown setting, or a value that does not fit.
    """
    if name not in OPERATORS:
        raise unknown_name("attention operator", name, OPERATORS)
    return OPERATORS[name].parse(values or {}, where=f"attention operator {name}")
