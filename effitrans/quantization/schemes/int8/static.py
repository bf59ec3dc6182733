"""Scheme `int8-static`: an observer chooses one range for the input of each layer."""

from typing import ClassVar

from transformers import PreTrainedModel

from effitrans.quantization.calibration import CalibrationData
from effitrans.quantization.replacement import QuantizationResult
from effitrans.quantization.schemes.int8.calibrated import CalibratedInt8
from effitrans.quantization.schemes.int8.observers import ObserverName


class Int8Static(CalibratedInt8):
    """Scheme `int8-static`: int8 weights per output channel, activations with one fixed scale and zero point per layer.

    Faster than `int8-dynamic`, as no ranges are computed while the model runs, and less accurate.
    """

    name: ClassVar[str] = "int8-static"

    observer: ObserverName = "mse"
    """How the range of a layer's input is chosen: minmax, moving-average, percentile, mse or entropy."""
    smooth: bool = True
    """SmoothQuant first; it matters more here than with `int8-dynamic`."""

    def apply(self, model: PreTrainedModel, data: CalibrationData) -> QuantizationResult:
        return self.calibrate(model, data, smooth=self.smooth, observer=self.observer)
