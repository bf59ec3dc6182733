"""Every kind of module keeps its types: what is saved in one type and loaded in another is what a cast gives."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from effitrans import checkpoint, prune, quantize, swap_attention
from effitrans.attention import Linear, Linformer, Nystrom, Performer
from effitrans.checkpoint.kinds import MODULE_KINDS
from effitrans.config import Config
from effitrans.pruning import Pruning, Sparsity
from effitrans.quantization import AWQ, FP4, NF4, QAT, RTN, Int8, Int8QAT, Int8Smooth, Int8Static, LLMInt8
from effitrans.quantization.schemes.trained.base import prepare

IDS = torch.tensor([[5, 6, 7, 8, 9], [3, 2, 1, 0, 4]])
BATCHES = [{"input_ids": torch.randint(0, 50, (8, 10), generator=torch.Generator().manual_seed(i))} for i in range(3)]
TYPES = (torch.bfloat16, torch.float16, torch.float32)


def bert() -> PreTrainedModel:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(**size, vocab_size=50, initializer_range=0.3)).eval()


def gpt2() -> PreTrainedModel:
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
    return GPT2ForSequenceClassification(
        GPT2Config(**size, vocab_size=50, pad_token_id=0, initializer_range=0.3)
    ).eval()


def t5() -> PreTrainedModel:
    torch.manual_seed(0)
    size = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(**size, vocab_size=50)).eval()


def quantized(config: Config) -> Callable[[PreTrainedModel], PreTrainedModel]:
    return lambda model: quantize(model, config, BATCHES)


def in_training(config: Int8QAT | QAT) -> Callable[[PreTrainedModel], PreTrainedModel]:
    def make(model: PreTrainedModel) -> PreTrainedModel:
        prepare(model, config, BATCHES)
        checkpoint.record(model, "quantize", config)
        return model

    return make


Make = Callable[[PreTrainedModel], PreTrainedModel]
SPARE = Pruning(keep_attention_layers=(0,), keep_ffn_layers=(1,))
MAKERS: dict[str, dict[str, Make]] = {
    "int8_linear": {
        "smooth": quantized(Int8Smooth(fold=False)),
        "static": quantized(Int8Static(fold=False)),
    },
    "int8_embedding": {"dynamic": quantized(Int8())},
    "packed_linear": {"rtn": quantized(RTN(bits=3, group_size=16)), "awq": quantized(AWQ(group_size=16))},
    "four_bit_linear": {"nf4": quantized(NF4()), "fp4": quantized(FP4(double_quantization=False))},
    "llm_int8_linear": {"llm-int8": quantized(LLMInt8(threshold=2.0))},
    "fake_quant_linear": {"static": in_training(Int8QAT(activations="static"))},
    "fake_quant_embedding": {"largest": in_training(Int8QAT(steps="largest"))},
    "fake_packed_linear": {"qat": in_training(QAT(bits=3, group_size=16))},
    "attention_operator": {
        "performer": lambda model: swap_attention(model, Performer(num_features=8)),
        "gated": lambda model: swap_attention(model, Linear(feature_map="hedgehog", decay_gate=True)),
        "linformer": lambda model: swap_attention(model, Linformer(max_length=16, rank=4)),
        "nystrom": lambda model: swap_attention(model, Nystrom(num_landmarks=4)),
    },
    "absent_attention": {"spare": lambda model: prune(model, SPARE)},
    "zero": {"spare": lambda model: prune(model, SPARE)},
    "same": {"spare": lambda model: prune(model, SPARE)},
    "sparse_linear": {"half": lambda model: prune(model, Sparsity(sparsity=0.5))},
}
"""Kind -> what makes models that hold it, in all its forms that differ in their tensors. A new kind joins here."""

CASES = [
    pytest.param(kind, name, id=f"{kind}-{name}") for kind in MODULE_KINDS for name in MAKERS.get(kind, {"": None})
]


def made(kind: str, name: str, dtype: torch.dtype) -> PreTrainedModel:
    model = MAKERS[kind][name]((gpt2 if kind == "same" or name == "gated" else bert)().to(dtype)).eval()
    assert kind in {getattr(type(module), "kind", None) for module in model.modules()}
    return model


def types(model: PreTrainedModel) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in model.state_dict().items()}


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    return model(IDS).logits


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_reloads_bit_equal_in_every_type(kind: str, name: str, tmp_path: Path):
    model = made(kind, name, torch.bfloat16)
    model.save_pretrained(tmp_path)
    for asked in (None, "auto", *TYPES):
        again = type(model).from_pretrained(tmp_path, **({} if asked is None else {"dtype": asked}))
        right = copy.deepcopy(model).to(asked if isinstance(asked, torch.dtype) else torch.bfloat16)
        assert types(again) == types(right), asked
        assert again.dtype == right.dtype
        # Where libraries look that put layers of their own behind the model.
        assert next(again.parameters()).dtype == right.dtype
        assert torch.equal(logits(again), logits(right)), asked


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_casts_and_back(kind: str, name: str, tmp_path: Path):
    """To a narrower type and back, in every way there is to ask for it; what kinds fix loses nothing."""
    model = made(kind, name, torch.float32)
    before = types(model)
    ways: dict[torch.dtype, list[Callable[[PreTrainedModel], PreTrainedModel]]] = {
        torch.bfloat16: [lambda m: m.bfloat16(), lambda m: m.to("cpu", torch.bfloat16)],
        torch.float16: [lambda m: m.half(), lambda m: m.to(torch.zeros(1, dtype=torch.float16))],
    }
    for dtype, casts in ways.items():
        first, second = (cast(copy.deepcopy(model)) for cast in casts)
        assert first.dtype == second.dtype == dtype
        assert logits(first).dtype == dtype
        assert torch.equal(logits(first), logits(second))
        assert types(model) == before
        first.save_pretrained(tmp_path / str(dtype))
        assert torch.equal(logits(type(model).from_pretrained(tmp_path / str(dtype))), logits(first))
        assert types(first.float()) == before
        assert logits(first).dtype == torch.float32
    base = model.base_model.to(torch.bfloat16)
    assert base(IDS).last_hidden_state.dtype == torch.bfloat16


@pytest.mark.parametrize("config", [RTN(bits=4, group_size=16), Int8()], ids=["rtn", "int8-dynamic"])
def test_modules_that_an_architecture_keeps_in_float32(config: Config, tmp_path: Path):
    """T5 keeps an output projection in float32 under float16; what takes its place keeps its own types there too."""
    model = quantize(t5(), config)
    model.save_pretrained(tmp_path)
    again = T5ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16)
    right = copy.deepcopy(model).half()
    assert types(again) == types(right)
    outputs = [each(input_ids=IDS, decoder_input_ids=IDS).logits for each in (again, right)]
    assert torch.equal(*outputs)


LOAD = """
import sys
from pathlib import Path
import torch
import effitrans
from transformers import AutoModelForSequenceClassification

torch.set_num_threads(int(sys.argv[2]))
for folder in Path(sys.argv[1]).iterdir():
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        torch.save(model(torch.load(Path(sys.argv[1]).parent / "ids.pt")).logits, folder / "logits.pt")
"""


@pytest.mark.slow
def test_reloads_bit_equal_in_a_fresh_process(tmp_path: Path):
    torch.save(IDS, tmp_path / "ids.pt")
    expected = {}
    for case in CASES:
        model = made(*case.values, torch.bfloat16)
        model.save_pretrained(tmp_path / "models" / str(case.id))
        expected[str(case.id)] = logits(model)
    command = [sys.executable, "-c", LOAD, tmp_path / "models", str(torch.get_num_threads())]
    subprocess.run(command, check=True, timeout=600)
    for name, right in expected.items():
        assert torch.equal(torch.load(tmp_path / "models" / name / "logits.pt"), right), name
