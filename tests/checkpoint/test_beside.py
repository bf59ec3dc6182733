"""What lies beside the weights of a model's source goes along when it is saved, or is named."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

from effitrans import HiddenPruning, Int8, VocabularyPruning, checkpoint, prune, quantize
from effitrans.checkpoint import beside
from effitrans.errors import UsageError
from effitrans.pruning import pruned_vocabulary

POOLING = {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}


def write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def source(tiny_teacher, tmp_path) -> Path:
    folder = tmp_path / "source"
    shutil.copytree(tiny_teacher, folder)
    write(folder / "chat_template.jinja", "{{ messages }}")
    write(folder / "LICENSE.txt", "free")
    write(folder / "notes.txt", "a note")
    write(folder / "modeling.py", "raise SystemExit")
    write(folder / "README.md", "a card")
    write(folder / "record.json", {})
    torch.save({}, folder / "optimizer.pt")
    return folder


@pytest.fixture
def sentences(tiny_tokenizer, tmp_path) -> Path:
    """A folder of sentence-transformers, written by hand."""
    folder = tmp_path / "sentences"
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(**sizes, vocab_size=len(tiny_tokenizer), max_position_embeddings=32)
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    names = {"": "models.Transformer", "1_Pooling": "models.Pooling", "2_Normalize": "models.Normalize"}
    entries = [
        {"idx": i, "path": path, "type": f"sentence_transformers.{n}"} for i, (path, n) in enumerate(names.items())
    ]
    write(folder / "modules.json", entries)
    write(folder / "1_Pooling" / "config.json", POOLING)
    write(folder / "config_sentence_transformers.json", {"prompts": {"query": "the "}})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 16})
    return folder


def add_module(folder: Path, kind: str, file: str) -> None:
    entries = json.loads((folder / "modules.json").read_text())
    write(folder / "modules.json", [*entries, {"idx": 3, "path": f"3_{kind}", "type": f"models.{kind}"}])
    write(folder / f"3_{kind}" / "config.json", {})
    write(folder / f"3_{kind}" / file, "")


def names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_the_tokenizer_of_the_source_goes_along(source, tmp_path, caplog):
    model = AutoModelForSequenceClassification.from_pretrained(source)
    with caplog.at_level(logging.INFO, "effitrans"):
        checkpoint.save(quantize(model, Int8()), tmp_path / "small")
    assert names(tmp_path / "small") == {
        *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "LICENSE.txt"),
    }
    text = "good film, bad plot"
    assert AutoTokenizer.from_pretrained(tmp_path / "small")(text) == AutoTokenizer.from_pretrained(source)(text)
    assert "modeling.py, notes.txt" in caplog.text
    assert "pickle" not in caplog.text


def test_the_tokenizer_that_is_passed_replaces_that_of_the_source(source, tiny_tokenizer, tmp_path):
    write(source / "vocab.txt", "of another class")
    model = AutoModelForSequenceClassification.from_pretrained(source)
    checkpoint.save(model, tmp_path / "saved", tiny_tokenizer)
    assert "vocab.txt" not in names(tmp_path / "saved")
    assert "LICENSE.txt" in names(tmp_path / "saved")


def test_a_model_without_a_source_says_what_is_missing(tmp_path, caplog):
    model = BertModel(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64))
    checkpoint.save(model, tmp_path / "saved")
    assert "without a tokenizer" in caplog.text
    assert "processor=" in caplog.text


def test_a_source_that_is_gone_says_what_is_missing(source, tmp_path, caplog):
    model = AutoModelForSequenceClassification.from_pretrained(source)
    shutil.rmtree(source)
    checkpoint.save(model, tmp_path / "saved")
    assert "without a tokenizer" in caplog.text


def test_the_tokenizer_of_another_vocabulary_does_not_go_along(source, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    pruned = pruned_vocabulary(model, tokenizer, ["good film", "bad plot"], VocabularyPruning())
    small = quantize(pruned.model, Int8())
    with pytest.raises(UsageError, match=r"vocabulary has changed.*prune_vocabulary"):
        checkpoint.save(small, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    checkpoint.save(small, tmp_path / "saved", pruned.tokenizer)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "saved")) == len(pruned.tokenizer) < len(tokenizer)


def test_a_folder_can_be_saved_over_itself(source):
    model = AutoModelForSequenceClassification.from_pretrained(source)
    checkpoint.save(model, source, overwrite=True)
    assert {"tokenizer.json", "LICENSE.txt"} <= names(source)


def test_modules_of_sentence_transformers_go_along(sentences, tmp_path):
    checkpoint.save(quantize(BertModel.from_pretrained(sentences), Int8()), tmp_path / "small")
    assert names(sentences) == names(tmp_path / "small")
    for name in ("modules.json", "1_Pooling/config.json"):
        assert (tmp_path / "small" / name).read_bytes() == (sentences / name).read_bytes()


def test_a_pooling_gets_the_new_width(sentences, tmp_path, caplog):
    narrow = prune(BertModel.from_pretrained(sentences), HiddenPruning(ratio=0.5, method="magnitude"))
    checkpoint.save(narrow, tmp_path / "small")
    assert json.loads((tmp_path / "small" / "1_Pooling" / "config.json").read_text()) == {
        **POOLING,
        "word_embedding_dimension": 16,
    }
    add_module(sentences, "Dense", "model.safetensors")
    checkpoint.save(narrow, tmp_path / "other")
    assert "modules.json" not in names(tmp_path / "other")
    assert "Dense does not fit" in caplog.text


@pytest.mark.parametrize(("file", "goes"), [("model.safetensors", True), ("pytorch_model.bin", False)])
def test_modules_with_weights(sentences, tmp_path, caplog, file, goes):
    add_module(sentences, "Dense", file)
    checkpoint.save(BertModel.from_pretrained(sentences), tmp_path / "saved")
    assert ("modules.json" in names(tmp_path / "saved")) == goes
    assert (f"3_Dense/{file}" in caplog.text) == (not goes)


def test_nothing_outside_the_folder_goes_along(sentences, tmp_path, caplog):
    write(sentences / "modules.json", [{"path": "../source", "type": "models.Pooling"}])
    checkpoint.save(BertModel.from_pretrained(sentences), tmp_path / "saved")
    assert names(tmp_path / "saved") == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert "../source" in caplog.text


def test_the_cache_of_the_hub_is_a_source(sentences, tmp_path, monkeypatch):
    commit = "0" * 40
    cached = tmp_path / "hub" / "models--owner--sentences"
    shutil.copytree(sentences, cached / "snapshots" / commit)
    write(cached / "refs" / "main", commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model = checkpoint.load_model("owner/sentences")
    assert beside.source_folder(model) == cached / "snapshots" / commit
    checkpoint.save(model, tmp_path / "saved")
    assert names(tmp_path / "saved") == names(sentences)
