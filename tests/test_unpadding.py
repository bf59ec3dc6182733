"""Encoders without the padding compute what they compute with it, from fewer rows."""

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.attention import Local, swap_attention
from effitrans.inference.unpadding import tokens_of, without_padding
from effitrans.models import EffitransConfig, EffitransForSequenceClassification
from effitrans.pruning import Pruning, prune
from effitrans.quantization import Int8, quantize
from tests.architectures.families import FAMILIES

OTHERS = [family for family in FAMILIES if family.name not in ("bert", "roberta", "distilbert")]
SHAPE = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}


def bert(kind: str = "ForSequenceClassification", **options) -> PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.BertConfig(**SHAPE, intermediate_size=64, max_position_embeddings=64, **options)
    return getattr(transformers, f"Bert{kind}")(config).eval()


def base(**options) -> PreTrainedModel:
    torch.manual_seed(0)
    return EffitransForSequenceClassification(EffitransConfig(**{**SHAPE, **options})).eval()


def roberta() -> PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.RobertaConfig(**SHAPE, intermediate_size=64, max_position_embeddings=64)
    return transformers.RobertaForTokenClassification(config).eval()


def distilbert() -> PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.DistilBertConfig(vocab_size=50, dim=32, n_layers=3, n_heads=4, hidden_dim=64)
    return transformers.DistilBertForMaskedLM(config).eval()


MODELS = {
    "bert": bert,
    "bert-hidden": lambda: bert("Model"),
    "bert-mlm": lambda: bert("ForMaskedLM"),
    "bert-qa": lambda: bert("ForQuestionAnswering"),
    "roberta": roberta,
    "distilbert": distilbert,
    "learned": lambda: base(position="learned"),
    "sinusoidal-post": lambda: base(position="sinusoidal", norm="post"),
    "rotary-grouped": lambda: base(position="rotary", num_key_value_heads=2, hidden_act="swiglu"),
    "int8": lambda: quantize(bert(), Int8()),
    "pruned": lambda: prune(bert(), Pruning(heads=0.5, ffn=0.5, multiple_of=1)),
    "without-attention": lambda: prune(bert(), Pruning(keep_attention_layers=(0, 2))),
    "without-ffn": lambda: prune(base(), Pruning(keep_ffn_layers=(1, 2))),
    "bf16": lambda: bert().to(torch.bfloat16),
}


def texts() -> dict[str, Tensor]:
    """Five texts of 1 to 9 tokens."""
    lengths = torch.tensor([9, 1, 4, 2, 6])
    mask = (torch.arange(9) < lengths[:, None]).long()
    ids = torch.randint(5, 50, (5, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("name", MODELS)
def test_real_tokens_are_the_same(name: str):
    model, inputs = MODELS[name](), texts()
    twin, tokens = without_padding(model), tokens_of(inputs)
    assert twin is not None
    assert tokens is not None
    with torch.no_grad():
        expected, output = model(**inputs)[0], twin(**inputs, tokens=tokens)[0]
    if output.shape[:2] == inputs["input_ids"].shape:
        output, expected = output[tokens.real_BL], expected[tokens.real_BL]
    close = {"rtol": 0.1, "atol": 0.03} if model.dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(output, expected, **close)


def test_positions_that_all_rows_share():
    model, inputs = base(position="rotary"), {**texts(), "position_ids": torch.arange(9)[None] + 3}
    twin, tokens = without_padding(model), tokens_of(inputs)
    assert twin is not None
    with torch.no_grad():
        torch.testing.assert_close(twin(**inputs, tokens=tokens).logits, model(**inputs).logits)


def test_layers_see_the_real_tokens_alone_and_the_model_is_untouched():
    model, inputs = bert("Model"), texts()
    twin, tokens = without_padding(model), tokens_of(inputs)
    assert twin is not None
    assert tokens is not None
    seen: list[tuple[int, ...]] = []
    for module in twin.encoder.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape[:-1])))
    with torch.no_grad():
        hidden = twin(**inputs, tokens=tokens).last_hidden_state
    assert set(seen) == {(1, 9 + 1 + 4 + 2 + 6)}
    assert len(seen) == 3 * 6
    assert hidden.shape == (5, 9, 32)
    assert (hidden[~tokens.real_BL] == 0).all()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert model.config._attn_implementation == "sdpa"
    assert all(ours is theirs for ours, theirs in zip(twin.parameters(), model.parameters(), strict=True))


def test_without_tokens_the_twin_is_the_model():
    model, inputs = bert(), texts()
    twin = without_padding(model)
    assert twin is not None
    with torch.no_grad():
        torch.testing.assert_close(twin(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: base(position="relative"), id="relative"),
        pytest.param(lambda: base(position="alibi"), id="alibi"),
        pytest.param(lambda: base(form="decoder"), id="decoder"),
        pytest.param(lambda: bert(is_decoder=True), id="bert-decoder"),
        pytest.param(lambda: bert(attn_implementation="eager"), id="eager"),
        pytest.param(lambda: bert(output_hidden_states=True), id="hidden-states"),
        pytest.param(lambda: bert(chunk_size_feed_forward=3), id="chunked"),
        pytest.param(lambda: swap_attention(bert(), Local(window=2)), id="swapped"),
        *[pytest.param(family.model, id=family.name) for family in OTHERS],
    ],
)
def test_models_whose_layers_depend_on_padding_are_left_alone(model):
    assert without_padding(model()) is None


def test_calls_from_which_nothing_is_left_out():
    inputs = texts()
    assert tokens_of(inputs) is not None
    assert tokens_of({"input_ids": inputs["input_ids"]}) is None
    assert tokens_of({**inputs, "attention_mask": torch.ones(5, 9)}) is None
    assert tokens_of({**inputs, "attention_mask": torch.zeros(5, 9)}) is None
    assert tokens_of({**inputs, "attention_mask": inputs["attention_mask"][2:3]}) is None
    assert tokens_of({**inputs, "attention_mask": torch.ones(5, 1, 9, 9).tril()}) is None
    assert tokens_of({**inputs, "attention_mask": inputs["attention_mask"].flip(1)}) is None
    assert tokens_of({**inputs, "output_hidden_states": True}) is None
    assert tokens_of({**inputs, "output_hidden_states": False}) is not None
    assert tokens_of({**inputs, "start_positions": torch.zeros(5), "end_positions": torch.zeros(5)}) is None
    assert tokens_of({**inputs, "labels": torch.zeros(5)}) is not None
    assert tokens_of({**inputs, "labels": torch.zeros(5, 9)}) is None
    ignored = torch.where(inputs["attention_mask"] == 0, -100, 0)
    assert tokens_of({**inputs, "labels": ignored}) is not None
    almost = torch.ones_like(inputs["attention_mask"])
    almost[0, -1] = 0
    assert tokens_of({**inputs, "attention_mask": almost}) is None
