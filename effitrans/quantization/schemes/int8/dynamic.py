"""Scheme `int8-dynamic`: each linear layer and embedding table is replaced by its int8 module."""

from typing import ClassVar

from transformers import PreTrainedModel

from effitrans.quantization.calibration import CalibrationData
from effitrans.quantization.replacement import QuantizationResult, install, int8_replacements
from effitrans.quantization.scheme import Scheme


class Int8(Scheme):
    """Scheme `int8-dynamic`: int8 weights, int8 activations quantized while the model runs, an integer product.

    Weights have one scale per output channel (symmetric), activations one scale and one zero point per token
    (asymmetric), embeddings one scale per row. No data are needed, except for a bound. Biases, norms and the
    arithmetic between the products keep the model's floating-point type.
    """

    name: ClassVar[str] = "int8-dynamic"

    def apply(self, model: PreTrainedModel, data: CalibrationData) -> QuantizationResult:
        selection = self.select(model)
        replacements = int8_replacements(selection.targets, {})
        install(model, replacements)
        return QuantizationResult(replacements, selection.left)
