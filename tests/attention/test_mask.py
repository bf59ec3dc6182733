"""The mask object says the same as transformers' dense mask, whatever pattern the model asks for."""

import pytest
import torch
from transformers import LlamaConfig, MistralConfig
from transformers.cache_utils import DynamicCache, StaticCache
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    create_bidirectional_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
    sdpa_mask,
    sliding_window_bidirectional_mask_function,
    sliding_window_causal_mask_function,
)

from effitrans.attention import reference
from effitrans.attention.mask import AttentionMask, from_tensor, make_mask

PATTERNS = {
    "causal": causal_mask_function,
    "bidirectional": bidirectional_mask_function,
    "sliding": sliding_window_causal_mask_function(3),
    "sliding-bidirectional": sliding_window_bidirectional_mask_function(2),
    "chunked": chunked_causal_mask_function(4, torch.zeros(2, dtype=torch.long)),
}
SIZES = {"square": (9, 9, 0, 0), "step": (1, 9, 8, 0), "chunk": (4, 9, 5, 0), "sliding-cache": (2, 4, 7, 5)}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("padding", ["none", "left", "short", "full"])
def test_dense_form_equals_the_mask_of_transformers(pattern, sizes, padding):
    q_length, kv_length, q_offset, kv_offset = SIZES[sizes]
    end = kv_offset + kv_length
    attention_mask = {
        "none": None,
        "left": torch.arange(end)[None] >= torch.tensor([[3], [0]]),
        "short": torch.ones(2, end - 2, dtype=torch.bool),
        "full": torch.ones(2, end, dtype=torch.bool),
    }[padding]
    arguments = (2, q_length, kv_length, q_offset, kv_offset, PATTERNS[pattern], attention_mask)
    mask = make_mask(*arguments)
    expected = sdpa_mask(*arguments, allow_is_causal_skip=False)
    dense = mask.dense()
    shape = (2, 1, q_length, kv_length)
    assert torch.equal(torch.ones(shape).bool() if dense is None else dense.expand(shape), expected.expand(shape))
    assert mask.is_structured == (pattern != "chunked")
    assert mask.causal == ("bidirectional" not in pattern)
    if padding == "full":
        assert mask.padding_BT is None


def test_the_object_is_small():
    mask = make_mask(1, 100_000, 100_000, attention_mask=torch.arange(100_000)[None] > 3)
    tensors = [value for value in vars(mask).values() if isinstance(value, torch.Tensor)]
    assert sum(tensor.nbytes for tensor in tensors) <= 100_000


@pytest.mark.parametrize("kind", ["causal", "sliding", "bidirectional"])
def test_transformers_calls_it(kind):
    config = MistralConfig(sliding_window=3, num_hidden_layers=1, hidden_size=8, num_attention_heads=1)
    create = {
        "causal": create_causal_mask,
        "sliding": create_sliding_window_causal_mask,
        "bidirectional": create_bidirectional_mask,
    }[kind]
    embeds, padding = torch.zeros(2, 6, 8), torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    masks = []
    for name in ("effitrans", "sdpa"):
        config._attn_implementation = name
        masks.append(create(config=config, inputs_embeds=embeds, attention_mask=padding, past_key_values=None))
    assert isinstance(masks[0], AttentionMask)
    assert masks[0].window == (3 if kind == "sliding" else None)
    assert torch.equal(masks[0].dense().expand(2, 1, 6, 6), masks[1].expand(2, 1, 6, 6))


def test_packed_sequences_keep_their_pattern():
    config = LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, attn_implementation="effitrans")
    positions = torch.tensor([[0, 1, 2, 0, 1]])
    mask = create_causal_mask(config, torch.zeros(1, 5, 8), None, None, position_ids=positions)
    assert not mask.is_structured
    assert mask.causal
    assert mask.dense()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 1, 1],
    ]


def test_a_static_cache_gets_a_dense_mask():
    config = LlamaConfig(num_hidden_layers=1, hidden_size=8, num_attention_heads=1, attn_implementation="effitrans")
    cache = StaticCache(config=config, max_cache_len=7)
    cache.update(torch.zeros(1, 1, 2, 8), torch.zeros(1, 1, 2, 8), 0)
    mask = create_causal_mask(config, torch.zeros(1, 3, 8), None, cache)
    assert mask.shape == (1, 1, 3, 7)
    assert mask[0, 0].int().tolist() == [[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]]


def test_layers_with_fewer_cached_keys_see_the_same_positions():
    cache = DynamicCache()
    cache.update(torch.zeros(1, 1, 6, 8), torch.zeros(1, 1, 6, 8), 0)
    padding = torch.tensor([[False, False, True, True, True, False, True, True]])
    whole = make_mask(1, 2, 8, q_offset=6, attention_mask=padding)
    assert whole.for_lengths(2, 8) is whole
    part = whole.for_lengths(2, 5)
    assert part.kv_offset == 3
    assert torch.equal(part.dense(), whole.dense()[..., 3:])
    assert torch.equal(part.key_padding(), padding[:, 3:])


def test_an_additive_mask_of_the_caller_is_read():
    additive = torch.zeros(2, 1, 3, 4).masked_fill(torch.rand(2, 1, 3, 4) > 0.5, torch.finfo(torch.float32).min)
    assert torch.equal(from_tensor(additive, 3, 4).dense(), additive == 0)


@pytest.mark.parametrize("two_sided", [True, False])
@pytest.mark.parametrize("dilation", [1, 3])
def test_the_local_pattern_is_what_it_says(two_sided, dilation):
    length, window, count, first = 17, 3, 2, torch.tensor([0, 4])
    positions = torch.arange(length)
    got = reference.local_pattern(
        positions, positions, window, two_sided=two_sided, dilation=dilation, num_global_tokens=count, first_B=first
    )
    for row in range(2):
        is_global = [0 <= i - int(first[row]) < count for i in range(length)]
        for i in range(length):
            reach = [i - step * dilation for step in range(window)]
            reach += [i + step * dilation for step in range(window)] if two_sided else []
            for j in range(length):
                assert bool(got[row, 0, i, j]) == (j in reach or is_global[i] or is_global[j])


def test_a_mask_that_hides_nothing_makes_no_matrix():
    assert AttentionMask(1, 2**24, 2**24).dense() is None
