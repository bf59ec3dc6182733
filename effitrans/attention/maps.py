"""Attention maps: how much each token takes from each other one, for every operator.

Every operator is linear in the values, out = A V with a matrix A that does not depend on V. So A is what comes out when
the values are the identity: the softmax probabilities for exact attention, and the implied weights for operators that
never form them. Implied weights of an approximation need not be positive or sum to one.
Shapes: H query heads, G key/value heads, L queries, S keys, D head dimension.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.attention.full import full_attention
from effitrans.attention.interface import CHILD, NAME, Call, recording
from effitrans.checkpoint.accepting import evaluation_mode
from effitrans.errors import UsageError


@torch.no_grad()
def attention_maps(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The attention of every layer on one example.

    Args:
        model: any model whose architecture uses transformers' attention interface, with operators or without.
        inputs: its inputs, with a batch of one.

    Returns:
        Path of the attention module -> float32 [H, L, S], in the order in which the layers ran.

    Raises:
        UsageError: more than one example, or an architecture outside the interface.
    """
    sizes = {tensor.shape[0] for tensor in inputs.values()}
    if sizes != {1}:
        raise UsageError(f"attention maps are drawn for one example, received a batch of {max(sizes)}")
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, Tensor] = {}

    def record(module: nn.Module, call: Call) -> None:
        # A decoder's layers run once here; the first call of a layer is the one on the whole input.
        found.setdefault(names[module], _implied(module, call))

    before = model.config._attn_implementation or "sdpa"
    try:
        model.set_attn_implementation(NAME)
        with evaluation_mode(model), recording(record):
            model(**inputs)
    finally:
        model.set_attn_implementation(before)
    if not found:
        raise UsageError(f"{type(model).__name__} does not go through transformers' attention interface: no maps")
    return found


def _implied(module: nn.Module, call: Call) -> Tensor:
    """The matrix [H, L, S], in blocks of as many columns as values have features."""
    attend = getattr(module, CHILD, None) or full_attention
    keys, features = call.value_BGSD.shape[2:]
    columns = []
    for start in range(0, keys, features):
        count = min(features, keys - start)
        value_BGSD = torch.zeros_like(call.value_BGSD)
        value_BGSD[:, :, start : start + count, :count] = torch.eye(count, dtype=value_BGSD.dtype)
        out_BHLD = attend(call.query_BHLD, call.key_BGSD, value_BGSD, call.mask, scale=call.scale, **call.extras)
        columns.append(out_BHLD[0, :, :, :count].float())
    return torch.cat(columns, dim=-1)
