"""The manifest is derived by comparing a model with what its architecture builds, and rebuilds it exactly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from effitrans import checkpoint
from effitrans.checkpoint.manifest import Manifest, diff
from effitrans.errors import CheckpointError, UsageError

INPUT = torch.tensor([[5, 6, 7, 8, 9], [3, 2, 1, 0, 4]])


def tiny_bert(layers: int = 2) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=64, vocab_size=50
    )
    return BertForSequenceClassification(config).eval()


def narrow_ffn(model: BertForSequenceClassification, layer: int = 0, width: int = 40) -> None:
    """Cut one FFN by hand, as a pass would."""
    block = model.bert.encoder.layer[layer]
    up, down = block.intermediate.dense, block.output.dense
    up.weight, up.bias = nn.Parameter(up.weight[:width].clone()), nn.Parameter(up.bias[:width].clone())
    up.out_features = down.in_features = width
    down.weight = nn.Parameter(down.weight[:, :width].clone())


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(INPUT).logits


@pytest.fixture
def pruned(tmp_path: Path) -> tuple[BertForSequenceClassification, Path]:
    model = tiny_bert()
    narrow_ffn(model)
    checkpoint.record(model, "prune", {"ffn": 0.375})
    checkpoint.save(model, tmp_path / "model")
    return model, tmp_path / "model"


def edit_config(folder: Path, change) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"])
    file.write_text(json.dumps(config))


def test_unchanged_model_has_no_differences():
    assert diff(tiny_bert()) == ({}, {})


def test_difference_names_the_narrowed_modules_only():
    model = tiny_bert()
    narrow_ffn(model)
    modules, attributes = diff(model)
    assert modules == {
        "bert.encoder.layer.0.intermediate.dense": {"kind": "resized", "shapes": {"weight": [40, 32], "bias": [40]}},
        "bert.encoder.layer.0.output.dense": {"kind": "resized", "shapes": {"weight": [32, 40]}},
    }
    assert attributes == {
        "bert.encoder.layer.0.intermediate.dense": {"out_features": 40},
        "bert.encoder.layer.0.output.dense": {"in_features": 40},
    }


def test_gradient_checkpointing_is_no_difference():
    model = tiny_bert()
    model.gradient_checkpointing_enable()
    assert diff(model) == ({}, {})


def test_reload_is_bit_equal_and_trainable(pruned):
    model, folder = pruned
    again = AutoModelForSequenceClassification.from_pretrained(folder)
    assert torch.equal(logits(again), logits(model))
    assert not again.is_quantized
    again.train()
    again(INPUT, labels=torch.tensor([0, 1])).loss.backward()
    assert again.bert.encoder.layer[0].intermediate.dense.weight.grad.shape == (40, 32)
    assert again.half().dtype == torch.float16


def test_second_generation_is_bit_equal(pruned, tmp_path):
    _, folder = pruned
    again = AutoModelForSequenceClassification.from_pretrained(folder)
    narrow_ffn(again, layer=1, width=8)
    checkpoint.record(again, "prune", {"ffn": 0.875})
    checkpoint.save(again, tmp_path / "second")
    third = AutoModelForSequenceClassification.from_pretrained(tmp_path / "second")
    assert torch.equal(logits(third), logits(again))
    assert [entry["config"] for entry in checkpoint.history(third)] == [{"ffn": 0.375}, {"ffn": 0.875}]


@pytest.mark.slow
def test_fresh_process_reloads_bit_equal(pruned, tmp_path):
    model, folder = pruned
    script = (
        "import effitrans, torch, sys; from transformers import AutoModelForSequenceClassification as A;"
        "m = A.from_pretrained(sys.argv[1]);"
        f"torch.save(m(torch.tensor({INPUT.tolist()})).logits.detach(), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", script, str(folder), str(tmp_path / "logits.pt")], check=True)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), logits(model))


def test_bare_model_loads_from_a_classifier_and_back(pruned, tmp_path):
    model, folder = pruned
    bare = AutoModel.from_pretrained(folder)
    expected = model.bert(INPUT).last_hidden_state
    assert torch.equal(bare(INPUT).last_hidden_state, expected)
    checkpoint.record(bare, "train", {})
    checkpoint.save(bare, tmp_path / "bare")
    headed = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bare", num_labels=3)
    assert torch.equal(headed.bert(INPUT).last_hidden_state, expected)
    assert headed.classifier.out_features == 3


def test_removed_bias_and_removed_module():
    model = tiny_bert()
    model.bert.encoder.layer[1].output.dense.bias = None
    del model.bert.encoder.layer[1]
    model.bert.encoder.layer[0].output.dense.bias = None
    modules, _ = diff(model)
    assert modules["bert.encoder.layer.1"] == {"kind": "removed"}
    assert modules["bert.encoder.layer.0.output.dense"] == {"kind": "resized", "shapes": {"bias": None}}


def test_fewer_layers_by_config_is_an_ordinary_model(tmp_path):
    model = tiny_bert(layers=3)
    del model.bert.encoder.layer[1]
    model.bert.encoder.layer[1].attention.self.layer_idx = 1
    model.config.num_hidden_layers = 2
    checkpoint.record(model, "distill", {"layers": 2})
    assert getattr(model.config, "quantization_config", None) is None
    checkpoint.save(model, tmp_path / "model")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert torch.equal(logits(again), logits(model))
    assert [entry["verb"] for entry in checkpoint.history(again)] == ["distill"]


def test_history_moves_into_the_manifest_once_there_is_one():
    model = tiny_bert()
    checkpoint.record(model, "train", {"epochs": 1})
    narrow_ffn(model)
    checkpoint.record(model, "prune", {"ffn": 0.4})
    assert [entry["verb"] for entry in checkpoint.history(model)] == ["train", "prune"]
    assert not hasattr(model.config, "effitrans_history")


def test_tied_weights_stay_tied_and_are_saved_once(tmp_path):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=16)).eval()
    mlp = model.transformer.h[0].mlp
    mlp.c_fc.weight = nn.Parameter(mlp.c_fc.weight[:, :64].clone())
    mlp.c_fc.bias = nn.Parameter(mlp.c_fc.bias[:64].clone())
    mlp.c_proj.weight = nn.Parameter(mlp.c_proj.weight[:64].clone())
    mlp.c_fc.nf = mlp.c_proj.nx = 64
    checkpoint.record(model, "prune", {"ffn": 0.5})
    checkpoint.save(model, tmp_path / "model")
    again = checkpoint.load_model(tmp_path / "model", "AutoModelForCausalLM")
    assert torch.equal(logits(again), logits(model))
    assert again.lm_head.weight is again.transformer.wte.weight
    assert "lm_head.weight" not in load_file(tmp_path / "model" / "model.safetensors")


def test_bfloat16_is_kept(tmp_path):
    model = tiny_bert()
    narrow_ffn(model)
    model.to(torch.bfloat16)
    checkpoint.record(model, "prune", {})
    checkpoint.save(model, tmp_path / "model")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits(again), logits(model))


class Unlisted(nn.Linear):
    pass


def test_module_that_the_manifest_cannot_describe_is_refused():
    model = tiny_bert()
    model.bert.encoder.layer[0].output.dense = Unlisted(64, 32)
    with pytest.raises(CheckpointError, match=r"Unlisted.*cannot describe"):
        checkpoint.record(model, "strange", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda q: q.update(manifest_version=99), "version 99", id="newer-version"),
        pytest.param(
            lambda q: q["modules"].update({"bert.pooler.dense": {"kind": "int3_linear"}}), "int3_linear", id="kind"
        ),
        pytest.param(lambda q: q.update(surprise=1), "surprise", id="unknown-key"),
        pytest.param(
            lambda q: q["modules"].update({"bert.encoder.layer.7.x": {"kind": "resized", "shapes": {}}}),
            "layer.7",
            id="unknown-path",
        ),
        pytest.param(
            lambda q: q["modules"]["bert.encoder.layer.0.output.dense"]["shapes"].update(weight=[32, 41]),
            "misshapen",
            id="wrong-shape",
        ),
        pytest.param(
            lambda q: q["attributes"].update({"bert.pooler": {"forward": 1}}), "may not set 'forward'", id="method"
        ),
        pytest.param(
            lambda q: q["attributes"].update({"bert.pooler.dense": {"_version": 1}}), "may not set", id="private"
        ),
        pytest.param(lambda q: q.update(modules=[1]), "modules: Input should be a valid dict", id="not-an-object"),
        pytest.param(lambda q: q.update(manifest_version=-1), "manifest_version", id="negative-version"),
    ],
)
def test_damaged_manifest_is_refused(pruned, change, message):
    _, folder = pruned
    edit_config(folder, change)
    with pytest.raises(CheckpointError, match=message):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_missing_and_extra_weights_are_refused(pruned):
    _, folder = pruned
    file = folder / "model.safetensors"
    weights = {key: value.clone() for key, value in load_file(file).items()}  # the file itself is written anew
    name = "bert.encoder.layer.1.output.dense.weight"
    save_file({key: value for key, value in weights.items() if key != name}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"lacks weights \(1\): {name}"):
        AutoModelForSequenceClassification.from_pretrained(folder)
    save_file({**weights, "extra.weight": torch.zeros(1)}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"unexpected weights \(1\): extra.weight"):
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 7, 200, -10])
def test_truncated_weights_are_refused(pruned, keep):
    _, folder = pruned
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        checkpoint.load_model(folder)


def test_folders_that_are_no_model(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        checkpoint.load_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        checkpoint.load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        checkpoint.load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(CheckpointError, match="pickled weights"):
        checkpoint.load_model(tmp_path)
    with pytest.raises(CheckpointError, match="there is no folder"):
        checkpoint.load_model(tmp_path / "nowhere")


def test_save_refuses_a_full_folder_and_overwrites_on_request(pruned):
    model, folder = pruned
    with pytest.raises(UsageError, match="not empty"):
        checkpoint.save(model, folder)
    checkpoint.save(model, folder, overwrite=True)
    assert isinstance(checkpoint.load_model(folder), BertModel)


def test_loading_without_effitrans_fails_loudly(pruned):
    _, folder = pruned
    script = (
        "import sys; from transformers import AutoModelForSequenceClassification as A; A.from_pretrained(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True)
    assert done.returncode != 0


def test_manifest_is_plain_json():
    manifest = Manifest(modules={"a": {"kind": "removed"}})
    assert json.loads(manifest.to_json_string())["quant_method"] == "effitrans"
