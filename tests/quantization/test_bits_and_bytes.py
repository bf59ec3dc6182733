"""NF4, FP4 and LLM.int8: values, sizes, outliers, reload in a fresh process, pruning, refusals."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from effitrans import checkpoint, prune, quantize
from effitrans.errors import UsageError
from effitrans.evaluation import size
from effitrans.pruning import Pruning
from effitrans.quantization import FP4, NF4, LLMInt8
from effitrans.quantization.calibration import relative_error
from effitrans.quantization.schemes.bits_and_bytes.four_bit import FourBitLinear
from effitrans.quantization.schemes.bits_and_bytes.llm_int8 import LLMInt8Linear
from tests.architectures.families import FAMILIES, logits

BY_NAME = {family.name: family for family in FAMILIES}
CONFIGS = {
    "nf4": NF4(),
    "fp4": FP4(),
    "nf4-single": NF4(double_quantization=False, block_size=128),
    "llm-int8": LLMInt8(),
}


@pytest.mark.parametrize("double_quantization", [False, True], ids=["single", "double_quantization"])
@pytest.mark.parametrize("number_type", ["nf4", "fp4"])
@pytest.mark.parametrize("shape", [(64, 128), (20, 48), (32, 32), (7, 33), (600, 64)], ids=str)
def test_weights_are_near_whatever_the_shape(shape, number_type, double_quantization):
    torch.manual_seed(0)
    linear = nn.Linear(shape[1], shape[0])
    layer = FourBitLinear.from_float(linear, number_type, 64, double_quantization)
    assert relative_error([layer.dequantized()], [linear.weight]) < (0.11 if number_type == "nf4" else 0.14)
    assert torch.equal(layer.dequantized(), layer.looked_up())
    x = torch.randn(2, 3, shape[1])
    expected = x @ layer.looked_up().t() + linear.bias
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    assert layer(x[:, :0]).shape == (2, 0, shape[0])


def test_conv1d_and_size():
    torch.manual_seed(0)
    conv = Conv1D(96, 64)
    layer = FourBitLinear.from_float(conv, "nf4", 64, True)
    assert relative_error([layer.dequantized().t()], [conv.weight]) < 0.11
    model = nn.Sequential(FourBitLinear.from_float(nn.Linear(512, 512, bias=False), "nf4", 64, True))
    assert size.parameters(model) == 512 * 512
    assert size.bits_per_weight(model) == pytest.approx(4.127, abs=0.002)


def test_outliers_are_multiplied_in_floating_point():
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 16), torch.randn(2, 5, 64)
    x[0, 1, 7] = 80.0
    before = x.clone()
    with_threshold, without = (LLMInt8Linear.from_float(linear, threshold) for threshold in (6.0, 0.0))
    expected = linear(x)
    assert relative_error([with_threshold(x)], [expected]) < 0.015
    assert relative_error([without(x)], [expected]) > 2 * relative_error([with_threshold(x)], [expected])
    assert torch.equal(x, before)
    assert with_threshold(x[:, :0]).shape == (2, 0, 16)
    assert with_threshold(x.bfloat16()).dtype == torch.bfloat16


LOAD = """
import sys, torch, transformers, effitrans
torch.set_num_threads(1)
from pathlib import Path
for folder in sorted(Path(sys.argv[1]).iterdir()):
    model = getattr(transformers, (folder / "auto_class").read_text()).from_pretrained(folder)
    with torch.no_grad():
        torch.save(model(**torch.load(folder / "batch.pt")).logits, folder / "logits.pt")
"""


def test_pruned_and_quantized_models_reload_bit_equal_in_a_fresh_process(tmp_path: Path):
    expected = {}
    for name in ("bert", "gpt2", "llama"):
        family = BY_NAME[name]
        for scheme, config in CONFIGS.items():
            pruned = prune(family.model(), Pruning(heads=0.25, ffn=0.25))
            small = quantize(pruned, config)
            kind = LLMInt8Linear if scheme == "llm-int8" else FourBitLinear
            assert any(isinstance(module, kind) for module in small.modules())
            folder = tmp_path / f"{name}-{scheme}"
            checkpoint.save(small, folder)
            (folder / "auto_class").write_text(family.auto_class)
            torch.save(family.inputs(), folder / "batch.pt")
            expected[folder] = logits(small, family.inputs())
            assert [entry["verb"] for entry in checkpoint.history(small)] == ["prune", "quantize"]
    subprocess.run([sys.executable, "-c", LOAD, str(tmp_path)], check=True, capture_output=True, text=True)
    for folder, right in expected.items():
        assert torch.equal(torch.load(folder / "logits.pt"), right), folder.name


def test_refusals(monkeypatch):
    import bitsandbytes

    model = BY_NAME["bert"].model()
    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    with pytest.raises(UsageError, match=r"nf4 runs through bitsandbytes .* no kernels for cpu .*use rtn"):
        quantize(model, NF4())
    monkeypatch.undo()
    with pytest.raises(UsageError, match="quantized already"):
        quantize(quantize(model, NF4()), FP4())
    with pytest.raises(UsageError, match="block_size"):
        NF4.parse({"block_size": 48})
    with pytest.raises(TypeError, match=r"received torch\.int64"):
        FourBitLinear.from_float(nn.Linear(8, 4), "nf4", 64, True)(torch.ones(1, 8, dtype=torch.long))


def test_from_the_command_line(tiny_teacher, tmp_path, monkeypatch):
    from effitrans.cli import main

    arguments = ["effitrans", "quantize", str(tiny_teacher), "--scheme", "nf4", "-o", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    model = checkpoint.load_model(tmp_path / "out", None)
    assert any(isinstance(module, FourBitLinear) for module in model.modules())
