"""Generation with a cache equals generation without, whatever mix of operators; states do not grow."""

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from effitrans.attention import AttentionOperator, Full, Hybrid, Linear, Local, OperatorConfig, swap_attention
from effitrans.attention.cache import OperatorCacheLayer
from effitrans.errors import UsageError
from tests.architectures.families import FAMILIES, Family
from tests.attention.cases import IN_MODELS, case_id

CONFIGS = [
    *IN_MODELS,
    Local(window=3, dilation=2, num_global_tokens=2),
    Linear(feature_map="hedgehog"),
    Linear(decay_gate=True),
    Hybrid(window=3, variant="scatterbrain", num_features=8),
]
GENERATORS = [f for f in FAMILIES if f.generates and f.name not in ("t5-gated", "base-alibi-decoder")]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=case_id)
each_family = pytest.mark.parametrize("family", GENERATORS, ids=lambda family: family.name)


def swapped(family: Family, config: OperatorConfig, layers=None):
    try:
        return swap_attention(family.model(), config, layers)
    except UsageError as error:
        pytest.skip(str(error))


def keeps_state(model) -> bool:
    operators = [getattr(module, "attention_operator", None) for module in model.modules()]
    return any(isinstance(operator, AttentionOperator) and operator.keeps_state for operator in operators)


def llama():
    return next(family for family in FAMILIES if family.name == "llama")


def generate(model, **options) -> Tensor:
    tokens = torch.tensor([[0, 0, 0, 7, 9, 11, 8], [4, 5, 6, 7, 8, 9, 3]])
    settings = {"max_new_tokens": 15, "min_new_tokens": 15, "do_sample": False, "pad_token_id": 0, **options}
    with torch.no_grad():
        return model.generate(tokens, attention_mask=(tokens > 0).long(), **settings)


@each_family
@each_config
@pytest.mark.parametrize("layers", [None, [1]], ids=["all", "one"])
def test_generation_with_cache_equals_generation_without(family, config, layers):
    model = swapped(family, config, layers)
    assert torch.equal(generate(model), generate(model, use_cache=False))


@each_config
def test_beams_and_sampling(config):
    model = swapped(llama(), config)
    beams = {"num_beams": 3, "num_return_sequences": 2}
    assert torch.equal(generate(model, **beams), generate(model, use_cache=False, **beams))
    runs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        runs.append(generate(model, do_sample=True, use_cache=use_cache, num_return_sequences=2))
    assert torch.equal(*runs)


@each_config
@pytest.mark.parametrize("prompt", [[5, 1, 1, 8, 1], [1] * 16, [16]], ids=["chunks", "tokens", "whole"])
def test_logits_of_a_prompt_read_in_pieces(config, prompt):
    model = swapped(llama(), config)
    tokens = torch.randint(1, 50, (2, 16))
    mask = torch.ones(2, 16, dtype=torch.long)
    mask[0, :6] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache, start, pieces = DynamicCache(), 0, []
    with torch.no_grad():
        expected = model(tokens, attention_mask=mask, position_ids=positions).logits
        for size in prompt:
            span = slice(start, start + size)
            out = model(
                tokens[:, span],
                attention_mask=mask[:, : start + size],
                position_ids=positions[:, span],
                past_key_values=cache,
            )
            pieces.append(out.logits)
            start += size
    real = mask.bool()
    torch.testing.assert_close(torch.cat(pieces, 1)[real], expected[real], rtol=1e-4, atol=1e-4)


@each_config
def test_the_cache_grows_only_without_a_state(config):
    model = swapped(llama(), config)
    cache, sizes = DynamicCache(config=model.config), []
    with torch.no_grad():
        for step in range(30):
            model(torch.tensor([[step % 50]]), past_key_values=cache)
            layer = cache.layers[0]
            sizes.append(layer.num_bytes() if isinstance(layer, OperatorCacheLayer) else layer.keys.nbytes)
    assert cache.get_seq_length() == 30
    if keeps_state(model):
        assert sizes[-1] == sizes[12]
    else:
        assert sizes[-1] > sizes[15]


@each_config
def test_a_long_prompt_is_not_held_by_a_state(config):
    """What is kept of a prompt is a copy, not a view into all of its keys."""
    model = swapped(llama(), config)
    held = []
    for length in (20, 40):
        cache = DynamicCache()
        with torch.no_grad():
            model(torch.arange(length)[None] % 50, past_key_values=cache)
        layer = cache.layers[0]
        held.append(layer.num_bytes() if isinstance(layer, OperatorCacheLayer) else layer.keys.nbytes)
    assert (held[0] == held[1]) == keeps_state(model)


def test_a_cache_that_holds_keys_already_is_used_as_it_is():
    family, tokens = llama(), torch.arange(1, 13)[None]
    original, model = family.model(), swapped(llama(), Local(window=4), [1])
    with torch.no_grad():
        expected = model(tokens).logits
        cache = DynamicCache()
        swap_attention(original, Full())(tokens[:, :8], past_key_values=cache)
        model(tokens[:, 8:], past_key_values=cache)
        assert not any(isinstance(layer, OperatorCacheLayer) for layer in cache.layers)
        model.set_attn_implementation("effitrans")
        cache = DynamicCache()
        first = model(tokens[:, :8], past_key_values=cache).logits
        second = model(tokens[:, 8:], past_key_values=cache).logits
    assert isinstance(cache.layers[1], OperatorCacheLayer)
    torch.testing.assert_close(torch.cat([first, second], 1), expected, rtol=1e-4, atol=1e-4)


def test_a_static_cache_works_with_full_and_is_refused_by_the_others():
    model = swapped(llama(), Full())
    static = {"cache_implementation": "static", "disable_compile": True}
    assert torch.equal(generate(model, **static), generate(model))
    with pytest.raises(UsageError, match="a static cache"):
        generate(swapped(llama(), Local(window=3)), **static)


def test_a_state_cannot_be_rolled_back():
    model = swapped(llama(), Linear())
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.arange(5)[None], past_key_values=cache)
    cache.crop(0)
    with pytest.raises(UsageError, match="cannot go back"):
        cache.crop(-2)
    cache.reset()
    assert cache.get_seq_length() == 0
