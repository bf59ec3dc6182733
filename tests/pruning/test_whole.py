"""Whole attention blocks and FFNs leave every family, and what is left equals the model with them silenced."""

import copy
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from effitrans.architectures import adapter
from effitrans.architectures.absent import AbsentAttention
from effitrans.errors import UsageError
from effitrans.evaluation.size import structure
from effitrans.pruning import Pruning, prune
from effitrans.pruning.units import UNITS
from effitrans.quantization import Int8, quantize
from tests.architectures.families import FAMILIES, Family, core_first, logits

BY_NAME = {family.name: family for family in FAMILIES}
families = pytest.mark.parametrize("family", core_first())
SETTINGS = {"attention": {"keep_attention_layers": (0, 2)}, "ffn": {"keep_ffn_layers": (1, 2)}}


def silence(model: nn.Module, path: str) -> None:
    """Make an output module give zeros, its bias included."""
    module = model.get_submodule(path)
    with torch.no_grad():
        module.weight.zero_()  # type: ignore[operator,union-attr]
        if module.bias is not None:
            module.bias.zero_()  # type: ignore[operator,union-attr]


def silenced_twin(family: Family, model: transformers.PreTrainedModel, case: str) -> tuple[nn.Module, int]:
    """The model with the outputs of the removed sublayers silenced, and the parameters of those sublayers."""
    twin = copy.deepcopy(model)
    parameters = 0
    for layer in adapter(model).layers:
        if case == "attention" and layer.index == 1:
            outputs = [o for paths in family.attention.values() for o in paths if o.startswith(f"{layer.path}.")]
            own = next(o for o in outputs if "cross" not in o and "encoder_attn" not in o and "EncDec" not in o)
            silence(twin, own)
            block = layer.attention[0]
        elif case == "ffn" and layer.index == 0:
            silence(twin, family.feed_forward[layer.feed_forward.path])
            block = layer.feed_forward
        else:
            continue
        inside = set(block.module.parameters()) if case == "attention" else set()
        inside |= set(block.output.parameters())
        inside |= {p for module in getattr(block, "inputs", ()) for p in module.parameters()}
        inside |= set(block.norm.parameters()) if block.norm is not None else set()
        parameters += sum(p.numel() for p in inside)
    return twin, parameters


@families
@pytest.mark.parametrize("case", SETTINGS)
def test_sublayers_go(family: Family, case: str, tmp_path: Path) -> None:
    model = family.model()
    batch = family.inputs()
    pruned = prune(model, Pruning(**SETTINGS[case]))
    twin, parameters = silenced_twin(family, model, case)
    assert model.num_parameters() - pruned.num_parameters() == parameters > 0
    torch.testing.assert_close(logits(pruned, batch), logits(twin, batch), rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]

    pruned.save_pretrained(tmp_path)
    loaded = getattr(transformers, family.auto_class).from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, batch), logits(pruned, batch))
    loaded.train()
    loaded(**batch).loss.backward()
    assert all(p.grad is not None for p in loaded.parameters() if p.requires_grad)

    shapes = structure(pruned).layers
    gone = [layer for layer in shapes if (layer.heads is None if case == "attention" else layer.ffn == 0)]
    has_cross = any(len(layer.attention) > 1 for layer in adapter(model).layers)
    assert gone or has_cross


@families
def test_pruned_further(family: Family, tmp_path: Path) -> None:
    """Sublayers, then heads and neurons, then layers and integers."""
    batch = family.inputs()
    once = prune(family.model(), Pruning(keep_attention_layers=(0, 2), keep_ffn_layers=(0, 1)))
    twice = prune(once, Pruning(heads=0.5, ffn=0.5, method="taylor"), [batch])
    third = prune(twice, Pruning(keep_layers=(0, 1)))
    assert once.num_parameters() > twice.num_parameters() > third.num_parameters()
    small = quantize(third, Int8())
    small.save_pretrained(tmp_path)
    loaded = getattr(transformers, family.auto_class).from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, batch), logits(small, batch))


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.generates], ids=lambda family: family.name)
@pytest.mark.parametrize("layer", [0, 1])
def test_generation_with_cache(family: Family, layer: int) -> None:
    kept = tuple(index for index in range(3) if index != layer)
    if layer == 0 and family.name.startswith("t5"):
        with pytest.raises(UsageError, match="position bias of every layer"):
            prune(family.model(), Pruning(keep_attention_layers=kept))
        return
    pruned = prune(family.model(), Pruning(keep_attention_layers=kept, keep_ffn_layers=(0, 2)))
    inputs = {k: v for k, v in family.inputs().items() if k != "labels"}
    generated = [
        pruned.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    ]
    assert torch.equal(*generated)


def test_by_importance() -> None:
    family = BY_NAME["bert"]
    model = family.model()
    layer = adapter(model).layers[1]
    with torch.no_grad():
        for part in UNITS["layers"].sites([layer])[0].slices:
            part.module.weight.mul_(1e-6)  # type: ignore[operator]
    for method in ("magnitude", "taylor", "fisher", "wanda"):
        pruned = prune(model, Pruning(keep_attention_layers=2, keep_ffn_layers=2, method=method), [family.inputs()])
        assert isinstance(pruned.bert.encoder.layer[1].attention.self, AbsentAttention)
        assert [layer.feed_forward.width for layer in adapter(pruned).layers] == [64, 0, 64]


def test_with_layers_and_units_at_once() -> None:
    family = BY_NAME["llama"]
    model = family.model()
    config = Pruning(keep_layers=(0, 2), keep_attention_layers=(1, 2), keep_ffn_layers=(0, 1), heads=0.5, ffn=0.5)
    pruned = prune(model, config)
    layers = adapter(pruned).layers
    assert [len(layer.attention) for layer in layers] == [0, 1]
    assert [layer.feed_forward.width for layer in layers] == [32, 0]
    by_hand = prune(
        prune(model, Pruning(keep_attention_layers=(1, 2), keep_ffn_layers=(0, 1))), Pruning(keep_layers=(0, 2))
    )
    by_hand = prune(by_hand, Pruning(heads=0.5, ffn=0.5))
    assert torch.equal(logits(pruned, family.inputs()), logits(by_hand, family.inputs()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"keep_ffn_layers": (0, 7)}, "no layer 7"),
        ({"keep_ffn_layers": 3}, "removes nothing"),
        ({"keep_ffn_layers": (0, 1, 2)}, "removes nothing"),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_refused_and_untouched(values: dict, message: str, inplace: bool) -> None:
    model = BY_NAME["bert"].model()
    before = model.num_parameters()
    with pytest.raises(UsageError, match=message):
        prune(model, Pruning(**values), inplace=inplace)
    assert model.num_parameters() == before


@pytest.mark.parametrize("inplace", [False, True])
def test_the_heir_of_the_position_bias_stays(inplace: bool) -> None:
    model = BY_NAME["t5"].model()
    before = model.num_parameters()
    with pytest.raises(UsageError, match="position bias"):
        prune(model, Pruning(keep_layers=(1, 2), keep_attention_layers=(0, 2)), inplace=inplace)
    assert model.num_parameters() == before


def test_the_last_sublayers_of_a_kind_stay() -> None:
    model = prune(BY_NAME["bert"].model(), Pruning(keep_attention_layers=(0, 2)))
    with pytest.raises(UsageError, match="would empty every layer of the encoder"):
        prune(model, Pruning(keep_attention_layers=[1]))
