"""Hidden width: narrowed for real equals the stream without those channels, norms taken over what is left."""

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from effitrans import checkpoint
from effitrans.architectures import adapter
from effitrans.attention import Linformer, swap_attention
from effitrans.errors import UsageError
from effitrans.evaluation.size import structure
from effitrans.models import EffitransConfig, EffitransForSequenceClassification
from effitrans.pruning import HiddenPruning, Importance, Pruning, measure_importance, prune, prune_units
from effitrans.pruning.units.hidden import STREAM, carriers, narrow
from effitrans.quantization import Int8, quantize
from tests.architectures.families import FAMILIES, HEAD_DIM, HIDDEN, LAYERS, VOCABULARY, Family, core_first, logits

BY_NAME = {family.name: family for family in FAMILIES}
GONE = [0, 3, 4, 9, 17, 22, 30, 31]
KEPT = [channel for channel in range(HIDDEN) if channel not in GONE]
generators = pytest.mark.parametrize("family", [f for f in FAMILIES if f.generates], ids=lambda family: family.name)
families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


class KeptNorm(nn.Module):
    """A norm over the channels that are kept; the others are zero."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = copy.deepcopy(norm)
        with torch.no_grad():
            for name, parameter in norm.named_parameters():
                setattr(self.norm, name, nn.Parameter(parameter[KEPT]))
        if hasattr(norm, "normalized_shape"):
            self.norm.normalized_shape = (len(KEPT),)  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[..., KEPT] = self.norm(x[..., KEPT])
        return out


def silence(tensor: Tensor, dim: int) -> None:
    tensor.data.index_fill_(dim, torch.tensor(GONE), 0)


def without_channels(family: Family, model: transformers.PreTrainedModel) -> transformers.PreTrainedModel:
    """The model in which nothing writes the channels, and norms do not see them. Knows no adapter."""
    twin = copy.deepcopy(model)
    outputs = {path for paths in family.attention.values() for path in paths} | set(family.feed_forward.values())
    inside = ("position_bias", "relative_attention_bias")
    for path, module in list(twin.named_modules()):
        in_layers = re.search(r"\.\d+\.", path) is not None
        if re.search(r"(norm|ln_\w+|LayerNorm|layernorm\w*)$", path) and getattr(module, "weight", None) is not None:
            parent, _, name = path.rpartition(".")
            setattr(twin.get_submodule(parent), name, KeptNorm(module))
        elif isinstance(module, nn.Linear | Conv1D):
            head = not in_layers and module.weight.shape[0] == HIDDEN
            if path in outputs or head:
                silence(module.weight, int(isinstance(module, Conv1D)))
                if module.bias is not None:
                    silence(module.bias, 0)
        elif isinstance(module, nn.Embedding) and not any(part in path for part in inside):
            silence(module.weight, 1)
        elif isinstance(module, nn.Conv2d):
            silence(module.weight, 0)
            silence(module.bias, 0)  # type: ignore[arg-type]
        for name, parameter in module.named_parameters(recurse=False):
            if name in ("cls_token", "position_embeddings"):
                silence(parameter, -1)
    return twin


@families
def test_narrowed_equals_the_stream_without_the_channels(family: Family) -> None:
    model = family.model()
    pruned = copy.deepcopy(model)
    narrow(adapter(pruned), GONE)
    assert logits(pruned, family.inputs()).shape == logits(model, family.inputs()).shape
    expected = logits(without_channels(family, model), family.inputs())
    torch.testing.assert_close(logits(pruned, family.inputs()), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(pruned, family.inputs()), logits(model, family.inputs()), atol=1e-3)
    for layer in adapter(pruned).layers:
        assert [site.num_heads * site.head_dim for site in layer.attention] == [
            family.units * family.queries * HEAD_DIM for site in layer.attention
        ]
        assert layer.feed_forward.width == 64
    pruned.train()(**family.inputs()).loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in pruned.parameters() if p.requires_grad)


@families
def test_reload_is_bit_equal(family: Family, tmp_path: Path) -> None:
    model = family.model()
    pruned = prune(model, Pruning(hidden=0.25, heads=0.25, ffn=0.5, scope="global"))
    assert model.num_parameters() == family.model().num_parameters()
    assert checkpoint.history(pruned)[-1]["summary"]["units_removed"][STREAM] == 8
    pruned.save_pretrained(tmp_path)
    loaded = getattr(transformers, family.auto_class).from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, family.inputs()), logits(pruned, family.inputs()))
    if family.tied:
        assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
        assert pruned.get_output_embeddings().weight is pruned.get_input_embeddings().weight
    again = prune(loaded, HiddenPruning(ratio=0.34))
    assert again.num_parameters() < loaded.num_parameters()
    assert torch.isfinite(logits(again, family.inputs())).all()


@generators
def test_generation_with_cache(family: Family) -> None:
    pruned = prune(family.model(), HiddenPruning(ratio=0.25))
    inputs = {k: v for k, v in family.inputs().items() if k != "labels"}
    generated = [
        pruned.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    ]
    assert torch.equal(*generated)


def test_parameters_are_those_of_the_smaller_architecture() -> None:
    model = BY_NAME["bert"].model()
    pruned = prune(model, HiddenPruning(ratio=0.25))
    config = copy.deepcopy(model.config)
    config.hidden_size = 24
    smaller = transformers.BertForSequenceClassification(config)
    # Heads keep their size, of which the smaller architecture has less: rows of q, k, v and columns of the output.
    inner = (HIDDEN - 24) * LAYERS * (3 * (24 + 1) + 24)
    assert pruned.num_parameters() == smaller.num_parameters() + inner


@pytest.mark.parametrize("name", ["bert", "vit", "gpt2", "t5"])
def test_reports_tell_the_width_that_is_left(name: str) -> None:
    model = BY_NAME[name].model()
    pruned = prune(model, HiddenPruning(ratio=0.25))
    assert (structure(pruned).hidden_size, structure(model).hidden_size) == (24, HIDDEN)


def test_dependency_graph_agrees() -> None:
    import torch_pruning as tp

    family = BY_NAME["bert"]
    model = family.model()
    inputs = {"input_ids": family.inputs()["input_ids"]}
    graph = tp.DependencyGraph().build_dependency(
        model, example_inputs=inputs, forward_fn=lambda traced, batch: traced(**batch).logits, verbose=False
    )
    root = adapter(model).layers[0].feed_forward.output
    group = graph.get_pruning_group(root, tp.prune_linear_out_channels, idxs=[0])
    names: dict[int, str] = {id(module): path for path, module in model.named_modules()}
    theirs = {names[id(d.target.module)] for d, _ in group if id(d.target.module) in names}
    ours = {names[id(carrier.module)] for carrier in carriers(adapter(model))}
    # The pooler's output is a space of its own, which the graph would leave as it is, and with it the classifier.
    assert ours == theirs | {"classifier"}


@pytest.mark.parametrize("method", ["taylor", "fisher", "wanda", "magnitude"])
def test_unused_channels_go_first(method: str) -> None:
    family = BY_NAME["llama"]
    model = family.model()
    for layer in adapter(model).layers:
        for site in layer.attention:
            for module in (site.query.module, site.key.module, site.value.module):
                silence(module.weight, 1)
            silence(site.output.weight, 0)
        for module in layer.feed_forward.inputs:
            silence(module.weight, 1)
        silence(layer.feed_forward.output.weight, 0)
    scores = measure_importance(model, Importance(method=method), [family.inputs()])
    assert sorted(scores.values[f"channel:{STREAM}"].abs().argsort()[: len(GONE)].tolist()) == GONE
    pruned = prune_units(model, HiddenPruning(ratio=0.25, method=method, multiple_of=1), scores=scores)
    assert torch.equal(pruned.get_input_embeddings().weight, model.get_input_embeddings().weight[:, KEPT])


@pytest.mark.parametrize("family", core_first())
def test_steps_come_to_the_ratio(family: Family) -> None:
    pruned = prune(family.model(), Pruning(hidden=0.5, heads=0.5, steps=2, schedule="cubic"))
    layer = adapter(pruned).layers[0]
    assert layer.feed_forward.inputs[0].weight.numel() == 64 * 16
    assert layer.attention[0].num_key_value_heads == family.units // 2


def test_quantized_afterwards() -> None:
    family = BY_NAME["bert"]
    pruned = prune(family.model(), HiddenPruning(ratio=0.25))
    small = quantize(pruned, Int8())
    assert torch.isfinite(logits(small, family.inputs())).all()
    with pytest.raises(UsageError, match="integer weights"):
        prune(small, HiddenPruning(ratio=0.5))


def test_refused() -> None:
    model = BY_NAME["bert"].model()
    with pytest.raises(UsageError, match=r"removes every channel of residual stream \(32 of 32\)"):
        prune(model, HiddenPruning(ratio=1.0))
    with pytest.raises(UsageError, match=r"hidden=0\.1 removes nothing from a hidden width of 32"):
        prune(model, HiddenPruning(ratio=0.1))
    settings = transformers.ElectraConfig(
        vocab_size=20, embedding_size=16, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    electra = transformers.ElectraForSequenceClassification(settings)
    with pytest.raises(UsageError, match="no adapter"):
        prune(electra, HiddenPruning(ratio=0.5))
    config = EffitransConfig(vocab_size=VOCABULARY, hidden_size=32, num_attention_heads=4, position="sinusoidal")
    before = EffitransForSequenceClassification(config)
    with pytest.raises(UsageError, match=r"embed_positions\.table .* computed for the whole width"):
        prune(before, HiddenPruning(ratio=0.5), inplace=True)
    swapped = swap_attention(model, Linformer(rank=4, max_length=8))
    with pytest.raises(UsageError, match="its architecture builds no such tensor"):
        prune(swapped, HiddenPruning(ratio=0.5))
