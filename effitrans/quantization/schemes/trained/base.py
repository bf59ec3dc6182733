"""Quantization-aware training: train with fake quantization under the floating-point model, then store integers.

`prepare` puts in fake modules, `convert` int8 or packed modules in their places; between the two the model is an
ordinary one that any loop can train. `apply`, behind `quantize`, distils the model from what it was. The converted
model computes what the fake one computes, but for the order of sums and, where an int8 activation lies between two
integers, a step.
"""

import copy
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.config import Count, Epochs, Rate
from effitrans.errors import UsageError
from effitrans.quantization.calibration import Batch, CalibrationData
from effitrans.quantization.modules.fake import FakeQuantEmbedding, FakeQuantLinear
from effitrans.quantization.replacement import QuantizationResult, Replacement, install
from effitrans.quantization.scheme import DataUse, Scheme
from effitrans.quantization.selection import Target

InputGrid = tuple[Tensor, Tensor]
"""Scale and zero point of a layer's input."""


class Trained(Scheme):
    """Base of the schemes that train. They distil the model from what it was in floating point."""

    uses_data_for: ClassVar[DataUse] = "training"

    epochs: Epochs = 1.0
    """Passes over the training data."""
    max_steps: Count | None = None
    """Optimizer steps, whatever the number of epochs."""
    learning_rate: Rate = 2e-5
    """Peak learning rate."""
    batch_size: Count = 32
    """Examples per batch, in training and calibration."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the products in training; see `Training.precision`."""
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the floating-point model's answers in the loss, against that of the labels; see `Distillation.alpha`."""

    @model_validator(mode="after")
    def _no_bound(self) -> Self:
        if self.max_error is not None or self.max_drop is not None:
            raise UsageError(f"{self.name} trains all layers together: leave max_error and max_drop out")
        return self

    @property
    def calibrates(self) -> bool:
        """Whether `input_grids` looks at calibration data."""
        return False

    def input_grids(
        self, model: PreTrainedModel, linears: list[Target], batches: Sequence[Batch]
    ) -> dict[nn.Module, InputGrid]:
        """The grids on which the inputs of layers begin; without one, the layer's input has no fixed grid."""
        return {}

    def fake(self, linear: Any, grid: InputGrid | None) -> nn.Module:
        """The module that trains in the place of a linear layer which shares no table's weight."""
        raise NotImplementedError

    def apply(self, model: PreTrainedModel, data: CalibrationData) -> QuantizationResult:
        """Train and quantize `model` in place.

        Raises:
            UsageError: also what `effitrans.distill` refuses.
        """
        from effitrans.distillation import Distillation, distill

        teacher = copy.deepcopy(model)
        batches = data.batches(model, self) if self.calibrates else []
        prepared = prepare(model, self, batches)
        settings: dict[str, Any] = self.model_dump(include=set(Distillation.model_fields) & set(Trained.model_fields))
        distill(
            model,
            teacher,
            data.data,
            Distillation(**settings),
            processor=data.processor,
            teacher_processor=data.processor,
        )
        return convert(model, prepared)


def prepare(model: PreTrainedModel, config: Trained, batches: Sequence[Batch] = ()) -> QuantizationResult:
    """Put fake-quantized modules in the places of linear layers and tables, in place.

    Args:
        model: in floating point.
        config: which modules, and how they are quantized.
        batches: calibration data, where the scheme calibrates.
    """
    selection = config.select(model)
    grids = config.input_grids(model, selection.linears, batches)
    untied = {target.module for target in selection.untied}
    replacements = []
    for target in selection.targets:
        layer: Any = target.module
        if target.is_embedding:
            fake: nn.Module = FakeQuantEmbedding.from_float(layer)
        elif layer in untied:
            fake = config.fake(layer, grids.get(layer))
        else:
            # A table's rows have the step of their largest entry, so a layer that shares the table has it too.
            fake = FakeQuantLinear.from_float(layer, learned=False, input_grid=grids.get(layer))
        replacements.append(Replacement.of(target, fake))
    install(model, replacements)
    return QuantizationResult(replacements, selection.left)


def convert(model: PreTrainedModel, prepared: QuantizationResult) -> QuantizationResult:
    """Put int8 or packed modules in the places of the fake ones, in place.

    What shared a weight shares its integers, unless its step was learned: then the integers differ.
    """
    shared: dict[int, nn.Parameter] = {}
    replacements = []
    for replacement in prepared.replacements:
        fake: Any = replacement.quantized
        quantized = fake.to_integers()
        if getattr(fake, "step", None) is None:
            quantized.weight = shared.setdefault(id(fake.weight), quantized.weight)
        replacements.append(Replacement(replacement.target, quantized.eval()))
    install(model, replacements)
    return QuantizationResult(replacements, prepared.left, prepared.notes)
