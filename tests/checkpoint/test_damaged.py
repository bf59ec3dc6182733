"""Whatever is wrong with a manifest is one CheckpointError that names the place, found before memory is taken."""

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from effitrans import FFNPruning, HeadPruning, checkpoint, prune
from effitrans.checkpoint.kinds import MODULE_KINDS
from effitrans.checkpoint.manifest import Manifest
from effitrans.errors import CheckpointError

WIDTH = {"in_features": 32, "out_features": 32, "bias": True}
TABLE = {"num_embeddings": 50, "embedding_dim": 32, "padding_idx": 0}
SITE = {
    "num_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "causal": False,
    "cross": False,
    "position_bias": False,
}
SPECS: dict[str, dict[str, Any]] = {
    "int8_linear": {**WIDTH, "smooth": True, "static": True},
    "int8_embedding": TABLE,
    "packed_linear": {**WIDTH, "bits": 3, "group_size": 16, "scaled": True},
    "four_bit_linear": {**WIDTH, "number_type": "nf4", "block_size": 64, "double_quantization": True},
    "llm_int8_linear": {**WIDTH, "threshold": 6.0},
    "fake_quant_linear": {**WIDTH, "learned": True, "static": True},
    "fake_quant_embedding": TABLE,
    "fake_packed_linear": {**WIDTH, "bits": 4, "group_size": 8},
    "attention_operator": {"operator": "linformer", "config": {"rank": 4, "max_length": 16}, "site": SITE},
    "absent_attention": {"layer_idx": 0, "returns_bias": False},
    "zero": {},
    "same": {},
    "sparse_linear": {**WIDTH, "nonzero": 100},
}
"""Kind -> a spec that is valid."""

HEADS = "bert.encoder.layer.0.attention.self"
ODD = [None, True, -1, 0, 10**9, 10**30, 2.5, float("nan"), "x", "", [], {}, [[1]], {"kind": "zero"}]
"""What a value is replaced by."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A BERT with fewer heads and a narrower FFN."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(**sizes, vocab_size=50, max_position_embeddings=16))
    model = prune(prune(model, HeadPruning(ratio=0.5, method="magnitude")), FFNPruning(ratio=0.5, method="magnitude"))
    path = tmp_path_factory.mktemp("damaged") / "model"
    checkpoint.save(model, path)
    return path


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]


def load(folder: Path, manifest: Any) -> None:
    """Load the folder with another manifest."""
    file = folder / "config.json"
    original = file.read_text()
    file.write_text(json.dumps({**json.loads(original), "quantization_config": manifest}))
    try:
        checkpoint.load_model(folder, None)
    finally:
        file.write_text(original)


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in a tree of JSON, inner ones too; of a list and of modules of one kind the first."""
    if path:
        yield path
    items = enumerate(value[:1]) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    seen = set()
    for key, item in items:
        kind = item.get("kind") if isinstance(item, dict) else None
        if kind is None or kind not in seen:
            seen.add(kind)
            yield from places(item, (*path, key))


def damages(manifest: Any) -> Iterator[tuple[tuple, Any]]:
    """(place, manifest) with one value replaced, one key dropped, one key added."""
    for place in places(manifest):
        for value in (*ODD, KeyError, NameError):
            damaged = copy.deepcopy(manifest)
            parent = damaged
            for key in place[:-1]:
                parent = parent[key]
            if value is KeyError:
                parent.pop(place[-1])
            elif value is NameError:
                if not isinstance(parent, dict):
                    continue
                parent["surprise"] = 1
            else:
                parent[place[-1]] = value
            yield place, damaged


def refused_or_loaded(folder: Path, manifest: Any) -> None:
    with contextlib.suppress(CheckpointError):
        load(folder, manifest)


def test_every_value_of_a_manifest(folder):
    whole = manifest_of(folder)
    # What stands in a pass's config and summary is the pass's; it is read as it is.
    whole["history"] = [{**whole["history"][0], "config": {}, "summary": {}}]
    whole["attributes"] = {HEADS: whole["attributes"][HEADS]}
    for _, damaged in damages(whole):
        refused_or_loaded(folder, damaged)


@pytest.mark.parametrize("manifest", [*ODD[1:], "effitrans"], ids=repr)
def test_a_manifest_that_is_none(folder, manifest):
    with pytest.raises(CheckpointError, match="quantization_config"):
        load(folder, manifest)


def test_there_is_a_spec_of_every_kind():
    assert set(SPECS) == set(MODULE_KINDS)


@pytest.mark.parametrize("kind", SPECS)
def test_every_value_of_a_spec(folder, kind):
    path = "bert.encoder.layer.0.output.dense"
    whole = {path: {"kind": kind, **SPECS[kind]}}
    for place, damaged in damages(whole):
        if len(place) == 1:
            continue
        refused_or_loaded(folder, {**manifest_of(folder), "modules": damaged})


@pytest.mark.parametrize("kind", SPECS)
def test_a_surplus_key_of_a_spec_is_named(kind):
    Manifest(modules={"a.b": {"kind": kind, **SPECS[kind]}})
    with pytest.raises(CheckpointError, match=r"a\.b.*surprise"):
        Manifest(modules={"a.b": {"kind": kind, **SPECS[kind], "surprise": 1}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"manifest_version": 0}, "manifest_version", id="version-0"),
        pytest.param({"manifest_version": True}, "manifest_version", id="version-true"),
        pytest.param({"modules": {"bert.pooler.nothing": {"kind": "removed"}}}, "bert.pooler.nothing", id="removed"),
        pytest.param({"modules": {"": {"kind": "removed"}}}, "removed entry does not fit", id="the-model-itself"),
        pytest.param({"modules": {"bert.config": {"kind": "same"}}}, "bert.config", id="no-module"),
        pytest.param(
            {"modules": {"bert.pooler.dense": {"kind": "resized", "shapes": {"weight": [2**40, 2**40]}}}},
            "bert.pooler.dense",
            id="overflow",
        ),
        pytest.param(
            {"attributes": {"bert.encoder.layer.0.attention.self": {"num_attention_heads": -4}}},
            "num_att",
            id="negative",
        ),
        pytest.param(
            {"attributes": {"bert.encoder.layer.0.attention.self": {"num_attention_heads": 2.5}}},
            "num_att",
            id="fraction",
        ),
        pytest.param({"quant_method": "effitranz"}, "did you mean 'effitrans'", id="method"),
        pytest.param({"history": [{"verb": 3}]}, "history.0.verb", id="history"),
    ],
)
def test_the_place_is_named(folder, change, message):
    with pytest.raises(CheckpointError, match=message):
        load(folder, {**manifest_of(folder), **change})
