"""Weights in several places: those that the architecture ties survive every pass, others are refused by every pass."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from effitrans import Int8, checkpoint, quantize
from effitrans.attention import Local, swap_attention
from effitrans.errors import UsageError
from effitrans.pruning import L0Pruning, Pruning, Search, Sparsity, prune, prune_vocabulary
from effitrans.quantization import RTN
from tests.architectures.families import FAMILIES, logits

BY_NAME = {family.name: family for family in FAMILIES}


def _module(layers: nn.ModuleList) -> None:
    layers[1] = layers[0]


def _linear(layers: nn.ModuleList) -> None:
    layers[1].intermediate.dense = layers[0].intermediate.dense  # type: ignore[union-attr]


def _parameter(layers: nn.ModuleList) -> None:
    layers[1].attention.self.key.weight = layers[1].attention.self.query.weight  # type: ignore[union-attr]


def _storage(layers: nn.ModuleList) -> None:
    layers[1].output.dense.weight.data = layers[0].output.dense.weight.data  # type: ignore[union-attr]


SHARED = {"layer": _module, "linear": _linear, "parameter": _parameter, "storage": _storage}
PASSES: dict[str, Callable[[PreTrainedModel], Any]] = {
    "heads": lambda model: prune(model, Pruning(heads=0.5)),
    "ffn": lambda model: prune(model, Pruning(ffn=0.5)),
    "hidden": lambda model: prune(model, Pruning(hidden=0.5)),
    "layers": lambda model: prune(model, Pruning(keep_layers=1)),
    "sublayers": lambda model: prune(model, Pruning(keep_ffn_layers=1)),
    "sparsity": lambda model: prune(model, Sparsity(sparsity=0.5)),
    "gates": lambda model: prune(model, L0Pruning(ratio=0.5), "sst2"),
    "search": lambda model: prune(model, Search(parameters=0.5), "sst2"),
    "vocabulary": lambda model: prune_vocabulary(model, None, ["text"]),
    "int8": lambda model: quantize(model, Int8()),
    "rtn": lambda model: quantize(model, RTN()),
    "swap": lambda model: swap_attention(model, Local(window=2)),
}


@pytest.mark.parametrize("run", PASSES.values(), ids=PASSES.keys())
@pytest.mark.parametrize("share", SHARED.values(), ids=SHARED.keys())
def test_what_no_config_tells_is_refused_by_every_pass(share: Callable, run: Callable) -> None:
    model = BY_NAME["bert"].model()
    share(model.bert.encoder.layer)
    with pytest.raises(UsageError, match="are one and the same weight, which the config does not tell"):
        run(model)


def test_copies_are_no_shared_weights() -> None:
    model = BY_NAME["bert"].model()
    layers = model.bert.encoder.layer
    layers[1].load_state_dict(layers[0].state_dict())
    assert prune(model, Pruning(ffn=0.5)).num_parameters() < model.num_parameters()


def albert() -> PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.AlbertConfig(
        vocab_size=50,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
    )
    return transformers.AlbertForSequenceClassification(config).eval()


SURVIVORS = {name: run for name, run in PASSES.items() if name in ("ffn", "sparsity", "int8", "swap")}


@pytest.mark.parametrize("run", SURVIVORS.values(), ids=SURVIVORS.keys())
def test_one_layer_that_an_architecture_runs_three_times_stays_one(run: Callable, tmp_path: Path) -> None:
    small = run(albert())
    checkpoint.save(small, tmp_path / "m")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "m").eval()
    inputs = BY_NAME["bert"].inputs()
    assert torch.equal(logits(again, inputs), logits(small, inputs))
