"""Models that are built rather than loaded."""

import logging

import pytest
import torch
from transformers import BertModel

from effitrans.checkpoint import require_model
from effitrans.errors import UsageError
from effitrans.tasks import load_task
from effitrans.tasks.loading import load_for_task
from tests.tasks.cases import CASES

LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


def causal_task(folder):
    return CASES["causal-lm"].task(folder)


def test_a_model_type_of_transformers_is_built_with_new_weights(tmp_path):
    task = causal_task(tmp_path)
    first, again, other = (load_for_task({"llama": LLAMA}, task, seed=seed) for seed in (0, 0, 1))
    assert type(first.model).__name__ == "LlamaForCausalLM"
    assert first.model.config.num_key_value_heads == 2
    assert first.model.config.vocab_size == len(first.processor)
    weights = [loaded.model.get_input_embeddings().weight for loaded in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"lama": {}}, "unknown model 'lama'"),
        ({"llama": {"hiden_size": 32}}, "did you mean 'hidden_size'"),
        ({"llama": LLAMA, "base": {}}, "one key"),
        ({"llama": {"hidden_size": 33}}, "not a multiple"),
        ({"vit": {}}, "AutoModelForCausalLM"),
    ],
)
def test_what_cannot_be_built_is_named(tmp_path, spec, message):
    with pytest.raises(UsageError, match=message):
        load_for_task(spec, causal_task(tmp_path))


def test_an_encoder_gets_the_head_of_a_task_to_be_trained(tiny_teacher, tiny_tokenizer, tiny_task, tmp_path, caplog):
    BertModel.from_pretrained(tiny_teacher).save_pretrained(tmp_path / "encoder")
    task = load_task(tiny_task)
    with pytest.raises(UsageError, match="no head"):
        load_for_task(tmp_path / "encoder", task)
    with caplog.at_level(logging.WARNING, "effitrans"):
        model = load_for_task(tmp_path / "encoder", task, processor=tiny_tokenizer, new_head=True).model
    assert model.config.num_labels == 2
    assert "classifier.weight" in caplog.text


def test_the_home_directory_is_expanded_in_names(tiny_teacher, monkeypatch):
    monkeypatch.setenv("HOME", str(tiny_teacher.parent))
    assert require_model("~/model") == str(tiny_teacher)
