"""Exported models: what the engine computes, what the graph holds, what is refused."""

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from effitrans import checkpoint, prune, quantize
from effitrans.attention import Local, swap_attention
from effitrans.errors import UsageError, WrongResult
from effitrans.exporting import FORMATS, export
from effitrans.exporting.examples import generated
from effitrans.exporting.graph import Graph, floating_outputs
from effitrans.exporting.layers import ExportedInt8Linear, replace_modules
from effitrans.exporting.parity import compare
from effitrans.pruning import Pruning, Sparsity
from effitrans.quantization import RTN, Int8, Int8Linear, Int8Static
from effitrans.quantization.calibration import relative_error
from tests.architectures.families import FAMILIES, logits
from tests.quantization.calibration import batches_for

BY_NAME = {family.name: family for family in FAMILIES}
STATIC = Int8Static(smooth=False, bias_correction=False, observer="minmax")


def _needs(format: str) -> pytest.MarkDecorator:
    missing = [name for name in FORMATS[format].packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


def _quantized(name: str, kind: str):
    family = BY_NAME[name]
    model = family.model()
    if kind == "int8":
        return quantize(model, Int8())
    return quantize(model, STATIC, batches_for(family)) if kind == "static" else model


def _cases() -> Iterator[Any]:
    """OpenVINO takes seconds to compile a graph, so one case of it is among the quick tests."""
    for format in FORMATS:
        for name in ("bert", "gpt2", "llama", "vit"):
            for kind in ("fp32", "int8", "static"):
                brief = name == "bert" and (format == "onnx" or kind == "static")
                marks = [_needs(format), *([] if brief else [pytest.mark.slow])]
                yield pytest.param(name, kind, format, marks=marks, id=f"{name}-{kind}-{format}")


@pytest.mark.parametrize(("name", "kind", "format"), _cases())
def test_the_engine_computes_the_model(name: str, kind: str, format: str, tmp_path: Path):
    model = _quantized(name, kind)
    exported = export(model, tmp_path / "out", format=format)
    assert exported.parity.holds
    assert exported.parity.wrong == 0
    assert exported.parity.predictions >= 6
    assert exported.int8_layers == sum(isinstance(module, Int8Linear) for module in model.modules())
    # Independently of the parity check: a fresh batch of another shape.
    graph = Graph(tuple(exported.inputs), exported.outputs)
    run = FORMATS[format].engine(tmp_path / "out", graph)
    batch = {key: torch.cat([value, value]) for key, value in generated(model, None, seed=5)[2].items()}
    expected = floating_outputs(FORMATS[format].reference(model), batch)["logits"]
    assert relative_error([run(batch)["logits"]], [expected]) < (1e-4 if kind == "fp32" else 0.1)
    assert {"config.json", "export.json", "README.md", exported.file} <= {p.name for p in (tmp_path / "out").iterdir()}


@_needs("onnx")
def test_the_integer_weights_are_in_the_graph_and_multiplied_as_integers(tmp_path: Path):
    import onnx

    for kind, operator in (("int8", "MatMulInteger"), ("static", "QuantizeLinear")):
        model = _quantized("bert", kind)
        export(model, tmp_path / kind)
        graph = onnx.load(str(tmp_path / kind / "model.onnx")).graph
        layers = {path: m for path, m in model.named_modules() if isinstance(m, Int8Linear)}
        # Engines may quantize an input once for several layers, graphs say so once for each layer.
        assert sum(node.op_type == operator for node in graph.node) == len(layers)
        stored = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer]
        stored = [torch.from_numpy(array.copy()) for array in stored if array.dtype == "int8" and array.ndim == 2]
        for layer in layers.values():
            assert any(torch.equal(tensor, layer.weight.t()) for tensor in stored)


@_needs("onnx")
def test_static_layers_are_fused_into_integer_products(tmp_path: Path):
    import onnx
    import onnxruntime

    model = _quantized("bert", "static")
    export(model, tmp_path / "out")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"), options)
    names = [node.op_type for node in onnx.load(str(tmp_path / "optimised.onnx")).graph.node]
    layers = sum(isinstance(module, Int8Linear) for module in model.modules())
    assert names.count("MatMulIntegerToFloat") >= layers - 1


@pytest.mark.parametrize(
    "format",
    [
        pytest.param("onnx", marks=_needs("onnx")),
        pytest.param("openvino", marks=[_needs("openvino"), pytest.mark.slow]),
    ],
)
def test_pruned_and_int8(tmp_path: Path, format: str):
    pruned = prune(BY_NAME["bert"].model(), Pruning(heads=0.25, ffn=0.5))
    exported = export(quantize(pruned), tmp_path / "out", format=format)
    assert exported.parity.wrong == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [entry["verb"] for entry in config["quantization_config"]["history"]] == ["prune", "quantize"]


@_needs("onnx")
def test_sparse_layers_become_dense_ones(tmp_path: Path):
    sparse = prune(BY_NAME["bert"].model(), Sparsity(sparsity=0.5))
    assert export(sparse, tmp_path / "out").parity.holds


@_needs("onnx")
def test_a_swapped_operator_is_exported_or_refused_but_never_dropped(tmp_path: Path):
    model = swap_attention(BY_NAME["bert"].model(), Local(window=2))
    try:
        exported = export(model, tmp_path / "out")
    except UsageError:
        assert not (tmp_path / "out").exists()
    else:
        run = FORMATS["onnx"].engine(tmp_path / "out", Graph(tuple(exported.inputs), exported.outputs))
        batch = generated(model, None, seed=9)[2]
        assert relative_error([run(batch)["logits"]], [floating_outputs(model, batch)["logits"]]) < 1e-4


@_needs("onnx")
def test_the_tokenizer_and_a_task(tiny_teacher, tiny_task, tiny_tokenizer, tmp_path: Path):
    model = checkpoint.load_model(tiny_teacher, "AutoModelForSequenceClassification")
    exported = export(model, tmp_path / "out", processor=tiny_tokenizer, data=str(tiny_task), examples=10)
    assert exported.parity.examples == 16
    assert set(exported.inputs) == {"input_ids", "attention_mask"}
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_twins_compute_what_the_layers_compute(static: bool):
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 10), torch.randn(3, 5, 24)
    factor = torch.rand(24) + 0.5
    layer = Int8Linear.from_float(linear, factor, (-3.0, 4.0) if static else None)
    torch.testing.assert_close(ExportedInt8Linear(layer, weight_only=False)(x), layer(x), rtol=1e-5, atol=1e-5)
    floating = ExportedInt8Linear(layer, weight_only=True)(x)
    rounded = (x * factor) @ (layer.weight.float() * layer.scale[:, None]).t() + linear.bias
    torch.testing.assert_close(floating, layer(x) if static else rounded, rtol=1e-5, atol=1e-5)


def _fake(monkeypatch: pytest.MonkeyPatch, model, disturb) -> None:
    """A format whose engine is PyTorch, its outputs changed."""

    def write(model, example, folder):
        (folder / "model.onnx").write_bytes(b"")
        return Graph(tuple(example), ("logits",))

    def engine(folder, graph):
        return lambda batch: {"logits": disturb(logits(model, dict(batch)))}

    made = replace(FORMATS["onnx"], packages=(), write=write, engine=engine, reference=lambda model: model)
    monkeypatch.setitem(FORMATS, "onnx", made)


def test_an_engine_that_disagrees_leaves_no_folder(monkeypatch, tmp_path: Path):
    model = BY_NAME["bert"].model()
    _fake(monkeypatch, model, lambda y: y)
    assert export(model, tmp_path / "right").parity.error == 0
    for name, disturb in {
        "off": lambda y: y * 1.001,
        "nan": lambda y: y * float("nan"),
        "misshapen": lambda y: y[:, :1],
        "flipped": lambda y: y.flip(1),
    }.items():
        _fake(monkeypatch, model, disturb)
        with pytest.raises(WrongResult, match="computes something else"):
            export(model, tmp_path / name)
        assert not list(tmp_path.glob(f"*{name}*"))


def test_ties_are_told_from_wrong_predictions():
    model = BY_NAME["bert"].model()
    model.classifier.weight.data.zero_()
    model.classifier.bias.data.copy_(torch.tensor([1.0, 1.0 + 1e-6]))
    batches = generated(model, None)
    found = compare(lambda batch: {"logits": logits(model, dict(batch)).flip(1)}, model, batches)
    assert (found.ties, found.wrong, found.predictions) == (6, 0, 6)
    model.classifier.bias.data.copy_(torch.tensor([1.0, 2.0]))
    found = compare(lambda batch: {"logits": logits(model, dict(batch)).flip(1)}, model, batches)
    assert (found.ties, found.wrong) == (0, 6)
    assert not found.holds


def test_refusals(monkeypatch, tmp_path: Path):
    model = BY_NAME["bert"].model()
    with pytest.raises(UsageError, match="did you mean 'onnx'"):
        export(model, tmp_path / "out", format="onxx")
    monkeypatch.setitem(FORMATS, "onnx", replace(FORMATS["onnx"], packages=("surely_absent",)))
    with pytest.raises(UsageError, match=r"surely_absent.*effitrans\[export\]"):
        export(model, tmp_path / "out")
    _fake(monkeypatch, model, lambda y: y)
    with pytest.raises(UsageError, match="encoder-decoder"):
        export(BY_NAME["t5"].model(), tmp_path / "out")
    with pytest.raises(UsageError, match="float32 on the CPU"):
        export(BY_NAME["bert"].model().bfloat16(), tmp_path / "out")
    with pytest.raises(UsageError, match="evaluation mode"):
        export(BY_NAME["bert"].model().train(), tmp_path / "out")
    packed = quantize(BY_NAME["bert"].model(), RTN(group_size=16))
    with pytest.raises(UsageError, match="few bits in groups: export the floating-point"):
        replace_modules(packed, weight_only=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        export(model, tmp_path / "full")
    assert not (tmp_path / "out").exists()
