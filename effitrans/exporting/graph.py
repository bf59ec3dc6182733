"""The ONNX graph of a model: `write_graph`.

torch's tracing exporter is used: it takes seconds where the one on `torch.export` takes a minute, and other engines'
optimizers recognise its graphs. It bakes in what a model decides in Python, so a graph is to be checked at other batch
sizes and lengths than it was traced at; `effitrans.export` does. Modules of effitrans with integers or packed zeros
are replaced in a copy by twins that the exporter can write (`layers.py`).
"""

import copy
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.attention.interface import NAME as OPERATORS
from effitrans.errors import UsageError
from effitrans.exporting.layers import OPSET, replace_modules


@dataclass(frozen=True)
class Graph:
    """Names of what goes in and comes out, in order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class _Positional(nn.Module):
    """A model whose inputs and outputs are tuples of tensors."""

    def __init__(self, model: PreTrainedModel, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        output = self.model(**dict(zip(self.inputs, tensors, strict=True)), **_options(self.model))
        return tuple(output[name] for name in self.outputs)


def write_graph(
    model: PreTrainedModel, example: Mapping[str, Tensor], file: str | Path, *, weight_only: bool = False
) -> Graph:
    """Trace a model and write it as one ONNX file, with free batch size and length.

    Args:
        model: in evaluation mode, on the CPU. It is not changed.
        example: the inputs by name; at least two rows of at least two tokens, as sizes of 1 would be baked in.
        file: the file to be written.
        weight_only: let int8 layers multiply their weights, expanded, with floating-point inputs.

    Raises:
        UsageError: a module that cannot be exported, or what the exporter refuses.
        ModuleNotFoundError: there is no `onnx`.
    """
    inputs, outputs = tuple(example), tuple(floating_outputs(model, example))
    traced = copy.deepcopy(model)
    replace_modules(traced, weight_only=weight_only)
    if traced.config._attn_implementation != OPERATORS:
        # The plainest form of attention: engines know it, and it has no branch that depends on the mask's values.
        traced.set_attn_implementation("eager")
    axes: dict[str, dict[int, str]] = {}
    for name in inputs:
        axes[name] = {0: "batch", 1: "length"} if example[name].dim() == 2 else {0: "batch"}
    for name in outputs:
        axes[name] = {0: "batch"}
        if _follows_length(model, example, name):
            axes[name][1] = "length"
    with _quiet():
        try:
            torch.onnx.export(
                _Positional(traced, inputs, outputs).eval(),
                tuple(example.values()),
                str(file),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            first = str(error).strip().split("\n")[0]
            raise UsageError(f"{type(model).__name__} cannot be written as ONNX: {first}") from error
    return Graph(inputs, outputs)


@torch.no_grad()
def floating_outputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model answers, by name: its floating-point tensors without caches, hidden states and the loss."""
    output = model(**batch, **_options(model))
    return {
        name: value
        for name, value in output.items()
        if isinstance(value, Tensor) and value.is_floating_point() and name != "loss"
    }


def _options(model: PreTrainedModel) -> dict[str, Any]:
    """Arguments that keep caches out of the graph."""
    return {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}


def _follows_length(model: PreTrainedModel, example: Mapping[str, Tensor], name: str) -> bool:
    """Whether an output has a row for each token: its second size changes with the input's."""
    if "input_ids" not in example:
        return False
    shorter = {key: tensor[:, :-1] if tensor.dim() == 2 else tensor for key, tensor in example.items()}
    whole, cut = floating_outputs(model, example)[name], floating_outputs(model, shorter)[name]
    return whole.dim() > 1 and whole.shape[1] != cut.shape[1]


@contextmanager
def _quiet() -> Iterator[None]:
    """The tracer warns of every branch in Python; what comes of them is checked afterwards."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
