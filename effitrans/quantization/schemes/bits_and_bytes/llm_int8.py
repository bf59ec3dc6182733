"""Scheme `llm-int8`: LLM.int8 of bitsandbytes, in a module that the manifest describes.

LLM.int8 (Dettmers et al. 2022): int8 rows of weights and of activations, symmetric, but for input features in which
an entry of the batch reaches the threshold: those are multiplied in floating point. bitsandbytes rounds the weights and
multiplies.

M rows, N output features, K input features.
"""

from typing import Annotated, Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from effitrans.config import Dimension
from effitrans.quantization.modules.base import QuantizedLinear
from effitrans.quantization.modules.linear import weight_of
from effitrans.quantization.schemes.bits_and_bytes.base import BitsAndBytes


class LLMInt8(BitsAndBytes):
    """Scheme `llm-int8`: int8 weights and activations, input features with outliers in floating point."""

    name: ClassVar[str] = "llm-int8"

    threshold: Annotated[float, Field(ge=0)] = 6.0
    """Magnitude from which an entry makes its input feature an outlier. 0: there are no outliers."""

    def build(self, linear: Any) -> nn.Module:
        return LLMInt8Linear.from_float(linear, self.threshold)


class LLMInt8Linear(QuantizedLinear):
    """A linear layer under LLM.int8: `weight` int8 [N, K], `scale` float32 [N] (the largest magnitude of each row)."""

    kind: ClassVar[str] = "llm_int8_linear"
    settings: ClassVar[tuple[str, ...]] = ("threshold",)
    weight: nn.Parameter
    scale: Tensor

    def __init__(
        self,
        in_features: Dimension,
        out_features: Dimension,
        threshold: float,
        bias: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(in_features, out_features)
        self.threshold = threshold
        self.weight = nn.Parameter(torch.zeros(out_features, in_features, dtype=torch.int8), requires_grad=False)
        self.register_buffer("scale", torch.zeros(out_features))
        self._add_bias(bias, dtype)

    @classmethod
    @torch.no_grad()
    def from_float(cls, linear: nn.Linear | Conv1D, threshold: float) -> Self:
        """Round the weight of an `nn.Linear` or `Conv1D`; the bias is kept as it is."""
        from bitsandbytes import functional

        weight_NK = weight_of(linear).detach().contiguous()
        q_NK, scale_N, _ = functional.int8_vectorwise_quant(_as_taken(weight_NK))
        with torch.device("meta"):
            built = cls(weight_NK.shape[1], weight_NK.shape[0], threshold, bias=False)
        built.weight = nn.Parameter(q_NK, requires_grad=False)
        built.scale, built.bias = scale_N.float(), linear.bias
        return built

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], in the type of `x`."""
        self.refuse_integers(x)
        from bitsandbytes import functional

        x_MK = x.reshape(-1, self.in_features)
        if not x_MK.numel():
            return x.new_zeros(*x.shape[:-1], self.out_features)
        # The quantizer sets large entries to zero in what it is given and puts them back.
        q_MK, scale_M, outliers = functional.int8_vectorwise_quant(_as_taken(x_MK).clone(), threshold=self.threshold)
        operations = torch.ops.bitsandbytes
        if outliers is not None and outliers.numel():
            operands = (x_MK, q_MK, self.weight, scale_M, self.scale, outliers)
            y_MN, _ = operations.int8_mixed_scaled_mm(*operands, None)
        else:
            y_MN = operations.int8_scaled_mm(q_MK, self.weight, scale_M, self.scale, bias=None, dtype=x.dtype)
        y = y_MN.view(*x.shape[:-1], self.out_features)
        return (y if self.bias is None else y + self.bias).to(x.dtype)


def _as_taken(x: Tensor) -> Tensor:
    """The type that bitsandbytes' int8 quantizer takes: any on CPUs, float16 elsewhere."""
    return x.float() if x.device.type == "cpu" else x.half()
