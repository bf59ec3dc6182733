"""What the schemes of bitsandbytes share."""

from transformers import PreTrainedModel

from effitrans.errors import UsageError
from effitrans.quantization.calibration import CalibrationData
from effitrans.quantization.replacement import QuantizationResult
from effitrans.quantization.scheme import LinearScheme


class BitsAndBytes(LinearScheme):
    """Base of the schemes that bitsandbytes rounds for; it has kernels for some devices."""

    def apply(self, model: PreTrainedModel, data: CalibrationData) -> QuantizationResult:
        _require_device(model, self.name)
        return super().apply(model, data)


def _require_device(model: PreTrainedModel, scheme: str) -> None:
    import bitsandbytes

    known = getattr(bitsandbytes, "supported_torch_devices", {"cpu", "cuda"})
    if model.device.type not in known:
        raise UsageError(
            f"{scheme} runs through bitsandbytes {bitsandbytes.__version__}, which has no kernels for "
            f"{model.device.type} (it has for {', '.join(sorted(known))}): move the model to one of these, or use rtn "
            "or int8-dynamic, which run everywhere"
        )
