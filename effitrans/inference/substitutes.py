"""What `optimize` puts in place of operators in models with int8 layers: as exact as int8 needs, and faster.

Between integer products an int8 model spends most of its time in functions that are exact to seven digits, of which
int8 keeps two. Three things are replaced in the graph that Dynamo captured, before Inductor compiles it:

- GELU is a polynomial, as `erf` takes longer than all else between two products (`fast_gelu`).
- Softmax attention multiplies in bfloat16, with a polynomial for the exponential (`fast_attention`), on CPUs that
  multiply bfloat16.
- Layers that read the same tensor, as queries, keys and values do, quantize it once.

Shapes: B batch, H heads, L queries, S keys, D head dimension.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from effitrans.quantization.modules.kernels import quantize_rows

torch.compiler.allow_in_graph(quantize_rows)

MAX_KEYS = 1024
"""Keys up to which `fast_attention` is used: it holds all scores, and for longer inputs is no faster than SDPA."""

_GELU_BOUND = 4.3
_GELU_COEFFICIENTS = (
    0.39869082,
    -0.065944992,
    0.0095609203,
    -0.00103049178,
    8.02885406e-05,
    -4.34657795e-06,
    1.53496629e-07,
    -3.15510107e-09,
    2.84844891e-11,
)
"""Of the odd polynomial p with `x p(x)` nearest to GELU in the maximum norm on [0, 4.3] and p(4.3) = 1/2, found by
linear programming; lowest power first."""

_EXP_BOUND = 2.5
_EXP_SQUARINGS = 3
_EXP_COEFFICIENTS = (
    0.40001577,
    0.24046007,
    0.10620209,
    0.028436930,
    0.0079273674,
)
"""Of the polynomial p with `(x + 2.5) p(x)` nearest to e^x in relative error on [-1.25, 0] and between 0 and 1.05 e^x
on [-2.5, -1.25], found by linear programming; lowest power first."""


def substitute(graph: fx.Graph) -> None:
    """Replace, in place, what has a faster equivalent in a graph of Dynamo's with int8 layers."""
    quantized: dict[Any, fx.Node] = {}
    masks: dict[Any, fx.Node | None] = {None: None}
    for node in list(graph.nodes):
        if node.target is quantize_rows:
            first = quantized.setdefault(node.args, node)
            if first is not node:
                node.replace_all_uses_with(first)
                graph.erase_node(node)
        elif node.target is nn.functional.gelu and node.kwargs.get("approximate", "none") == "none":
            node.target, node.kwargs = fast_gelu, {}
        elif node.target is nn.functional.scaled_dot_product_attention and _is_plain(node):
            mask = node.kwargs.get("attn_mask")
            if mask not in masks:
                with graph.inserting_before(node):
                    masks[mask] = graph.call_function(additive_mask, (mask,))
            node.target = fast_attention
            node.kwargs = {"mask": masks[mask], "scale": node.kwargs.get("scale")}


def _is_plain(attention: fx.Node) -> bool:
    """Whether attention has no more than a mask and a scale, few keys, and a CPU that multiplies bfloat16.

    To ask for the number of keys, which is a symbol, sets a guard: the model is compiled again for longer inputs.
    """
    more = {name: value for name, value in attention.kwargs.items() if name not in ("attn_mask", "scale")}
    examples = [one.meta.get("example_value") for one in attention.args if isinstance(one, fx.Node)]
    tensors = [x for x in examples if isinstance(x, Tensor) and x.dim() == 4 and x.device.type == "cpu"]
    if len(tensors) != 3 or any(more.values()) or not torch.cpu._is_avx512_bf16_supported():
        return False
    query, key, value = tensors
    return query.shape[:2] == key.shape[:2] == value.shape[:2] and bool(key.shape[2] <= MAX_KEYS)


def fast_gelu(x: Tensor) -> Tensor:
    """GELU (Hendrycks & Gimpel 2016), `x Phi(x)`, with a polynomial for Phi on [-4.3, 4.3] and 0 or 1 outside.

    Differs from the exact function by at most 5e-5 in that range and by 3e-6 |x| outside it: a hundredth of the step
    of the int8 activations that are made of it. Any shape and floating-point type.
    """
    x32 = x.float()
    bounded = x32.clamp(-_GELU_BOUND, _GELU_BOUND)
    square = bounded * bounded
    return (x32 * (bounded * _horner(square, _GELU_COEFFICIENTS) + 0.5)).to(x.dtype)


def fast_attention(
    query_BHLD: Tensor,
    key_BHSD: Tensor,
    value_BHSD: Tensor,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Softmax attention whose two products take bfloat16 and add up in float32.

    The scores are divided by their sum after the second product, as FlashAttention does (Dao 2023, "FlashAttention-2",
    section 3.1): there are fewer outputs than scores. Bfloat16 keeps 8 bits of queries, keys, scores, values and
    weights, which moves the output by about 0.5 % where scores are of order 1, a tenth of what int8 layers do; scores
    of order s are off by up to s / 512, as in any bfloat16 model. The exponential adds 0.03 %.

    Args:
        query_BHLD, key_BHSD, value_BHSD: floating point; the values may have a size of their own.
        mask: added to the scores, as of `additive_mask`; broadcasts to [B, H, L, S].
        scale: of the scores. Default: D^-0.5.

    Returns:
        [B, H, L, D] in the type of the query; 0 where a query may look nowhere.
    """
    sites, shrink = query_BHLD.shape[:2], 0.5**_EXP_SQUARINGS
    scaled_BHLD = query_BHLD.float() * ((query_BHLD.shape[-1] ** -0.5 if scale is None else scale) * shrink)
    query, key, value = (x.bfloat16().flatten(0, 1) for x in (scaled_BHLD, key_BHSD, value_BHSD))
    scores = torch.bmm(query, key.transpose(1, 2)).unflatten(0, sites).float()
    if mask is not None:
        scores = scores + mask
    highest = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).min)
    weight = fast_exp(scores - highest).bfloat16()
    total = weight.float().sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    mixed = torch.bmm(weight.flatten(0, 1), value).unflatten(0, sites)
    return (mixed.float() / total).to(query_BHLD.dtype)


def additive_mask(mask: Tensor) -> Tensor:
    """An attention mask for `fast_attention`: float32, what is added to an eighth of the scores.

    Args:
        mask: bool, True where a query may look, or floating point, added to the scores; any shape.
    """
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, float("-inf"))
    return mask.float() * 0.5**_EXP_SQUARINGS


def fast_exp(eighth: Tensor) -> Tensor:
    """e^(8 x) of x at most 0, exactly 0 for x of -2.5 and below.

    A polynomial for e^x is squared three times. The relative error is at most 3.2e-4 for 8 x above -10, and the
    absolute error at most 2e-7 below. float32 of any shape.
    """
    x = eighth.clamp_min(-_EXP_BOUND)
    power = (x + _EXP_BOUND) * _horner(x, _EXP_COEFFICIENTS)
    for _ in range(_EXP_SQUARINGS):
        power = power * power
    return power


def _horner(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    polynomial = x * coefficients[-1] + coefficients[-2]
    for coefficient in reversed(coefficients[:-2]):
        polynomial = polynomial * x + coefficient
    return polynomial
