"""The modules that quantized models consist of, and their arithmetic; schemes choose what they hold."""

from effitrans.quantization.modules.base import FixedTypes, QuantizedLinear
from effitrans.quantization.modules.integer import Int8Embedding, Int8Linear
from effitrans.quantization.modules.packed import PackedLinear

__all__ = ["FixedTypes", "Int8Embedding", "Int8Linear", "PackedLinear", "QuantizedLinear"]
