"""Scheme `int8-dynamic`: swap linear layers and embedding tables for their int8 modules."""

import logging
from typing import Any

from torch import nn

from effitrans.errors import UsageError
from effitrans.quantization.config import Int8
from effitrans.quantization.modules import Int8Embedding, Int8Linear
from effitrans.quantization.selection import Candidate, select

logger = logging.getLogger(__name__)


def apply(model: nn.Module, config: Int8, data: Any = None) -> dict[str, Any]:
    """Quantize `model` in place; needs no data.

    Returns:
        What was done: numbers of linear layers and tables quantized, and the paths of those left as they are.

    Raises:
        UsageError: nothing in the model can be quantized under this config, or a name to skip matches nothing.
    """
    taken, left = select(
        model, embeddings=config.embeddings, skip=config.skip, must_match="skip" in config.model_fields_set
    )
    if not taken:
        raise UsageError(
            f"int8-dynamic changes nothing in {type(model).__name__}: it holds {len(left)} linear layers and embedding "
            f"tables, and all are left as they are (embeddings={config.embeddings}, skip={', '.join(config.skip)})"
        )
    _replace(model, taken)
    tables = sum(candidate.is_embedding for candidate in taken)
    logger.info("int8: %d linear layers, %d tables; left: %s", len(taken) - tables, tables, ", ".join(left) or "none")
    return {"linear_layers": len(taken) - tables, "embedding_tables": tables, "left": left}


def _replace(model: nn.Module, taken: list[Candidate]) -> None:
    """Put int8 modules in the places of the candidates; what shared a weight shares its int8 weight."""
    shared: dict[int, nn.Parameter] = {}
    for candidate in taken:
        original = candidate.module
        kind = Int8Embedding if candidate.is_embedding else Int8Linear
        built = kind.from_float(original).train(original.training)  # type: ignore[arg-type]
        built.weight = shared.setdefault(id(original.weight), built.weight)
        for path in candidate.paths:
            parent, _, name = path.rpartition(".")
            model.get_submodule(parent).register_module(name, built)
