"""Format `onnx`: a graph for ONNX Runtime, `model.onnx`.

Int8 layers stay int8: those with a range for each token as `MatMulInteger`, those with one fixed range as QDQ, which
ONNX Runtime fuses into one integer product when it loads the graph.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.exporting.graph import Graph, write_graph
from effitrans.exporting.parity import Run

FILE = "model.onnx"
PACKAGES = ("onnx", "onnxruntime")
DYNAMIC_INT8 = "the input of an int8 layer is quantized token by token, as in PyTorch; the product is MatMulInteger"


def write(model: PreTrainedModel, example: Mapping[str, Tensor], folder: Path) -> Graph:
    """Write the graph."""
    return write_graph(model, example, folder / FILE)


def reference(model: PreTrainedModel) -> PreTrainedModel:
    """The PyTorch model that the file computes: the model itself."""
    return model


def engine(folder: Path, graph: Graph) -> Run:
    """ONNX Runtime on the CPU, as many threads as PyTorch has."""
    import onnxruntime  # type: ignore[import-not-found]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])

    def run(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = session.run(list(graph.outputs), {name: batch[name].numpy() for name in graph.inputs})
        return {name: torch.from_numpy(array) for name, array in zip(graph.outputs, outputs, strict=True)}

    return run
