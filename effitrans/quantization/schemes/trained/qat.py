"""Scheme `qat`: train with fake weights of few bits, then store them packed."""

from typing import Any, ClassVar

from torch import nn

from effitrans.config import Rate
from effitrans.quantization.modules.fake_packed import FakePackedLinear
from effitrans.quantization.scheme import require_linears
from effitrans.quantization.schemes.low_bit.base import Bits, GroupSize, check_groups
from effitrans.quantization.schemes.trained.base import InputGrid, Trained
from effitrans.quantization.selection import Selection, names_of


class QAT(Trained):
    """Scheme `qat`: train with weights of few bits under the floating-point model, then store them packed.

    Weights have a learned step (LSQ) and a fixed zero point per group; activations are floating point. It is for 2 and
    3 bits, where rounding alone loses too much. It wants a larger learning rate than int8.
    """

    name: ClassVar[str] = "qat"

    bits: Bits = 2
    """Bits per weight; see `LowBit.bits`."""
    group_size: GroupSize | None = 64
    """See `LowBit.group_size`."""
    learning_rate: Rate = 1e-4
    """Peak learning rate."""

    def check(self, selection: Selection) -> None:
        require_linears(self, selection)
        check_groups(names_of(selection.untied), self.group_size)

    def fake(self, linear: Any, grid: InputGrid | None) -> nn.Module:
        return FakePackedLinear.from_float(linear, self.bits, self.group_size)
