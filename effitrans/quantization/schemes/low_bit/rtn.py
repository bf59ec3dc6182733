"""Scheme `rtn`: round to nearest."""

from typing import ClassVar

from effitrans.quantization.schemes.low_bit.base import LowBit


class RTN(LowBit):
    """Scheme `rtn`: each weight rounded to the nearest point of its group's grid. Needs no data."""

    name: ClassVar[str] = "rtn"
