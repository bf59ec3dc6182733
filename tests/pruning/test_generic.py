"""FFN neurons leave architectures that have no adapter, through the dependency graph."""

import copy
from pathlib import Path

import pytest
import torch
import transformers

from effitrans.errors import UsageError
from effitrans.pruning import FFNPruning, HeadPruning, Pruning, prune
from effitrans.pruning.generic import generic_ffn_sites
from tests.architectures.families import logits, mask_inputs, tokens

SHARED = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
MODELS = {
    "electra": ("ElectraForSequenceClassification", {"embedding_size": 16}, "AutoModelForSequenceClassification", 2),
    "albert": ("AlbertForSequenceClassification", {"embedding_size": 16}, "AutoModelForSequenceClassification", 1),
    "gpt_neox": ("GPTNeoXForCausalLM", {"eos_token_id": None, "bos_token_id": 1}, "AutoModelForCausalLM", 2),
    "deberta-v2": ("DebertaV2ForSequenceClassification", {}, "AutoModelForSequenceClassification", 2),
}


def model_of(name: str) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    model_class, extra, _, _ = MODELS[name]
    config = transformers.AutoConfig.for_model(name, **(SHARED | extra))
    model = getattr(transformers, model_class)(config)
    for parameter in model.parameters():
        if parameter.dim() >= 2:
            torch.nn.init.normal_(parameter, std=0.25)
    return model.eval()


def batch_of(name: str) -> dict[str, torch.Tensor]:
    ids = tokens()
    labels = ids if "CausalLM" in MODELS[name][0] else torch.tensor([0, 1, 1])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


@pytest.mark.parametrize("method", ["magnitude", "taylor"])
@pytest.mark.parametrize("name", MODELS)
def test_neurons_go(name: str, method: str, tmp_path: Path) -> None:
    model, batch = model_of(name), batch_of(name)
    pruned = prune(model, FFNPruning(ratio=0.5, method=method), [batch])
    sites = generic_ffn_sites(model)
    assert len(sites) == MODELS[name][3]
    assert model.num_parameters() - pruned.num_parameters() == len(sites) * 32 * (2 * 32 + 1)
    if method == "magnitude":
        twin = copy.deepcopy(model)
        paths = {module: path for path, module in model.named_modules()}
        from effitrans.pruning.importance import magnitude

        for site, score in zip(sites, magnitude.score(model, sites), strict=True):
            mask_inputs(twin, paths[site.gates[0].module], score.argsort(stable=True)[:32].tolist())
        torch.testing.assert_close(logits(pruned, batch), logits(twin, batch), rtol=1e-5, atol=1e-5)
    pruned.save_pretrained(tmp_path)
    loaded = getattr(transformers, MODELS[name][2]).from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, batch), logits(pruned, batch))
    loaded.train()
    loaded(**batch).loss.backward()
    twice = prune(pruned, FFNPruning(ratio=0.5))
    assert pruned.num_parameters() - twice.num_parameters() == len(sites) * 16 * (2 * 32 + 1)


@pytest.mark.parametrize(
    "config",
    [HeadPruning(ratio=0.5), Pruning(keep_layers=1), Pruning(ffn=0.5, steps=2), Pruning(ffn=0.5, keep_ffn_layers=1)],
)
def test_what_the_graph_does_not_show_is_refused_with_the_reason(config: Pruning) -> None:
    model = model_of("electra")
    with pytest.raises(UsageError, match=r"'electra'\) has no adapter, so its heads and layers cannot be told.*bart"):
        prune(model, config)
