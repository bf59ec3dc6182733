"""The five kinds of positions against their definitions, and their limits."""

import math

import pytest
import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from transformers.models.t5.modeling_t5 import T5Attention

from effitrans.errors import UsageError
from effitrans.models import EffitransForCausalLM, EffitransModel
from effitrans.models.positions import (
    AlibiBias,
    RelativeBias,
    alibi_slopes,
    position_ids_from,
    relative_buckets,
    rotary_angles,
    rotate,
    sinusoidal_table,
)

from .cases import build, tokens


def test_position_ids_count_real_tokens():
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
    assert position_ids_from(mask, 5, 0, mask.device).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2]]
    assert position_ids_from(mask, 2, 3, mask.device).tolist() == [[1, 2], [2, 2]]
    assert position_ids_from(None, 3, 4, mask.device).tolist() == [[4, 5, 6]]


@pytest.mark.parametrize("size", [8, 7])
def test_sinusoidal_table_is_the_formula(size):
    table = sinusoidal_table(11, size, std=0.02)
    amplitude = table[0, 1]  # a cosine of 0
    for position in (0, 1, 10):
        for column in range(size):
            angle = position / 10000 ** (2 * (column // 2) / size)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert table[position, column] / amplitude == pytest.approx(expected, abs=1e-5)


def test_rotary_is_that_of_llama():
    query, key = torch.randn(2, 3, 5, 8), torch.randn(2, 1, 5, 8)
    cos, sin = rotary_angles(torch.arange(5)[None], head_dim=8, theta=100.0)
    twice = [torch.cat((x, x), dim=-1)[:, 0] for x in (cos, sin)]
    expected = apply_rotary_pos_emb(query, key, *twice)
    torch.testing.assert_close(rotate(query, cos, sin), expected[0])
    torch.testing.assert_close(rotate(key, cos, sin), expected[1])


def test_rotary_scores_depend_on_distance_alone():
    query, key = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)

    def score(at: int, other: int) -> float:
        turned = [rotate(x, *rotary_angles(torch.tensor([[p]]), 16, 10000.0)) for x, p in ((query, at), (key, other))]
        return float((turned[0] * turned[1]).sum())

    assert score(3, 1) == pytest.approx(score(103, 101), abs=1e-4)
    assert score(3, 1) != pytest.approx(score(4, 1), abs=1e-4)


def test_alibi_slopes_of_the_paper():
    assert alibi_slopes(8).tolist() == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(6).tolist() == pytest.approx([2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    assert len({round(s, 9) for s in alibi_slopes(12).tolist()}) == 12


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20), (6, 7)])
def test_relative_buckets_are_those_of_t5(bidirectional, buckets, furthest):
    distance = torch.arange(-200, 201)
    expected = T5Attention._relative_position_bucket(distance, bidirectional, buckets, furthest)
    assert torch.equal(relative_buckets(distance, buckets, furthest, bidirectional), expected)


@pytest.mark.parametrize(("queries", "keys", "past"), [(5, 5, 0), (1, 7, 6), (3, 9, 6), (7, 1, 0), (1, 1, 0)])
def test_biases_by_definition(queries, keys, past):
    alibi = AlibiBias(3)
    relative = RelativeBias(3, num_buckets=8, max_distance=6, bidirectional=True)
    torch.nn.init.normal_(relative.weight)
    for offset in (past, torch.tensor(past)):
        by_slope, by_bucket = alibi(queries, keys, offset), relative(queries, keys, offset)
        assert by_slope.shape == by_bucket.shape == (1, 3, queries, keys)
        for i in range(queries):
            for j in range(keys):
                distance = j - (i + past)
                torch.testing.assert_close(by_slope[0, :, i, j], -alibi.slopes * abs(distance))
                bucket = relative_buckets(torch.tensor(distance), 8, 6, True)
                torch.testing.assert_close(by_bucket[0, :, i, j], relative.weight[bucket])


@pytest.mark.parametrize("position", ["sinusoidal", "learned", "rotary", "alibi", "relative"])
@torch.no_grad()
def test_order_matters(position):
    model = build(EffitransModel, position=position)
    words = tokens(1, 6)
    mean = model(input_ids=words).last_hidden_state.mean(1)
    other = model(input_ids=words[:, [2, 5, 1, 0, 4, 3]]).last_hidden_state.mean(1)
    assert (other - mean).abs().max() > 1e-3


@pytest.mark.parametrize("position", ["sinusoidal", "learned"])
@torch.no_grad()
def test_tables_refuse_longer_texts(position):
    model = build(EffitransForCausalLM, "decoder", position=position)
    assert model(input_ids=tokens(1, 40)).logits.shape[1] == 40
    with pytest.raises(UsageError, match=r"41 tokens, but this model has 40 positions: truncate"):
        model(input_ids=tokens(1, 41))
    with pytest.raises(UsageError, match=r"41 tokens"):
        model.generate(tokens(1, 38), max_new_tokens=10)


@pytest.mark.parametrize("position", ["rotary", "alibi", "relative"])
@torch.no_grad()
def test_others_have_no_limit(position):
    model = build(EffitransForCausalLM, "decoder", position=position)
    assert model(input_ids=tokens(1, 99)).logits.isfinite().all()


@torch.no_grad()
def test_given_position_ids_are_used():
    model = build(EffitransModel, position="learned")
    words = tokens(1, 5)
    default = model(input_ids=words).last_hidden_state
    assert torch.equal(model(input_ids=words, position_ids=torch.arange(5)[None]).last_hidden_state, default)
    moved = model(input_ids=words, position_ids=torch.arange(5)[None] + 3).last_hidden_state
    assert not torch.allclose(moved, default)


@pytest.mark.parametrize("position", ["rotary", "alibi", "relative", "learned"])
@torch.no_grad()
def test_packed_texts_do_not_see_each_other(position):
    model = build(EffitransForCausalLM, "decoder", position=position)
    first, second = tokens(1, 4), tokens(1, 5, seed=9)
    ids = torch.cat((torch.arange(4), torch.arange(5)))[None]
    packed = model(input_ids=torch.cat((first, second), 1), position_ids=ids, use_cache=False).logits
    torch.testing.assert_close(packed[:, 4:], model(input_ids=second).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["alibi", "relative"])
def test_attention_that_would_drop_the_bias_is_refused(position):
    def careless(module, query, key, value, attention_mask, **kwargs):
        raise AssertionError("must not be reached")

    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("careless", careless)
    AttentionMaskInterface.register("careless", sdpa_mask)
    model = build(EffitransModel, position=position)
    model.set_attn_implementation("careless")
    with pytest.raises(UsageError, match=rf"'careless' cannot add the bias of {position} positions: use one of .*sdpa"):
        model(input_ids=tokens(1, 4))
