"""A plain folder is loaded as it was saved or refused: nothing is scored with weights that were not in it."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from effitrans import checkpoint
from effitrans.errors import CheckpointError, UsageError

CLASSIFIER = "AutoModelForSequenceClassification"


def bert(model_class: type[PreTrainedModel] = BertForSequenceClassification, **options) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return model_class(BertConfig(**sizes, vocab_size=50, max_position_embeddings=16, **options)).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=50, n_positions=16)).eval()


def saved(model: PreTrainedModel, folder: Path, **options) -> Path:
    model.save_pretrained(folder / "model", **options)
    return folder / "model"


def edit(folder: Path, **values) -> None:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def rewrite(folder: Path, change: Callable[[dict], dict]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, {"format": "pt"})


LAYER = "bert.encoder.layer.1."


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda f: edit(f, num_hidden_layers=1), rf"unexpected weights \(16\): {LAYER}", id="fewer-layers"),
        pytest.param(
            lambda f: edit(f, num_hidden_layers=3), r"lacks weights \(16\): bert.encoder.layer.2", id="more-layers"
        ),
        pytest.param(lambda f: edit(f, hidden_size=64), "misshapen", id="width"),
        pytest.param(lambda f: edit(f, vocab_size=10**8), "describes a Bert.* of 3,2", id="a-vocabulary-of-gigabytes"),
        pytest.param(lambda f: edit(f, num_hidden_layers=10**9), "num_hidden_layers is 1000000000", id="layers"),
        pytest.param(lambda f: edit(f, num_labels=10**9), "num_labels is 1000000000", id="labels"),
        pytest.param(lambda f: edit(f, hidden_act="nope"), "does not describe.*nope", id="activation"),
        pytest.param(lambda f: edit(f, num_attention_heads=0), "does not describe", id="no-heads"),
        pytest.param(lambda f: edit(f, hidden_size="x"), "hidden_size", id="a-text"),
        pytest.param(lambda f: edit(f, model_type="nope"), "nope", id="model-type"),
        pytest.param(lambda f: edit(f, model_type=7), "model_type", id="model-type-7"),
        pytest.param(lambda f: edit(f, architectures="Bert"), "architectures", id="architectures"),
        pytest.param(lambda f: edit(f, quantization_config={"quant_method": "nope"}), "nope", id="quant-method"),
        pytest.param(lambda f: edit(f, effitrans_history=3), "history", id="history"),
        pytest.param(lambda f: (f / "config.json").write_text("[1]"), "list, not an object", id="config-a-list"),
        pytest.param(lambda f: (f / "config.json").write_text("[" * 10**5), "not valid JSON", id="config-deep"),
        pytest.param(lambda f: (f / "config.json").write_bytes(b"\xff"), "not valid JSON", id="config-binary"),
        pytest.param(lambda f: (f / "adapter_config.json").write_text("{}"), "merge_and_unload", id="lora"),
        pytest.param(
            lambda f: rewrite(f, lambda w: {k: v for k, v in w.items() if not k.startswith(LAYER)}),
            r"lacks weights \(16\)",
            id="a-layer-lost",
        ),
        pytest.param(
            lambda f: rewrite(f, lambda w: {k: v for k, v in w.items() if k != "classifier.bias"}),
            r"lacks weights \(1\): classifier.bias",
            id="a-head-lost",
        ),
        pytest.param(
            lambda f: rewrite(f, lambda w: {**w, "extra.weight": torch.zeros(2)}),
            r"unexpected weights \(1\): extra.weight",
            id="surplus",
        ),
    ],
)
def test_damaged_folders_are_refused(tmp_path, damage, message):
    folder = saved(bert(), tmp_path)
    checkpoint.load_model(folder, CLASSIFIER)
    damage(folder)
    for auto_class in (CLASSIFIER, None):
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load_model(folder, auto_class, new_head=True)


def test_surplus_layers_are_found_whatever_the_head(tmp_path):
    folder = saved(bert(BertModel), tmp_path)
    edit(folder, num_hidden_layers=1)
    for auto_class in ("AutoModel", CLASSIFIER):
        with pytest.raises(CheckpointError, match="unexpected weights"):
            checkpoint.load_model(folder, auto_class, new_head=True)


@pytest.mark.parametrize("source", [BertModel, BertForMaskedLM])
def test_a_new_head_is_refused_unless_it_will_be_trained(tmp_path, caplog, source):
    folder = saved(bert(source), tmp_path)
    with pytest.raises(CheckpointError, match=r"has no head for BertForSequenceClassification.*effitrans train"):
        checkpoint.load_model(folder, CLASSIFIER)
    with caplog.at_level(logging.WARNING, "effitrans"):
        checkpoint.load_model(folder, CLASSIFIER, new_head=True)
    assert "classifier.weight" in caplog.text


@pytest.mark.parametrize(
    ("source", "auto_class"),
    [
        pytest.param(BertForSequenceClassification, "AutoModel", id="a-head-is-left-out"),
        pytest.param(BertForMaskedLM, "AutoModel", id="no-pooler"),
        pytest.param(BertForPreTraining, "AutoModelForMaskedLM", id="two-heads"),
    ],
)
def test_other_classes_whose_weights_are_all_there(tmp_path, source, auto_class):
    checkpoint.load_model(saved(bert(source), tmp_path), auto_class)


def test_a_second_head_of_pretraining_is_no_surplus(tmp_path):
    folder = saved(bert(BertForPreTraining), tmp_path)
    edit(folder, architectures=["BertForMaskedLM"])
    assert isinstance(checkpoint.load_model(folder, None), BertForMaskedLM)


def test_what_earlier_versions_saved_is_no_surplus(tmp_path):
    folder = saved(bert(), tmp_path)
    rewrite(
        folder,
        lambda weights: {
            **{k.replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in weights.items()},
            "bert.embeddings.position_ids": torch.arange(16)[None],
        },
    )
    model = checkpoint.load_model(folder, CLASSIFIER)
    assert torch.equal(model.classifier.weight, bert().classifier.weight)
    decoder = saved(gpt2(), tmp_path / "gpt2")
    rewrite(decoder, lambda weights: {**weights, "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)})
    checkpoint.load_model(decoder, "AutoModelForCausalLM")


def test_tied_sharded_and_half_precision_folders_load(tmp_path):
    model = gpt2().to(torch.bfloat16)
    folder = saved(model, tmp_path, max_shard_size="20KB")
    assert not (folder / "model.safetensors").exists()
    again = checkpoint.load_model(folder, "AutoModelForCausalLM")
    assert again.lm_head.weight is again.transformer.wte.weight
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    assert checkpoint.bytes_on_disk(folder) == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"names {shard.name}, which is not there"):
        checkpoint.load_model(folder, "AutoModelForCausalLM")
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map"):
        checkpoint.load_model(folder, "AutoModelForCausalLM")


def test_links_are_followed(tmp_path):
    folder = saved(bert(), tmp_path)
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    linked = tmp_path / "files"
    linked.mkdir()
    for file in folder.iterdir():
        (linked / file.name).symlink_to(file)
    for name in ("link", "files"):
        checkpoint.load_model(tmp_path / name, CLASSIFIER)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors"):
        checkpoint.load_model(linked, CLASSIFIER)


def test_a_pickle_is_not_loaded_beside_other_safetensors(tmp_path):
    folder = saved(bert(), tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    checkpoint.load_model(folder, CLASSIFIER)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(CheckpointError, match="pickled weights"):
        checkpoint.load_model(folder, CLASSIFIER)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"only other\.safetensors"):
        checkpoint.load_model(folder, CLASSIFIER)


@pytest.mark.parametrize(
    "name", ["nothing", "owner/nothing", "./nothing", "/nowhere/nothing", "~/nothing", "a/b/c", "{}"]
)
@pytest.mark.parametrize("function", [checkpoint.load_model, checkpoint.load_config, checkpoint.load_processor])
def test_a_folder_that_is_not_there(name, function):
    with pytest.raises(UsageError, match="there is no folder"):
        function(name)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="it is a file"):
        checkpoint.load_model(tmp_path / "file")


def test_the_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(bert(), tmp_path)
    assert checkpoint.load_model("~/model", CLASSIFIER).config.num_hidden_layers == 2
    assert checkpoint.load_config("~/model").num_hidden_layers == 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", b"\xb1{"),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b'{"post_processor": {"type": "None"}}'),
        ("tokenizer_config.json", b"\xb1{"),
        ("tokenizer_config.json", b"[]"),
    ],
)
def test_a_damaged_tokenizer_is_named(tiny_teacher, tmp_path, name, content):
    folder = shutil.copytree(tiny_teacher, tmp_path / "model")
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match="its tokenizer or image processor cannot be read"):
        checkpoint.load_processor(folder)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("tokenizer.json", lambda fields: fields["post_processor"]["special_tokens"].pop("[CLS]")),
        ("tokenizer_config.json", lambda fields: fields.update(model_max_length="many")),
    ],
)
def test_a_tokenizer_that_fails_only_in_use_is_named(tiny_teacher, tmp_path, name, damage):
    folder = shutil.copytree(tiny_teacher, tmp_path / "model")
    fields = json.loads((folder / name).read_text())
    damage(fields)
    (folder / name).write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="its tokenizer or image processor cannot be read"):
        checkpoint.load_processor(folder)
