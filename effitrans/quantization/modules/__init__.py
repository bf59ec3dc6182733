"""The modules that quantized models consist of, and their arithmetic; schemes choose what they hold."""

from effitrans.quantization.modules.integer import FixedTypes, Int8Embedding, Int8Linear
from effitrans.quantization.modules.packed import PackedLinear

__all__ = ["FixedTypes", "Int8Embedding", "Int8Linear", "PackedLinear"]
