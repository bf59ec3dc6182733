"""The verb: every family, after pruning, tied, saved and loaded, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

import effitrans.quantization
from effitrans import checkpoint
from effitrans.errors import UsageError
from effitrans.pruning import Pruning, Sparsity, prune
from effitrans.quantization import SCHEMES, Int8, Int8Embedding, Int8Linear, quantize
from effitrans.quantization.calibration import CalibrationData
from tests.architectures.families import FAMILIES, Family

BY_NAME = {family.name: family for family in FAMILIES}
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)

README = Path(__file__).parents[2] / "README.md"
KEPT = {"classifier", "classifier.dense", "classifier.out_proj"}
"""Linear layers that the default leaves."""


def logits(model: PreTrainedModel, family: Family) -> torch.Tensor:
    with torch.no_grad():
        return model(**family.inputs()).logits


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def integer_modules(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, (Int8Linear, Int8Embedding))}


@families
def test_every_product_becomes_integer_and_the_output_stays_close(family: Family):
    model = family.model()
    before = logits(model, family)
    small = quantize(model, Int8())
    left = {
        name
        for name, module in small.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and type(module) not in (Int8Linear,)
    }
    # BART multiplies its embeddings by a factor in a class of its own, so they and the tied output layer stay.
    assert left <= KEPT | ({"lm_head"} if family.name == "bart" else set())
    # These random models are far noisier than trained ones: weights of std 0.25 and heads of 8 features.
    assert relative(logits(small, family), before) < (0.5 if "t5" in family.name else 0.1)
    assert torch.equal(logits(model, family), before)
    assert not integer_modules(model)


@families
def test_saved_and_loaded_it_is_bit_equal_and_small(family: Family, tmp_path: Path):
    model = family.model()
    model.save_pretrained(tmp_path / "float")
    small = quantize(model, Int8())
    small.save_pretrained(tmp_path / "int8")
    loaded = getattr(transformers, family.auto_class).from_pretrained(tmp_path / "int8")
    assert torch.equal(logits(loaded, family), logits(small, family))
    assert loaded.is_quantized
    assert {name: tensor.dtype for name, tensor in loaded.state_dict().items()} == {
        name: tensor.dtype for name, tensor in small.state_dict().items()
    }
    sizes = [checkpoint.bytes_on_disk(tmp_path / name) for name in ("int8", "float")]
    assert sizes[0] < 0.45 * sizes[1]
    if family.tied and family.name != "bart":
        output, table = loaded.get_output_embeddings(), loaded.get_input_embeddings()
        assert isinstance(output, Int8Linear)
        assert isinstance(table, Int8Embedding)
        assert output.weight is table.weight
        assert torch.equal(output.scale, table.scale)


PRUNED = ["bert", "distilbert", "roberta", "gpt2", "llama", "vit", "t5", "base-decoder"]


@pytest.mark.parametrize("name", PRUNED)
def test_pruned_models_with_odd_widths(name: str, tmp_path: Path):
    family = BY_NAME[name]
    pruned = prune(family.model(), Pruning(heads=0.25, ffn=0.2, multiple_of=1))
    widths = {weight.shape for weight in pruned.parameters() if weight.dim() == 2}
    assert any(size % 2 for shape in widths for size in shape), "the test wants an odd width"
    before = logits(pruned, family)
    small = quantize(pruned, Int8())
    assert relative(logits(small, family), before) < (0.5 if name == "t5" else 0.1)
    checkpoint.save(small, tmp_path / "model")
    loaded = getattr(transformers, family.auto_class).from_pretrained(tmp_path / "model")
    assert torch.equal(logits(loaded, family), logits(small, family))
    assert [entry["verb"] for entry in checkpoint.history(loaded)] == ["prune", "quantize"]


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_fresh_process_gives_the_same_logits(name: str, tmp_path: Path):
    family = BY_NAME[name]
    small = quantize(family.model(), Int8())
    checkpoint.save(small, tmp_path / "model")
    inputs = {key: value.tolist() for key, value in family.inputs().items()}
    script = (
        "import json, sys, torch, effitrans, transformers\n"
        f"model = transformers.{family.auto_class}.from_pretrained(sys.argv[1])\n"
        "inputs = {k: torch.tensor(v) for k, v in json.load(sys.stdin).items()}\n"
        "torch.set_num_threads(1)\n"
        "torch.save(model(**inputs).logits.detach(), sys.argv[2])\n"
    )
    subprocess.run(
        [sys.executable, "-c", script, tmp_path / "model", tmp_path / "logits"],
        input=json.dumps(inputs),
        text=True,
        check=True,
        capture_output=True,
    )
    torch.set_num_threads(1)
    assert torch.equal(torch.load(tmp_path / "logits"), logits(small, family))


@pytest.mark.parametrize("name", ["gpt2", "llama", "t5", "base-seq2seq"])
def test_generation_runs_on_integers(name: str):
    family = BY_NAME[name]
    small = quantize(family.model(), Int8())
    prompt = {"input_ids": family.inputs()["input_ids"][:1]}
    ids = small.generate(**prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    again = small.generate(**prompt, max_new_tokens=5, min_new_tokens=5, do_sample=False, use_cache=False)
    assert torch.equal(ids, again)


def test_tied_weights_are_stored_once(tmp_path: Path):
    from safetensors import safe_open

    small = quantize(BY_NAME["gpt2"].model(), Int8())
    assert small.lm_head.weight is small.transformer.wte.weight
    checkpoint.save(small, tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names


@pytest.mark.parametrize("options", [{"embeddings": False}, {"skip": "lm_head"}, {"skip": "wte"}], ids=str)
def test_a_tied_pair_is_left_together(options: dict, tmp_path: Path):
    family = BY_NAME["gpt2"]
    small = quantize(family.model(), Int8(**options))
    assert type(small.lm_head) is nn.Linear
    assert type(small.transformer.wte) is nn.Embedding
    assert small.lm_head.weight is small.transformer.wte.weight
    assert isinstance(small.transformer.h[0].mlp.c_fc, Int8Linear)
    checkpoint.save(small, tmp_path / "model")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(loaded, family), logits(small, family))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_16_bit_model_stays_one(dtype: torch.dtype, tmp_path: Path):
    family = BY_NAME["bert"]
    model = family.model().to(dtype)
    small = quantize(model, Int8())
    output = logits(small, family)
    assert output.dtype == dtype
    checkpoint.save(small, tmp_path / "model")
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert loaded.dtype == dtype
    assert torch.equal(logits(loaded, family), output)
    assert loaded.bert.encoder.layer[0].intermediate.dense.scale.dtype == torch.float32
    as_float32 = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", dtype=torch.float32
    )
    assert logits(as_float32, family).dtype == torch.float32


def test_loaded_as_another_head_or_as_the_bare_encoder(tmp_path: Path):
    family = BY_NAME["bert"]
    small = quantize(family.model(), Int8())
    checkpoint.save(small, tmp_path / "model")
    inputs = family.inputs()
    inputs.pop("labels")
    with torch.no_grad():
        expected = small.bert(**inputs).last_hidden_state
        assert torch.equal(
            transformers.AutoModel.from_pretrained(tmp_path / "model")(**inputs).last_hidden_state, expected
        )


def test_what_to_skip_is_chosen_by_path_part_or_wildcard():
    model = BY_NAME["bert"].model()
    names = set(integer_modules(quantize(model, Int8(skip=("bert.encoder.layer.0", "pooler", "out*", "classifier")))))
    assert "bert.encoder.layer.1.attention.self.query" in names
    assert not any(name.startswith("bert.encoder.layer.0.") for name in names)
    assert not any("output" in name or "pooler" in name for name in names)
    assert "classifier" in integer_modules(quantize(model, Int8(skip=())))


def test_embeddings_can_stay():
    small = quantize(BY_NAME["bert"].model(), Int8(embeddings=False))
    assert all(isinstance(module, Int8Linear) for module in integer_modules(small).values())


def test_the_history_says_what_was_done():
    small = quantize(BY_NAME["bert"].model(), Int8(embeddings=False))
    (entry,) = checkpoint.history(small)
    assert entry["verb"] == "quantize"
    assert entry["config"]["embeddings"] is False
    assert entry["summary"]["scheme"] == "int8-dynamic"
    assert entry["summary"]["linear_layers"] == 6 * 3 + 1
    assert entry["summary"]["embedding_tables"] == 0
    assert "classifier" in entry["summary"]["left"]
    assert entry["summary"]["weight_bytes_after"] < entry["summary"]["weight_bytes_before"]


def test_in_place_it_is_the_same_object_in_evaluation_mode():
    model = BY_NAME["bert"].model().train()
    assert quantize(model, inplace=True) is model
    assert not model.training
    assert integer_modules(model)


def test_a_module_used_in_two_places_stays_one():
    model = BY_NAME["bert"].model()
    layers = model.bert.encoder.layer
    layers[1].intermediate = layers[0].intermediate
    layers[2].output.dense.weight = layers[1].output.dense.weight
    Int8().apply(model, CalibrationData())
    assert layers[1].intermediate.dense is layers[0].intermediate.dense
    assert layers[2].output.dense.weight is layers[1].output.dense.weight
    assert layers[2].output.dense is not layers[1].output.dense


def test_a_weight_that_other_code_uses_is_left():
    model = BY_NAME["bert"].model()
    model.bert.probe = nn.Module()
    model.bert.probe.own = model.bert.encoder.layer[0].intermediate.dense.weight
    result = Int8().apply(model, CalibrationData())
    assert "bert.encoder.layer.0.intermediate.dense" in result.left


def test_quantizing_twice_is_refused(tmp_path: Path):
    small = quantize(BY_NAME["bert"].model(), Int8())
    with pytest.raises(UsageError, match=r"quantized already \(by effitrans\)"):
        quantize(small, Int8())
    checkpoint.save(small, tmp_path / "model")
    with pytest.raises(UsageError, match="quantized already"):
        quantize(checkpoint.load_model(tmp_path / "model", "AutoModelForSequenceClassification"))


def test_changing_nothing_is_refused_and_leaves_the_model():
    model = BY_NAME["bert"].model()
    with pytest.raises(UsageError, match="changes nothing in BertForSequenceClassification: it holds 23 linear layers"):
        quantize(model, Int8(skip=("bert", "classifier")), inplace=True)
    assert not integer_modules(model)


def test_a_name_to_skip_that_matches_nothing_is_refused():
    model = BY_NAME["bert"].model()
    with pytest.raises(UsageError, match=r"unknown module to skip 'poler': did you mean 'pooler'\? .*intermediate"):
        quantize(model, Int8(skip=("poler",)), inplace=True)
    assert not integer_modules(model)


def test_layers_are_skipped_by_number():
    model = BY_NAME["bert"].model()
    left = quantize(model, Int8(skip="0,2"))
    assert not any(f"layer.{i}." in name for i in (0, 2) for name in integer_modules(left))
    assert any("layer.1." in name for name in integer_modules(left))
    with pytest.raises(UsageError, match="skip: BertForSequenceClassification has no layer 3: it has 3"):
        quantize(model, Int8(skip=(3,)))


def test_the_config_of_another_pass_is_refused():
    with pytest.raises(UsageError, match="received a Pruning, which is for prune"):
        quantize(BY_NAME["bert"].model(), Pruning(heads=0.5))


def test_every_scheme_says_its_name_and_is_offered_by_the_package_and_listed_in_the_readme():
    for name, config in SCHEMES.items():
        assert config.name == name
        assert getattr(effitrans.quantization, config.__name__) is config
        assert f"`{name}`" in README.read_text(encoding="utf-8")


def test_every_scheme_rejects_unknown_keys():
    for config in SCHEMES.values():
        with pytest.raises(UsageError, match=r"unknown .* key 'embedings': did you mean 'embeddings'"):
            config.parse({"embedings": False})


def test_layers_that_are_stored_sparsely_are_refused_or_named():
    sparse = prune(next(f for f in FAMILIES if f.name == "bert").model(), Sparsity(sparsity=0.5))
    with pytest.raises(UsageError, match=r"store nothing but their nonzero weights .* naming them in skip"):
        quantize(sparse)
    small = quantize(sparse, Int8(skip=("encoder", "pooler", "classifier")))
    assert isinstance(small.bert.embeddings.word_embeddings, Int8Embedding)
    assert type(small.bert.encoder.layer[0].output.dense).__name__ == "SparseLinear"
