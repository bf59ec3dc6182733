"""The hook into `from_pretrained`: transformers calls it between building the skeleton and loading weights."""

from functools import wraps
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer

from effitrans.checkpoint.agreement import lay_out_caches
from effitrans.checkpoint.manifest import Manifest, apply
from effitrans.checkpoint.record import mark_trainability
from effitrans.checkpoint.weights import check_weights, resolve


@register_quantizer("effitrans")
class EffitransQuantizer(HfQuantizer):
    """Rebuilds the structure that the manifest describes, and checks that the weights fit it exactly."""

    requires_calibration = False
    quantization_config: Manifest

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        manifest = self.quantization_config
        apply(manifest, model, resolve(manifest, model))
        for kind in {type(module) for module in model.modules()}:
            if hasattr(kind, "kind") and hasattr(kind, "activate"):
                kind.activate(model)  # type: ignore[attr-defined]
        if checkpoint_files:
            check_weights(model, manifest, [Path(file) for file in checkpoint_files])

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        for module in model.modules():
            if hasattr(type(module), "kind") and hasattr(module, "settle"):
                module.settle()  # type: ignore[operator]
        mark_trainability(model, self.quantization_config)
        lay_out_caches(model, self.quantization_config)
        return model

    def is_serializable(self, safe_serialization: Any = None) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def _let_cast(name: str, dtype: torch.dtype) -> None:
    """Have a method of models that casts work for quantized ones: transformers refuses it, as other formats break."""
    refusing = getattr(PreTrainedModel, name)

    @wraps(refusing)
    def cast(model: PreTrainedModel, *args: Any) -> PreTrainedModel:
        if getattr(model, "quantization_method", None) == "effitrans":
            return model.to(dtype)  # type: ignore[arg-type]
        return refusing(model, *args)

    setattr(PreTrainedModel, name, cast)


_let_cast("half", torch.float16)
_let_cast("float", torch.float32)
