"""Tiny models and data sets that a model can learn in a few steps."""

import random
from typing import Any

import torch
import transformers
from datasets import Dataset
from transformers import PreTrainedModel

VOCABULARY = 40
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def sentences(count: int, seed: int = 0, shortest: int = 3, longest: int = 12) -> Dataset:
    """Token sequences of mixed length; the label says whether the first token is in the upper half."""
    generator = random.Random(seed)
    ids = [
        [generator.randrange(5, VOCABULARY) for _ in range(generator.randint(shortest, longest))] for _ in range(count)
    ]
    return Dataset.from_dict({"input_ids": ids, "labels": [int(tokens[0] > 21) for tokens in ids]})


def splits(count: int = 96, validation: int = 32) -> dict[str, Dataset]:
    return {"train": sentences(count, seed=0), "validation": sentences(validation, seed=1)}


def bert(seed: int = 0, dropout: float = 0.1, **changes: Any) -> PreTrainedModel:
    """A two-layer BERT classifier."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **{**SIZES, "max_position_embeddings": 32, **changes},
    )
    return transformers.BertForSequenceClassification(config)


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(left: torch.nn.Module, right: torch.nn.Module) -> None:
    """Bit-equal."""
    mine, theirs = weights(left), weights(right)
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.equal(mine[name], theirs[name]), name
