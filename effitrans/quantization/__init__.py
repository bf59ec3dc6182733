"""Quantization: integer weights, integer products, integer storage."""

from effitrans.quantization.modules.integer import Int8Embedding, Int8Linear
from effitrans.quantization.modules.packed import PackedLinear
from effitrans.quantization.quantize import quantize
from effitrans.quantization.scheme import Scheme
from effitrans.quantization.schemes import (
    AWQ,
    FP4,
    GPTQ,
    NF4,
    QAT,
    RTN,
    SCHEMES,
    Int8,
    Int8QAT,
    Int8Smooth,
    Int8Static,
    LLMInt8,
)

__all__ = [
    "AWQ",
    "FP4",
    "GPTQ",
    "NF4",
    "QAT",
    "RTN",
    "SCHEMES",
    "Int8",
    "Int8Embedding",
    "Int8Linear",
    "Int8QAT",
    "Int8Smooth",
    "Int8Static",
    "LLMInt8",
    "PackedLinear",
    "Scheme",
    "quantize",
]
