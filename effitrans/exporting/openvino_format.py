"""Format `openvino`: OpenVINO's intermediate representation, `model.xml` and `model.bin`.

Int8 layers with one fixed range are run in int8. OpenVINO has no integer product whose input is quantized token by
token: such layers keep their weights in int8 and multiply them, expanded, with floating-point inputs, which is nearer
to the floating-point model and no faster. For speed on OpenVINO quantize with `int8-static`.
"""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.exporting.graph import Graph, write_graph
from effitrans.exporting.layers import replace_modules
from effitrans.exporting.parity import Run

FILE = "model.xml"
PACKAGES = ("onnx", "openvino")
DYNAMIC_INT8 = (
    "the weight of an int8 layer is int8, its input stays floating point and so does the product, as OpenVINO has no "
    "integer product with a range for each token (int8-static runs in int8); the comparison was made so, and OpenVINO "
    "may round the input itself where its DYNAMIC_QUANTIZATION_GROUP_SIZE is not 0"
)


def write(model: PreTrainedModel, example: Mapping[str, Tensor], folder: Path) -> Graph:
    """Write the representation, by way of ONNX."""
    import openvino  # type: ignore[import-not-found]

    between = folder / "between.onnx"
    graph = write_graph(model, example, between, weight_only=True)
    openvino.save_model(openvino.convert_model(str(between)), folder / FILE, compress_to_fp16=False)
    between.unlink()
    return graph


def reference(model: PreTrainedModel) -> PreTrainedModel:
    """The PyTorch model that the file computes: int8 layers with a range for each token get floating-point inputs."""
    twin = copy.deepcopy(model)
    replace_modules(twin, weight_only=True)
    return twin


def engine(folder: Path, graph: Graph) -> Run:
    """OpenVINO on the CPU in full float32, as many threads as PyTorch has."""
    import openvino  # type: ignore[import-not-found]

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    compiled = openvino.Core().compile_model(folder / FILE, "CPU", settings)

    def run(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = compiled({name: batch[name].numpy() for name in graph.inputs})
        return {name: torch.from_numpy(outputs[name].copy()) for name in graph.outputs}

    return run
