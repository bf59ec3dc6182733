"""The attention module against a plain reference, with grouped queries and with layers of different shapes."""

import copy

import pytest
import torch
from torch import nn

from effitrans.models import EffitransConfig, EffitransForCausalLM, EffitransForSeq2SeqLM
from effitrans.models.attention import EffitransAttention, eager_attention_forward
from effitrans.models.positions import AlibiBias, RelativeBias, rotary_angles

from .cases import ALL_POSITIONS, SIZES, build, tokens


def reference(module: EffitransAttention, hidden_BLC: torch.Tensor, past: int = 0) -> torch.Tensor:
    """Attention written out head by head and query by query. Rotary is done by complex numbers."""
    batch, length, _ = hidden_BLC.shape
    size = module.head_dim

    def head(linear: nn.Linear, index: int) -> torch.Tensor:
        rows = slice(index * size, (index + 1) * size)
        return hidden_BLC @ linear.weight[rows].T + linear.bias[rows]

    def turn(x_BLD: torch.Tensor) -> torch.Tensor:
        if module.config.position != "rotary":
            return x_BLD
        pairs = torch.complex(x_BLD[..., : size // 2], x_BLD[..., size // 2 :])
        frequency = module.config.rope_theta ** (-torch.arange(0, size, 2) / size)
        pairs = pairs * torch.exp(1j * torch.arange(length)[:, None] * frequency)
        return torch.cat((pairs.real, pairs.imag), dim=-1)

    outputs = []
    for index in range(module.num_heads):
        group = index * module.num_key_value_heads // module.num_heads
        query, key, value = (
            turn(head(module.q_proj, index)),
            turn(head(module.k_proj, group)),
            head(module.v_proj, group),
        )
        output = torch.zeros(batch, length, size)
        for i in range(length):
            seen = i + 1 if module.is_causal else length
            scores = key[:, :seen] @ query[:, i, :, None] * module.scaling
            if isinstance(module.position_bias, AlibiBias):
                distance = (torch.arange(seen) - i).abs()[None, :, None]
                scores = scores - module.position_bias.slopes[index] * distance
            elif isinstance(module.position_bias, RelativeBias):
                scores = scores + module.position_bias(length, length, 0)[0, index, i, :seen, None]
            output[:, i] = (scores.softmax(1) * value[:, :seen]).sum(1)
        outputs.append(output)
    return module.o_proj(torch.cat(outputs, -1))


def attention(position: str, *, is_causal: bool, implementation: str, **options) -> EffitransAttention:
    torch.manual_seed(0)
    config = EffitransConfig(**{**SIZES, "position": position, **options})
    config._attn_implementation = implementation
    module = EffitransAttention(config, 0, is_causal=is_causal)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("is_causal", [True, False], ids=["causal", "both-ways"])
@pytest.mark.parametrize("position", ["learned", "rotary", "alibi", "relative"])
@pytest.mark.parametrize("key_value_heads", [1, 2, 4])
def test_values_and_gradients_of_the_reference(implementation, is_causal, position, key_value_heads):
    module = attention(
        position, is_causal=is_causal, implementation=implementation, num_key_value_heads=key_value_heads, head_dim=6
    )
    hidden = torch.randn(2, 7, 32, requires_grad=True)
    angles = rotary_angles(torch.arange(7)[None], 6, 10000.0) if position == "rotary" else None
    mask = None
    if is_causal and implementation == "eager":
        mask = torch.full((7, 7), torch.finfo(torch.float32).min).triu(1)[None, None]
    actual, _ = module(hidden, attention_mask=mask, position_embeddings=angles)
    expected = reference(module, hidden)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    wanted = [hidden, *module.parameters()]
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((x * weight).sum(), wanted) for x in (actual, expected)]
    for got, right in zip(*gradients, strict=True):
        torch.testing.assert_close(got, right, atol=2e-4, rtol=2e-4)


def keep_heads(module: EffitransAttention, heads: list[int], groups: list[int]) -> None:
    """Cut an attention module down to some heads, as pruning does."""
    size = module.head_dim
    rows = torch.cat([torch.arange(h * size, (h + 1) * size) for h in heads])
    group_rows = torch.cat([torch.arange(g * size, (g + 1) * size) for g in groups])
    with torch.no_grad():
        for name, kept in (("q_proj", rows), ("k_proj", group_rows), ("v_proj", group_rows)):
            old = getattr(module, name)
            new = nn.Linear(old.in_features, len(kept))
            new.weight.copy_(old.weight[kept])
            new.bias.copy_(old.bias[kept])
            setattr(module, name, new)
        old = module.o_proj
        module.o_proj = nn.Linear(len(rows), old.out_features)
        module.o_proj.weight.copy_(old.weight[:, rows])
        module.o_proj.bias.copy_(old.bias)
    if isinstance(module.position_bias, AlibiBias):
        module.position_bias.slopes = module.position_bias.slopes[heads]
    elif isinstance(module.position_bias, RelativeBias):
        module.position_bias.weight = nn.Parameter(module.position_bias.weight[:, heads])
    module.num_heads, module.num_key_value_heads = len(heads), len(groups)


def silence_heads(module: EffitransAttention, heads: list[int]) -> None:
    """Zero what the heads contribute: the full-size twin of removing them."""
    size = module.head_dim
    for head in heads:
        with torch.no_grad():
            module.o_proj.weight[:, head * size : (head + 1) * size] = 0


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("position", ALL_POSITIONS)
@pytest.mark.parametrize(
    ("model_class", "form"), [(EffitransForCausalLM, "decoder"), (EffitransForSeq2SeqLM, "encoder-decoder")]
)
def test_layers_may_have_different_heads(attention, position, model_class, form):
    """Removing heads from one layer equals silencing them, in the forward pass and with a cache."""
    full = build(model_class, form, position=position, attn_implementation=attention, tie_word_embeddings=False)
    narrow = copy.deepcopy(full)
    for stack, layer in ((-1, 1), (0, 0)):
        silence_heads(full.model.stacks[stack].layers[layer].self_attn, [0, 1])
        keep_heads(narrow.model.stacks[stack].layers[layer].self_attn, [2, 3], [1])
    if form == "encoder-decoder":
        silence_heads(full.model.decoder.layers[0].cross_attn, [1, 3])
        keep_heads(narrow.model.decoder.layers[0].cross_attn, [0, 2], [0, 1])
    words = tokens(2, 6)
    inputs = {"input_ids": words} if form == "decoder" else {"input_ids": tokens(2, 4), "decoder_input_ids": words}
    with torch.no_grad():
        torch.testing.assert_close(narrow(**inputs).logits, full(**inputs).logits, atol=1e-5, rtol=1e-5)
    options = {"max_new_tokens": 6, "do_sample": False, "no_repeat_ngram_size": 1}
    expected = full.generate(words, **options)
    assert torch.equal(narrow.generate(words, **options), expected)
    assert torch.equal(narrow.generate(words, use_cache=False, **options), expected)


def test_feed_forward_width_may_differ():
    model = build(EffitransForCausalLM, "decoder", hidden_act="swiglu")
    mlp = model.model.decoder.layers[0].mlp
    mlp.up_proj, mlp.gate_proj, mlp.down_proj = nn.Linear(32, 5), nn.Linear(32, 5), nn.Linear(5, 32)
    assert model(input_ids=tokens(2, 4)).logits.isfinite().all()


def test_bias_on_top_of_a_mask_stays_finite_in_half_precision():
    """The mask holds the lowest number; with a bias on top, float16 would give minus infinity in a whole row."""
    query, key = torch.randn(1, 2, 3, 4).half(), torch.randn(1, 2, 3, 4).half()
    mask = torch.full((1, 1, 3, 3), torch.finfo(torch.float16).min, dtype=torch.float16)
    bias = torch.full((1, 2, 3, 3), -100.0, dtype=torch.float16)
    output, weights = eager_attention_forward(nn.Identity(), query, key, key, mask, 0.5, position_bias=bias)
    assert output.isfinite().all()
    assert weights.dtype == torch.float16


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("form", ["encoder", "decoder"])
@pytest.mark.parametrize("position", ALL_POSITIONS)
def test_a_text_of_padding_alone_is_harmless(attention, form, position):
    from effitrans.models import EffitransForSequenceClassification

    model = build(EffitransForSequenceClassification, form, position=position, attn_implementation=attention)
    words, mask = tokens(2, 5), torch.ones(2, 5).long()
    mask[1] = 0
    outputs = model(input_ids=words, attention_mask=mask, labels=torch.tensor([0, 1]))
    outputs.loss.backward()
    assert outputs.logits.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(outputs.logits[:1], model(input_ids=words[:1]).logits, atol=1e-5, rtol=1e-5)
