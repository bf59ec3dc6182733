"""The quantization schemes. Adding one is its file and one line here."""

from effitrans.errors import unknown_name
from effitrans.quantization.scheme import Scheme
from effitrans.quantization.schemes.bits_and_bytes.four_bit import FP4, NF4
from effitrans.quantization.schemes.bits_and_bytes.llm_int8 import LLMInt8
from effitrans.quantization.schemes.int8.dynamic import Int8
from effitrans.quantization.schemes.int8.smooth import Int8Smooth
from effitrans.quantization.schemes.int8.static import Int8Static
from effitrans.quantization.schemes.low_bit.awq import AWQ
from effitrans.quantization.schemes.low_bit.gptq import GPTQ
from effitrans.quantization.schemes.low_bit.rtn import RTN
from effitrans.quantization.schemes.trained.int8_qat import Int8QAT
from effitrans.quantization.schemes.trained.qat import QAT

SCHEMES: dict[str, type[Scheme]] = {
    "int8-dynamic": Int8,
    "int8-smooth": Int8Smooth,
    "int8-static": Int8Static,
    "int8-qat": Int8QAT,
    "rtn": RTN,
    "gptq": GPTQ,
    "awq": AWQ,
    "qat": QAT,
    "nf4": NF4,
    "fp4": FP4,
    "llm-int8": LLMInt8,
}
"""Scheme name, as recipes and `--scheme` write it -> config, which does it."""


def scheme_config(name: str) -> Scheme:
    """The config of the scheme `name` with its defaults.

    Raises:
        UsageError: an unknown scheme, with the nearest one.
    """
    if name not in SCHEMES:
        raise unknown_name("quantization scheme", name, SCHEMES)
    return SCHEMES[name]()
