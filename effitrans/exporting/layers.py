"""Twins of effitrans's modules that the ONNX exporter can write.

- `Int8Linear` with a range for each token: the row's range, its scale and its zero point are ordinary operators, and
  the product is `MatMulInteger` on the int8 weight. What is computed is what the layer computes, integer by integer.
- `Int8Linear` with one fixed range: `QuantizeLinear` and `DequantizeLinear` around `MatMul` (QDQ), which ONNX Runtime
  fuses into one integer product and OpenVINO runs as one.
- Weight-only: `DequantizeLinear` of the weight, which engines keep in int8, and a product in floating point.
- `SparseLinear`: a dense layer with the zeros in it.

An `Int8Embedding` needs no twin: a lookup in the int8 table and a product with the scale are written as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn

from effitrans.errors import UsageError
from effitrans.pruning.sparse.modules import SparseLinear
from effitrans.quantization.modules.integer import Int8Embedding, Int8Linear
from effitrans.quantization.modules.kernels import integer_product, quantize_on, quantize_rows

OPSET = 17
"""The first version of ONNX's operators that has layer normalization."""

REFUSED = {
    "packed_linear": "weights of few bits in groups: export the floating-point or an int8 model",
    "four_bit_linear": "bitsandbytes' 4-bit weights: export the floating-point or an int8 model",
    "llm_int8_linear": "bitsandbytes' int8 weights: quantize with int8-dynamic instead",
    "fake_quant_linear": "fake quantization: finish the training with quantize, which stores true int8",
    "fake_packed_linear": "fake quantization: finish the training with quantize, which packs the weights",
    "fake_quant_embedding": "fake quantization: finish the training with quantize, which stores true int8",
}
"""Kind of module -> why it cannot be written, and what to do."""


_LIBRARY = torch.library.Library("effitrans_export", "DEF")
_LIBRARY.define("integer_product(Tensor q, Tensor weight_KN) -> Tensor")
_LIBRARY.define("static_product(Tensor x, Tensor scale, Tensor zero, Tensor weight_KN, Tensor scale_N) -> Tensor")
_LIBRARY.define("weight_only_product(Tensor x, Tensor weight_KN, Tensor scale_N) -> Tensor")


def _integer_product(q: Tensor, weight_KN: Tensor) -> Tensor:
    product = integer_product(q.reshape(-1, q.shape[-1]), weight_KN.t().contiguous())
    return product.view(*q.shape[:-1], weight_KN.shape[1])


def _static_product(x: Tensor, scale: Tensor, zero: Tensor, weight_KN: Tensor, scale_N: Tensor) -> Tensor:
    zero_point = zero.to(torch.int32) - 128
    rounded = scale * (quantize_on(x, (scale, zero_point)).float() - zero_point)
    return _weight_only_product(rounded, weight_KN, scale_N)


def _weight_only_product(x: Tensor, weight_KN: Tensor, scale_N: Tensor) -> Tensor:
    return x @ (weight_KN.float() * scale_N)


def _write_integer_product(g: Any, q: Any, weight_KN: Any) -> Any:
    return g.op("MatMulInteger", q, weight_KN)


def _write_static_product(g: Any, x: Any, scale: Any, zero: Any, weight_KN: Any, scale_N: Any) -> Any:
    rounded = g.op("DequantizeLinear", g.op("QuantizeLinear", x, scale, zero), scale, zero)
    return _write_weight_only_product(g, rounded, weight_KN, scale_N)


def _write_weight_only_product(g: Any, x: Any, weight_KN: Any, scale_N: Any) -> Any:
    return g.op("MatMul", x, g.op("DequantizeLinear", weight_KN, scale_N, axis_i=1))


for _name, _compute, _write in (
    ("integer_product", _integer_product, _write_integer_product),
    ("static_product", _static_product, _write_static_product),
    ("weight_only_product", _weight_only_product, _write_weight_only_product),
):
    _LIBRARY.impl(_name, _compute, "CompositeExplicitAutograd")
    torch.onnx.register_custom_op_symbolic(f"effitrans_export::{_name}", _write, OPSET)


_OPS = torch.ops.effitrans_export


class ExportedInt8Linear(nn.Module):
    """The twin of an `Int8Linear`: [..., K] -> [..., N]."""

    def __init__(self, layer: Int8Linear, weight_only: bool) -> None:
        super().__init__()
        self.bias = layer.bias
        self.factor = layer.factor
        self.is_static = layer.input_scale is not None
        self.rounds_its_input = self.is_static or not weight_only
        self.register_buffer("weight_KN", layer.weight.detach().t().contiguous())
        self.register_buffer("scale", layer.scale)
        self.register_buffer("weight_sum", layer.weight_sum)
        if layer.input_scale is not None and layer.input_zero_point is not None:
            self.register_buffer("input_scale", layer.input_scale.float())
            # Unsigned, as all engines have kernels for it.
            self.register_buffer("input_zero", (layer.input_zero_point + 128).to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        if self.factor is not None:
            x = x * self.factor
        if self.is_static:
            y = _OPS.static_product(x, self.input_scale, self.input_zero, self.weight_KN, self.scale)
        elif not self.rounds_its_input:
            y = _OPS.weight_only_product(x, self.weight_KN, self.scale)
        else:
            q, x_scale, zero_point = quantize_rows(x)
            product = _OPS.integer_product(q, self.weight_KN)
            y = (product - zero_point * self.weight_sum).float() * x_scale * self.scale  # type: ignore[operator]
        return y if self.bias is None else y + self.bias


def replace_modules(model: nn.Module, *, weight_only: bool) -> None:
    """Replace, in place, the modules that the exporter cannot write.

    Raises:
        UsageError: a module without a twin.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        kind = getattr(type(module), "kind", None)
        if kind in REFUSED:
            raise UsageError(f"{path} cannot be exported: it holds {REFUSED[kind]}")
        if isinstance(module, Int8Linear):
            twin = replaced.get(module) or ExportedInt8Linear(module, weight_only)
        elif isinstance(module, SparseLinear):
            twin = replaced.get(module) or _dense(module)
        else:
            continue
        replaced[module] = twin
        parent, _, name = path.rpartition(".")
        model.get_submodule(parent).register_module(name, twin.eval())


def _dense(layer: SparseLinear) -> nn.Linear:
    with torch.device("meta"):
        built = nn.Linear(layer.in_features, layer.out_features, bias=False)
    built.weight, built.bias = nn.Parameter(layer.weight, requires_grad=False), layer.bias  # type: ignore[assignment]
    return built


def rounds_its_input(module: nn.Module) -> bool:
    """Whether it is an int8 layer whose input becomes integers, or the twin of one."""
    return isinstance(module, Int8Linear) or (isinstance(module, ExportedInt8Linear) and module.rounds_its_input)


def int8_layers(model: nn.Module) -> tuple[int, int, int]:
    """(int8 layers with a range a token, with a fixed range, int8 tables)."""
    linears = [module for module in model.modules() if isinstance(module, Int8Linear)]
    fixed = sum(layer.input_scale is not None for layer in linears)
    tables = sum(isinstance(module, Int8Embedding) for module in model.modules())
    return len(linears) - fixed, fixed, tables
