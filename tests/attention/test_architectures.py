"""Every operator in every family of pretrained models: it works all the way (forward, backward, generation, save and
reload), or it is refused with a reason; and exact operators change nothing."""

import re

import pytest
import torch
import transformers
from torch import Tensor

from effitrans import checkpoint
from effitrans.attention import (
    Full,
    Hybrid,
    Kernel,
    Linear,
    Local,
    Nystrom,
    OperatorConfig,
    Site,
    activate,
    swap_attention,
)
from effitrans.attention.operator import FEATURES
from effitrans.errors import UsageError
from tests.architectures.families import THROUGH_INTERFACE, Family
from tests.attention.cases import IN_MODELS, case_id

SWAPS = [
    *IN_MODELS,
    Local(window=2, dilation=2, num_global_tokens=1),
    Linear(feature_map="hedgehog"),
    Hybrid(window=3, variant="scatterbrain", num_features=8),
    Kernel(num_landmarks=4),
    Nystrom(num_landmarks=3, convolution=3),
]
NEEDS = {
    **{family: {"causal"} for family in ("gpt2", "gpt2-cross", "bert-decoder", "llama", "bart", "base-decoder")},
    **{family: {"causal", "sliding_window"} for family in ("mistral", "qwen2")},
    **{family: {"causal", "position_bias"} for family in ("t5", "t5-gated", "base-alibi-decoder", "base-seq2seq")},
    "base-alibi": {"position_bias"},
}
"""Family -> what its self-attention asks of an operator; families that are not here ask for nothing."""

SIMILAR = ("roberta", "bert-decoder", "gpt2-cross", "t5-gated", "base-alibi", "base-alibi-decoder")
"""Families that run the code of another one; the fast suite leaves them to the slow one."""

each_family = pytest.mark.parametrize(
    "family",
    [pytest.param(f, id=f.name, marks=[pytest.mark.slow] if f.name in SIMILAR else []) for f in THROUGH_INTERFACE],
)
each_swap = pytest.mark.parametrize("config", SWAPS, ids=case_id)


def why_refused(config: OperatorConfig, family: Family) -> str | None:
    """A pattern of the reasons of which one must be given; None if the operator must work."""
    honours = config.build(Site(num_heads=4, num_key_value_heads=4, head_dim=8)).honours
    missing = NEEDS.get(family.name, set()) - honours
    if getattr(config, "num_global_tokens", 0):
        missing |= NEEDS.get(family.name, set()) & {"sliding_window"}
    return "|".join(re.escape(FEATURES[name].removeprefix("the model's own ")) for name in sorted(missing)) or None


def forward(model: transformers.PreTrainedModel, family: Family, side: str = "right") -> Tensor:
    inputs = {name: value for name, value in family.inputs().items() if name != "labels"}
    if side == "left" and "attention_mask" in inputs:
        inputs["attention_mask"] = inputs["attention_mask"].clone()
        inputs["attention_mask"][0, :3] = 0
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = family.inputs()["labels"]
    with torch.no_grad():
        return model(**inputs).logits


@each_family
@pytest.mark.parametrize("config", [Full(), Local(window=64)], ids=case_id)
def test_exact_operators_change_nothing(family, config):
    model = family.model()
    result = swap_attention(model, config)
    for side in ("right", "left"):
        got, expected = forward(result, family, side), forward(model, family, side)
        if side == "left" and family.auto_class == "AutoModelForCausalLM":
            got, expected = got[:, 3:], expected[:, 3:]  # rows before the first token see nothing
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    if family.generates:
        torch.testing.assert_close(generate(result), generate(model), rtol=0, atol=0)


def generate(model: transformers.PreTrainedModel, **options) -> Tensor:
    tokens = torch.tensor([[0, 0, 0, 7, 9, 11, 8], [4, 5, 6, 7, 8, 9, 3]])
    mask = (tokens > 0).long()
    settings = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0, **options}
    with torch.no_grad():
        return model.generate(tokens, attention_mask=mask, **settings)


@each_family
@each_swap
def test_a_swap_works_all_the_way_or_is_refused(family, config, tmp_path):
    model = family.model()
    reason = why_refused(config, family)
    if reason is not None:
        with pytest.raises(UsageError, match=reason):
            swap_attention(model, config)
        assert model.config._attn_implementation != "effitrans"
        return
    result = swap_attention(model, config)
    out = forward(result, family)
    assert out.isfinite().all()
    assert (config.name == "full") != (not torch.allclose(out, forward(model, family), atol=1e-5))

    result.train()
    result(**family.inputs()).loss.backward()
    gradients = [parameter.grad for parameter in result.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    operators = [name for name, _ in result.named_parameters() if "attention_operator" in name]
    assert all(result.get_parameter(name).grad.abs().max() > 0 for name in operators)

    result.eval()
    result.save_pretrained(tmp_path)
    reloaded = getattr(transformers, family.auto_class).from_pretrained(tmp_path)
    activate(reloaded)
    assert torch.equal(forward(reloaded, family), out)
    assert checkpoint.history(reloaded)[-1]["config"]["attention"] == config.name
    if family.generates:
        assert torch.equal(generate(reloaded), generate(result))


@each_family
def test_gradient_checkpointing_gives_the_same_gradients(family):
    model = family.model()
    result = swap_attention(model, Local(window=3)).train()
    for module in result.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    gradients = []
    for reentrant in (None, False, True):
        if reentrant is not None:
            result.gradient_checkpointing_enable({"use_reentrant": reentrant})
        result.zero_grad()
        result(**family.inputs()).loss.backward()
        gradients.append({n: p.grad.clone() for n, p in result.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for name, gradient in other.items():
            torch.testing.assert_close(gradient, gradients[0][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_attention_dropout_is_active_in_training_only(name):
    family = next(family for family in THROUGH_INTERFACE if family.name == name)
    model = swap_attention(family.model(), Linear())
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.5
    if name == "bert":
        for layer in model.bert.encoder.layer:
            layer.attention.self.dropout.p = 0.5
    assert torch.equal(forward(model, family), forward(model, family))
    model.train()
    assert not torch.equal(forward(model, family), forward(model, family))
