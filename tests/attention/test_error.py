"""How far operators are from softmax attention, layer by layer."""

import pytest
import torch

from effitrans import attention_error
from effitrans.attention import Full, Linear, Local, find_sites, swap_attention
from effitrans.errors import UsageError
from tests.architectures.families import FAMILIES

TOKENS = [[5, 6, 7, 8, 9, 10, 11, 12], [20, 21, 22], list(range(5, 17))]
DATA = [{"input_ids": tokens, "attention_mask": [1] * len(tokens)} for tokens in TOKENS]


def family(name: str):
    return next(family for family in FAMILIES if family.name == name)


def test_exact_operators_have_no_error_and_wider_windows_less():
    model = family("bert").model()
    operators = [Full(), Local(window=12), Local(window=4), Local(window=2)]
    entries = attention_error(model, DATA, operators, batch_size=2)
    assert [entry.layer for entry in entries] == [0] * 4 + [1] * 4 + [2] * 4
    assert entries[4].path == "bert.encoder.layer.1.attention.self"
    for layer in range(3):
        errors = [entry.error for entry in entries if entry.layer == layer]
        assert max(errors[:2]) < 1e-6
        assert 1e-3 < errors[2] < errors[3] < 2


def test_the_error_is_that_of_the_formula():
    """Of one layer, recomputed from the outputs that the layer's output projection receives."""
    model, config = family("llama").model(), Local(window=3)
    tokens = torch.tensor([DATA[0]["input_ids"]])

    def outputs(model) -> torch.Tensor:
        seen = []
        hook = model.model.layers[0].self_attn.o_proj.register_forward_hook(
            lambda module, args, out: seen.append(args[0])
        )
        with torch.no_grad():
            model(tokens)
        hook.remove()
        return seen[0]

    exact, approximate = outputs(model), outputs(swap_attention(model, config))
    (entry,) = attention_error(model, DATA[:1], config, layers=[0])
    assert entry.error == pytest.approx(float((approximate - exact).norm() / exact.norm()), rel=1e-4)


def test_padding_does_not_count():
    model = family("bert").model()
    together = attention_error(model, DATA[:2], Local(window=2), batch_size=2)
    alone = attention_error(model, DATA[:2], Local(window=2), batch_size=1)
    for one, other in zip(together, alone, strict=True):
        assert one.error == pytest.approx(other.error, rel=1e-4)


def test_errors_of_layers_do_not_mix_and_the_model_is_left_as_it_was():
    model = family("llama").model()
    swapped = swap_attention(model, Local(window=2), [0]).train()
    before = {name: tensor.clone() for name, tensor in swapped.state_dict().items()}
    (mine,) = [entry for entry in attention_error(swapped, DATA) if entry.layer == 0]
    assert mine.operator == Local(window=2)
    (plain,) = attention_error(model, DATA, Local(window=2), layers=[0])
    assert mine.error == pytest.approx(plain.error, rel=1e-6)
    last = [attention_error(each, DATA, Local(window=3), layers=[2])[0].error for each in (model, swapped)]
    assert last[0] == pytest.approx(last[1], rel=1e-6), "layer 0 ran softmax in both"
    assert swapped.training
    assert swapped.model.layers[0].self_attn.attention_operator.config == Local(window=2)
    assert swapped.model.layers[0].self_attn.attention_operator.training
    assert swapped.config._attn_implementation == "effitrans"
    assert model.config._attn_implementation == "sdpa"
    assert len(find_sites(model)) == 3
    assert not hasattr(model.model.layers[2].self_attn, "attention_operator")
    assert swapped.state_dict().keys() == before.keys()


def test_refusals_are_reported_with_their_reason():
    entries = attention_error(family("mistral").model(), DATA, [Linear(), Local(window=2)], layers="0")
    assert entries[0].error is None
    assert "sliding window" in entries[0].refused
    assert entries[1].error > 0
    assert entries[1].refused is None


@pytest.mark.parametrize(
    ("operators", "data", "message"),
    [(None, DATA, "no operators to measure"), (Local(), [], "empty"), ([], DATA, "no operators to measure")],
    ids=["none", "no-data", "empty"],
)
def test_what_cannot_be_measured_is_refused(operators, data, message):
    model = family("bert").model()
    with pytest.raises(UsageError, match=message):
        attention_error(model, data, operators)
    assert model.config._attn_implementation == "sdpa"
