"""Attention maps: probabilities for exact attention, implied weights for the rest, and nothing changed in the model."""

import pytest
import torch

from effitrans import swap_attention
from effitrans.attention import Linear, Local
from effitrans.attention.maps import attention_maps
from effitrans.errors import UsageError
from effitrans.reporting.attention import draw_attention
from tests.architectures.families import FAMILIES

BY_NAME = {family.name: family for family in FAMILIES}


def one(name: str) -> tuple:
    family = BY_NAME[name]
    inputs = {key: value[:1] for key, value in family.inputs().items() if key != "labels"}
    return family.model(), inputs


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_maps_of_exact_attention_are_its_probabilities(name):
    model, inputs = one(name if name in BY_NAME else "Llama")
    maps = attention_maps(model, inputs)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(**inputs, output_attentions=True).attentions
    assert len(maps) == len(expected) == 3
    for ours, theirs in zip(maps.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs[0])


def test_a_window_shows_and_longer_inputs_than_a_head_is_wide_are_whole():
    model, _ = one("bert")
    inputs = {"input_ids": torch.randint(5, 50, (1, 29))}
    for map_HLS in attention_maps(swap_attention(model, Local(window=3)), inputs).values():
        distance = (torch.arange(29)[:, None] - torch.arange(29)).abs()
        assert map_HLS.shape == (4, 29, 29)
        assert (map_HLS[:, distance >= 3] == 0).all()
        assert (map_HLS[:, distance < 3] > 0).all()
        torch.testing.assert_close(map_HLS.sum(-1), torch.ones(4, 29))


def test_implied_weights_give_the_operators_output():
    from effitrans.attention.interface import recording

    model, inputs = one("bert")
    swapped = swap_attention(model, Linear())
    maps = attention_maps(swapped, inputs)
    calls = []
    with recording(lambda module, call: calls.append((module, call))), torch.no_grad():
        swapped(**inputs)
    for (module, call), map_HLS in zip(calls, maps.values(), strict=True):
        outputs = module.attention_operator(
            call.query_BHLD, call.key_BGSD, call.value_BGSD, call.mask, scale=call.scale
        )
        torch.testing.assert_close(map_HLS @ call.value_BGSD[0], outputs[0], rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was():
    model, inputs = one("bert")
    model.train()
    before = model.config._attn_implementation
    attention_maps(model, inputs)
    assert model.training
    assert model.config._attn_implementation == before


def test_a_batch_is_refused():
    model, inputs = one("bert")
    with pytest.raises(UsageError, match="one example"):
        attention_maps(model, {key: value.repeat(2, 1) for key, value in inputs.items()})


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_written(suffix, tmp_path):
    model, inputs = one("bert")
    maps = attention_maps(model, inputs)
    draw_attention(maps, [str(i) for i in range(7)], tmp_path / f"maps.{suffix}")
    assert (tmp_path / f"maps.{suffix}").stat().st_size > 5000
