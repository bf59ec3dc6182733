"""`export`: the verb over all formats."""

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans import __version__
from effitrans.checkpoint.accepting import takes_models
from effitrans.errors import RunFailed, UsageError, WrongResult, unknown_name
from effitrans.exporting import onnx_format, openvino_format
from effitrans.exporting.examples import for_tracing, generated, real
from effitrans.exporting.graph import Graph
from effitrans.exporting.layers import OPSET, int8_layers
from effitrans.exporting.parity import TOLERANCE, Parity, Run, compare
from effitrans.files import check_output_directory, output_directory, write_text
from effitrans.versions import check_versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """What a format is made of."""

    file: str
    packages: tuple[str, ...]
    write: Callable[[PreTrainedModel, Mapping[str, Tensor], Path], Graph]
    reference: Callable[[PreTrainedModel], PreTrainedModel]
    """The PyTorch model that the file computes."""
    engine: Callable[[Path, Graph], Run]
    dynamic_int8: str
    """What becomes of int8 layers whose input has a range for each token."""


FORMATS: dict[str, Format] = {
    "onnx": Format(
        onnx_format.FILE,
        onnx_format.PACKAGES,
        onnx_format.write,
        onnx_format.reference,
        onnx_format.engine,
        onnx_format.DYNAMIC_INT8,
    ),
    "openvino": Format(
        openvino_format.FILE,
        openvino_format.PACKAGES,
        openvino_format.write,
        openvino_format.reference,
        openvino_format.engine,
        openvino_format.DYNAMIC_INT8,
    ),
}
"""Name, as `--format` writes it -> format."""


class Exported(pydantic.BaseModel):
    """What an export wrote; kept beside the file as `export.json`."""

    format: str
    file: str
    opset: int
    """Version of ONNX's operators."""
    architecture: str
    inputs: dict[str, str]
    """Name -> type and shape."""
    outputs: tuple[str, ...]
    int8_layers: int
    int8_tables: int
    parity: Parity
    """The comparison of the engine with PyTorch on the examples."""
    notes: tuple[str, ...]
    versions: dict[str, str]


@takes_models("model")
def export(
    model: PreTrainedModel,
    directory: str | Path,
    *,
    format: str = "onnx",
    processor: Any = None,
    data: Any = None,
    examples: int = 64,
    tolerance: float = TOLERANCE,
    overwrite: bool = False,
) -> Exported:
    """Write a model for another engine, and prove there that it computes the same.

    The folder holds the model, its config, the tokenizer or image processor, `export.json` and a README. It is written
    only if the engine agrees with PyTorch at every batch size and length that is tried.

    Args:
        model: float32 or int8, pruned or not, on the CPU. It is not changed.
        directory: the output folder.
        format: `onnx` or `openvino`.
        processor: tokenizer or image processor, saved too; tells which inputs the graph takes.
        data: examples to compare on, beside generated ones: what `quantize` takes as calibration data.
        examples: that many of `data` at most.
        tolerance: relative L2 error that is accepted in any case. In a model with int8 layers more is accepted where
            rounding explains it.
        overwrite: replace the folder.

    Raises:
        UsageError: unknown format; packages that are not installed; a model or module that cannot be exported; an
            output folder that is not empty.
        WrongResult: an engine that disagrees.
        RunFailed: an engine that stops.

    Example:
        export(quantize(model, Int8()), "runs/onnx", processor=tokenizer, data="sst2")
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    chosen = FORMATS[format]
    check_output_directory(directory, overwrite)
    _check(model, format, chosen)
    batches = generated(model, processor)
    if data is not None:
        batches += real(data, model, processor, examples)
        names = set(batches[-1])
        if set(batches[0]) != names:
            batches = [batch for batch in batches if set(batch) == names]
    with output_directory(directory, overwrite) as folder:
        graph = chosen.write(model, for_tracing(batches), folder)
        parity = _compare(chosen, folder, graph, model, batches, tolerance)
        if not parity.holds:
            raise WrongResult(
                f"{format} computes something else than this {type(model).__name__}: relative error {parity.error:.3g} "
                f"({parity.bound:.3g} is accepted), {parity.wrong} of {parity.predictions} predictions differ. Nothing "
                "was written. The exporter cannot express what the model does at other batch sizes or lengths, or a "
                "swapped attention operator; raise tolerance only if the error is small and does not matter"
            )
        exported = _describe(model, format, chosen, graph, batches, parity)
        write_text(folder / "export.json", exported.model_dump_json(indent=2) + "\n")
        write_text(folder / "README.md", _readme(exported))
        model.config.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
    logger.info("%s agrees with PyTorch: relative error %.2g on %d examples", format, parity.error, parity.examples)
    return exported


def _check(model: PreTrainedModel, format: str, chosen: Format) -> None:
    if missing := [package for package in chosen.packages if importlib.util.find_spec(package) is None]:
        raise UsageError(
            f"--format {format} needs {' and '.join(missing)}, not installed here: pip install 'effitrans[export]'"
        )
    check_versions("export")
    if model.config.is_encoder_decoder:
        raise UsageError(
            f"{type(model).__name__} is an encoder-decoder, whose decoder runs once a token: export takes encoders, "
            "decoders and image models"
        )
    if model.device.type != "cpu" or model.dtype != torch.float32:
        raise UsageError(
            f"export takes a model in float32 on the CPU, received {model.dtype} on {model.device}: "
            'call model.to("cpu", torch.float32) first'
        )
    if model.training:
        raise UsageError("export takes a model in evaluation mode: call model.eval() first")


def _compare(
    chosen: Format,
    folder: Path,
    graph: Graph,
    model: PreTrainedModel,
    batches: list[dict[str, Tensor]],
    tolerance: float,
) -> Parity:
    """Compare; an engine that stops at a shape it was not traced at disagrees too."""
    try:
        return compare(chosen.engine(folder, graph), chosen.reference(model), batches, tolerance)
    except RuntimeError as error:
        raise _stopped(error) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("onnxruntime", "openvino"):
            raise
        raise _stopped(error) from error


def _stopped(error: Exception) -> RunFailed:
    return RunFailed(
        f"the engine stopped at the exported model, and nothing was written: {str(error).strip().splitlines()[0]}"
    )


def _describe(
    model: PreTrainedModel,
    format: str,
    chosen: Format,
    graph: Graph,
    batches: list[dict[str, Tensor]],
    parity: Parity,
) -> Exported:
    per_token, fixed, tables = int8_layers(model)
    notes = []
    if per_token:
        notes.append(chosen.dynamic_int8)
    if fixed:
        notes.append("the input of an int8 layer has one range, and the engine runs an integer product")
    if "use_cache" in model.config.to_dict():
        notes.append("no key/value cache: every call computes the whole sequence")
    versions = {"effitrans": __version__, "torch": str(torch.__version__)}
    versions |= {package: importlib.import_module(package).__version__ for package in chosen.packages}
    return Exported(
        format=format,
        file=chosen.file,
        opset=OPSET,
        architecture=type(model).__name__,
        inputs={name: _described(batches[0][name]) for name in graph.inputs},
        outputs=graph.outputs,
        int8_layers=per_token + fixed,
        int8_tables=tables,
        parity=parity,
        notes=tuple(notes),
        versions=versions,
    )


def _described(tensor: Tensor) -> str:
    free = ["batch", "length"] if tensor.dim() == 2 else ["batch", *map(str, tensor.shape[1:])]
    return f"{str(tensor.dtype).removeprefix('torch.')} [{', '.join(free)}]"


def _readme(exported: Exported) -> str:
    parity = exported.parity
    lines = [
        f"# {exported.architecture} for {exported.format}",
        "",
        f"`{exported.file}`, written by effitrans {exported.versions['effitrans']} (ONNX opset {exported.opset}).",
        "",
        "| input | type and shape |",
        "| --- | --- |",
        *(f"| `{name}` | {described} |" for name, described in exported.inputs.items()),
        "",
        f"Outputs: {', '.join(f'`{name}`' for name in exported.outputs)}.",
        f"Int8: {exported.int8_layers} linear layers and {exported.int8_tables} embedding tables.",
        *(f"Note: {note}." for note in exported.notes),
        "",
        f"Compared with PyTorch on {parity.examples} examples at several batch sizes and lengths: relative L2 error "
        f"{parity.error:.2g} ({parity.bound:.2g} accepted); {parity.predictions} predictions, of which {parity.wrong} "
        f"differ and {parity.ties} fall the other way in a tie. `export.json` holds the same for programs.",
        "",
    ]
    return "\n".join(lines)
