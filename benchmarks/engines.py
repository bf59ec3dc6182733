"""What the benchmarks share to run ONNX Runtime as its guide says: fused for BERT, then dynamic int8 per channel."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.exporting import write_graph


def onnxruntime_dynamic(model: PreTrainedModel, example: Mapping[str, Tensor], folder: Path) -> tuple[Any, Path]:
    """Export, fuse and quantize; returns the session and the file of the quantized graph.

    The model without quantization stays beside it as `model.onnx`.
    """
    import onnx  # type: ignore[import-not-found]
    import onnxruntime  # type: ignore[import-not-found]
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-not-found]
    from onnxruntime.transformers.optimizer import optimize_model  # type: ignore[import-not-found]

    config: Any = model.config
    whole, fused, small = (folder / f"{name}.onnx" for name in ("model", "fused", "int8"))
    write_graph(model, example, whole)
    optimised = optimize_model(str(whole), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size)
    # Shapes and types noted before the fusion belong to other tensors after it; without them the quantizer cannot
    # infer the outputs of fused operators and has to be told their type.
    del optimised.model.graph.value_info[:]
    optimised.save_model_to_file(str(fused))
    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(fused, small, per_channel=True, weight_type=QuantType.QInt8, extra_options=options)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(small), settings, providers=["CPUExecutionProvider"]), small
