"""Scheme `int8-qat`: train with fake int8, then store int8."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import nn
from transformers import PreTrainedModel

from effitrans.quantization.calibration import Batch, trace
from effitrans.quantization.modules.fake import FakeQuantLinear
from effitrans.quantization.modules.kernels import fixed_grid
from effitrans.quantization.schemes.int8.observers import ObserverName, input_ranges
from effitrans.quantization.schemes.trained.base import InputGrid, Trained
from effitrans.quantization.selection import Target, names_of


class Int8QAT(Trained):
    """Scheme `int8-qat`: train with fake quantization under the floating-point model, then store true int8."""

    name: ClassVar[str] = "int8-qat"

    activations: Literal["dynamic", "static"] = "dynamic"
    """"dynamic": a range per token, as `int8-dynamic`. "static": a range per layer, as `int8-static`, that is
    calibrated first; its step is then learned."""
    steps: Literal["learned", "largest"] = "learned"
    """Steps of the weights: "learned" (LSQ), or always the one that holds the largest weight of a channel."""
    observer: ObserverName = "mse"
    """See `Int8Static.observer`; for static activations."""

    @property
    def calibrates(self) -> bool:
        return self.activations == "static"

    def input_grids(
        self, model: PreTrainedModel, linears: list[Target], batches: Sequence[Batch]
    ) -> dict[nn.Module, InputGrid]:
        if not self.calibrates:
            return {}
        found = trace(model, names_of(linears), batches)
        ranges = input_ranges(model, found.order, batches, {}, self.observer)
        return {layer: fixed_grid(*limits) for layer, limits in ranges.items()}

    def fake(self, linear: Any, grid: InputGrid | None) -> nn.Module:
        return FakeQuantLinear.from_float(linear, learned=self.steps == "learned", input_grid=grid)
