"""Single weights go: exact counts and patterns, compact on disk, kept in training."""

import copy
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from effitrans import checkpoint
from effitrans.errors import UsageError
from effitrans.pruning import HeadPruning, L0Pruning, Pruning, Sparsity, prune
from effitrans.pruning.sparse.modules import SparseLinear, pack, unpack
from effitrans.pruning.sparse.sparsify import _weight
from effitrans.quantization import Int8, quantize
from tests.architectures.families import FAMILIES, Family, core_first, logits

BY_NAME = {family.name: family for family in FAMILIES}
CASES = {
    "magnitude": Sparsity(sparsity=0.75),
    "global": Sparsity(sparsity=0.5, scope="global"),
    "wanda": Sparsity(sparsity=0.5, method="wanda"),
    "2:4": Sparsity(pattern="2:4"),
    "wanda-4:8": Sparsity(pattern="4:8", method="wanda"),
}


def sparse_layers(model: nn.Module) -> dict[str, SparseLinear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, SparseLinear)}


def zeroed_twin(model: transformers.PreTrainedModel, pruned: nn.Module) -> transformers.PreTrainedModel:
    """The dense model with the removed weights set to zero."""
    twin = copy.deepcopy(model)
    for path, layer in sparse_layers(pruned).items():
        linear = twin.get_submodule(path)
        mask = layer.mask.t() if isinstance(linear, Conv1D) else layer.mask
        linear.weight.data.mul_(mask)  # type: ignore[operator,union-attr]
    return twin


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", core_first())
def test_equals_the_model_with_zeros(family: Family, case: str, tmp_path: Path) -> None:
    model, batch = family.model(), family.inputs()
    before = copy.deepcopy(model.state_dict())
    pruned = prune(model, CASES[case], [batch])
    layers = sparse_layers(pruned)
    assert layers
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    total = sum(layer.mask.numel() for layer in layers.values())
    kept = sum(layer.values.numel() for layer in layers.values())
    assert kept == pytest.approx(total * (0.25 if case == "magnitude" else 0.5), abs=len(layers))
    assert model.num_parameters() - pruned.num_parameters() == total - kept
    twin = zeroed_twin(model, pruned)
    torch.testing.assert_close(logits(pruned, batch), logits(twin, batch), rtol=1e-5, atol=1e-5)

    pruned.save_pretrained(tmp_path / "sparse")
    twin.save_pretrained(tmp_path / "dense")
    saved = checkpoint.bytes_on_disk(tmp_path / "dense") - checkpoint.bytes_on_disk(tmp_path / "sparse")
    assert saved > 4 * (total - kept) - total / 8 - 300 * len(layers)
    loaded = getattr(transformers, family.auto_class).from_pretrained(tmp_path / "sparse")
    assert torch.equal(logits(loaded, batch), logits(pruned, batch))
    assert not any(isinstance(module, nn.Linear) and path in layers for path, module in loaded.named_modules())


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_zeros_stay_zeros_in_training(name: str) -> None:
    family = BY_NAME[name]
    pruned = prune(family.model(), Sparsity(sparsity=0.5)).train()
    masks = {path: layer.mask.clone() for path, layer in sparse_layers(pruned).items()}
    before = logits(pruned.eval(), family.inputs())
    optimizer = torch.optim.AdamW(pruned.train().parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        pruned(**family.inputs()).loss.backward()
        optimizer.step()
    assert not torch.allclose(logits(pruned.eval(), family.inputs()), before), "what eval mode keeps must be renewed"
    for path, layer in sparse_layers(pruned).items():
        assert torch.equal(layer.weight != 0, masks[path])


def test_gradients_are_those_of_the_zeroed_model() -> None:
    family = BY_NAME["gpt2"]
    model = family.model()
    pruned = prune(model, Sparsity(pattern="2:4"))
    twin = zeroed_twin(model, pruned)
    for side in (pruned, twin):
        side(**family.inputs()).loss.backward()
    for path, layer in sparse_layers(pruned).items():
        dense = twin.get_submodule(path).weight.grad.t()[layer.mask]  # type: ignore[operator,union-attr]
        torch.testing.assert_close(layer.values.grad, dense, rtol=1e-4, atol=1e-6)


def test_which_weights_go() -> None:
    family = BY_NAME["bert"]
    model = family.model()
    by_layer = sparse_layers(prune(model, Sparsity(sparsity=0.75)))
    pairs = sparse_layers(prune(model, Sparsity(pattern="2:4")))
    rows = sparse_layers(prune(model, Sparsity(sparsity=0.5, method="wanda"), [family.inputs()]))
    for path, layer in by_layer.items():
        weight = _weight(model.get_submodule(path)).abs()  # type: ignore[arg-type]
        assert weight[layer.mask].min() >= weight[~layer.mask].max()
        groups, kept = weight.reshape(-1, 4), pairs[path].mask.reshape(-1, 4)
        assert (kept.sum(1) == 2).all()
        assert (groups.masked_fill(~kept, 9).min(1).values >= groups.masked_fill(kept, 0).max(1).values).all()
        assert (rows[path].mask.sum(1) == layer.in_features // 2).all()
    everywhere = sparse_layers(prune(model, Sparsity(sparsity=0.5, scope="global")))
    assert len({layer.values.numel() / layer.mask.numel() for layer in everywhere.values()}) > 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=200))
def test_bits_come_back(bits: list[bool]) -> None:
    mask = torch.tensor(bits)
    packed = pack(mask)
    assert packed.dtype == torch.int32
    assert len(packed) == -(-len(bits) // 32)
    assert unpack(packed, len(bits)).tolist() == bits


def test_moves_and_casts() -> None:
    family = BY_NAME["bert"]
    pruned = prune(family.model(), Sparsity(sparsity=0.5))
    exact = logits(pruned, family.inputs())
    rough = logits(pruned.to(torch.bfloat16), family.inputs()).float()
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.2)
    assert all(layer.bits.dtype == torch.int32 for layer in sparse_layers(pruned).values())


def test_after_structured_pruning_and_before_nothing_else() -> None:
    family = BY_NAME["llama"]
    narrow = prune(family.model(), Pruning(heads=0.5, ffn=0.5))
    sparse = prune(narrow, Sparsity(pattern="2:4"))
    assert torch.isfinite(logits(sparse, family.inputs())).all()
    made = sparse.generate(family.inputs()["input_ids"], max_new_tokens=4, do_sample=False)
    assert made.shape[1] == 11
    with pytest.raises(UsageError, match="sparse already"):
        prune(sparse, Sparsity(sparsity=0.5))
    with pytest.raises(UsageError, match="from which nothing can be cut"):
        prune(sparse, HeadPruning(ratio=0.5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "set one of"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "set one of"),
        ({"pattern": "4:4"}, "below M"),
        ({"pattern": "half"}, "expected N:M"),
        ({"pattern": "2:4", "scope": "global"}, "has no effect"),
        ({"sparsity": 0.5, "scope": "global", "method": "wanda"}, "do not compare"),
        ({"sparsity": 1.0}, "sparsity"),
    ],
)
def test_config_is_checked(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sparsity.parse(values)


def test_refused() -> None:
    model = BY_NAME["bert"].model()
    with pytest.raises(UsageError, match=r"query has 32 inputs, which is no multiple of 5"):
        prune(model, Sparsity(pattern="2:5"))
    with pytest.raises(UsageError, match="got none"):
        prune(model, Sparsity(sparsity=0.5, method="wanda"))
    with pytest.raises(UsageError, match="quantize last"):
        prune(quantize(model, Int8()), Sparsity(sparsity=0.5))
    with pytest.raises(UsageError, match="leave inplace out"):
        prune(model, L0Pruning(heads=0.5), inplace=True)


def test_inference_mode_leaves_nothing_that_training_cannot_use() -> None:
    family = BY_NAME["bert"]
    sparse = prune(family.model(), Sparsity(pattern="2:4"))
    with torch.inference_mode():
        sparse(**family.inputs())
    sparse(**family.inputs()).loss.backward()
    frozen = sparse.bert.encoder.layer[0].intermediate.dense.requires_grad_(False)
    x = torch.randn(2, frozen.in_features, requires_grad=True)
    with torch.inference_mode():
        frozen(x.detach())
    frozen(x).sum().backward()
    assert x.grad is not None
