"""Scheme `int8-smooth`: `int8-dynamic` after SmoothQuant and bias correction."""

from typing import ClassVar

from transformers import PreTrainedModel

from effitrans.quantization.calibration import CalibrationData
from effitrans.quantization.replacement import QuantizationResult
from effitrans.quantization.schemes.int8.calibrated import CalibratedInt8


class Int8Smooth(CalibratedInt8):
    """Scheme `int8-smooth`: `int8-dynamic` after SmoothQuant and bias correction, both from calibration data."""

    name: ClassVar[str] = "int8-smooth"

    def apply(self, model: PreTrainedModel, data: CalibrationData) -> QuantizationResult:
        return self.calibrate(model, data, smooth=True, observer=None)
