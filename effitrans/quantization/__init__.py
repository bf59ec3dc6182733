"""Quantization: integer weights, integer products, integer storage."""

from effitrans.quantization.config import SCHEMES, Int8
from effitrans.quantization.modules import Int8Embedding, Int8Linear
from effitrans.quantization.quantize import quantize

__all__ = ["SCHEMES", "Int8", "Int8Embedding", "Int8Linear", "quantize"]
