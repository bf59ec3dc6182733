"""Choosing layers, proving that operators run, and refusing what cannot be swapped."""

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.attention import Full, Linear, Local, find_sites, swap_attention
from effitrans.attention import interface as bridge
from effitrans.attention.operator import AttentionOperator
from effitrans.errors import UsageError
from tests.architectures.families import FAMILIES, THROUGH_INTERFACE

SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def bert(**extra) -> PreTrainedModel:
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**SMALL, **extra)).eval()


def bart() -> PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.BartConfig(
        vocab_size=50,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
    )
    return transformers.BartModel(config).eval()


def swapped(model: nn.Module) -> list[str]:
    paths = [path for path, module in model.named_modules() if isinstance(module, AttentionOperator)]
    return [path.removesuffix(".attention_operator") for path in paths]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, [0, 1, 2]),
        ([1], [1]),
        ("0-1", [0, 1]),
        ("0, 2", [0, 2]),
        (["encoder.layer.2.*"], [2]),
        (["*.1.attention", 2], [1, 2]),
    ],
    ids=str,
)
def test_layers_are_chosen_by_number_span_or_path(layers, expected):
    model = swap_attention(bert(), Local(window=4), layers)
    assert swapped(model) == [f"encoder.layer.{i}.attention.self" for i in expected]


def test_numbers_count_self_attention_and_cross_attention_is_chosen_by_path():
    model = bart()
    assert swapped(swap_attention(model, Local(), [0, 3])) == [
        "encoder.layers.0.self_attn",
        "decoder.layers.1.self_attn",
    ]
    assert len(swapped(swap_attention(model, Local()))) == 4
    crossed = swap_attention(model, Linear(), ["decoder.layers.*.encoder_attn"])
    assert swapped(crossed) == ["decoder.layers.0.encoder_attn", "decoder.layers.1.encoder_attn"]
    with pytest.raises(UsageError, match="'local' cannot honour cross-attention"):
        swap_attention(model, Local(), ["decoder.layers.*.encoder_attn"])


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([3], "no self-attention layer 3: it has 3, numbered from 0 to 2"),
        ("0-5", "no self-attention layer 3"),
        ("3-1", "runs backwards: write 1-3"),
        ("nothing.*", "no attention module matches 'nothing.\\*'. Paths in this model: encoder.layer.0"),
        ([], "received an empty list"),
        ([2, 2], "names 2 twice"),
        ("0-1,1", "names 1 twice"),
        (True, "received True"),
        ("0-99999999", "layers have numbers up to"),
    ],
)
def test_layers_that_do_not_exist_are_refused(layers, message):
    with pytest.raises(UsageError, match=message):
        swap_attention(bert(), Local(), layers)


def test_sites_are_found_as_they_run():
    sites = find_sites(bart())
    assert [found.path for found in sites][:3] == [
        "encoder.layers.0.self_attn",
        "encoder.layers.1.self_attn",
        "decoder.layers.0.self_attn",
    ]
    assert [found.site.causal for found in sites] == [False, False, True, False, True, False]
    assert [found.site.cross for found in sites] == [False, False, False, True, False, True]


def test_the_caller_s_model_is_untouched_unless_inplace():
    model = bert()
    before = copy.deepcopy(model.state_dict())
    result = swap_attention(model, Linear(feature_map="hedgehog"))
    assert swapped(model) == []
    assert model.config._attn_implementation == "sdpa"
    assert not hasattr(model.config, "quantization_config")
    assert model.state_dict().keys() == before.keys()
    assert swap_attention(model, Local(), inplace=True) is model
    assert len(swapped(model)) == len(swapped(result)) == 3


def test_modes_are_restored():
    model = bert().train()
    model.encoder.layer[0].eval()
    result = swap_attention(model, Local())
    assert result.training
    assert not result.encoder.layer[0].attention.self.attention_operator.training
    assert result.encoder.layer[1].attention.self.attention_operator.training


def test_operators_can_be_mixed_and_replaced():
    model = swap_attention(bert(), Local(window=4), "0-1")
    model = swap_attention(model, Linear(), [1, 2], inplace=True)
    kinds = [layer.attention.self.attention_operator.config.name for layer in model.encoder.layer]
    assert kinds == ["local", "linear", "linear"]
    assert [entry["verb"] for entry in checkpoint.history(model)] == ["swap", "swap"]


def test_a_swap_that_changes_nothing_is_refused():
    model = swap_attention(bert(), Local(window=4))
    with pytest.raises(UsageError, match="nothing would change"):
        swap_attention(model, Local(window=4), [1])
    kept = model.encoder.layer[0].attention.self.attention_operator
    swap_attention(model, Local(window=5), [1, 2], inplace=True)
    assert (
        swap_attention(model, Local(window=4), inplace=True).encoder.layer[0].attention.self.attention_operator is kept
    )


@pytest.mark.parametrize(
    "name",
    ["Longformer", "DebertaV2", "Nystromformer", "GPTNeo"] + ["T5"] * (THROUGH_INTERFACE != FAMILIES),
)
def test_architectures_outside_the_interface_are_refused_by_name(name):
    extra = {
        "Longformer": {"attention_window": 4},
        "GPTNeo": {"attention_types": [[["global"], 3]], "num_layers": 3, "num_heads": 4},
    }
    config = getattr(transformers, f"{name}Config")(**{**SMALL, **extra.get(name, {})})
    model = getattr(transformers, f"{name}Model")(config)
    with pytest.raises(
        UsageError, match=f"{name}Model .architecture {config.model_type!r}. does not send its attention"
    ):
        swap_attention(model, Local())
    assert model.config._attn_implementation != "effitrans"


def test_a_failed_swap_leaves_an_inplace_model_as_it_was(monkeypatch):
    model = swap_attention(bert(), Local(window=3), [0])
    with pytest.raises(UsageError):
        swap_attention(model, Linear(), ["*.attention.self", "nothing"], inplace=True)

    def ignoring(module, *args, **kwargs):
        operator = module._modules.pop("attention_operator", None)
        out = bridge.attention_forward(module, *args, **kwargs)
        if operator is not None:
            module.attention_operator = operator
        return out

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, bridge.NAME, ignoring)
    with pytest.raises(UsageError, match=r"did not run in encoder\.layer\.0\.attention\.self"):
        swap_attention(model, Full(), inplace=True)
    monkeypatch.undo()
    assert swapped(model) == ["encoder.layer.0.attention.self"]
    assert model.encoder.layer[0].attention.self.attention_operator.config == Local(window=3)


def test_an_operator_is_never_silently_ignored():
    model = swap_attention(bert(), Local(window=3))
    tokens = torch.arange(5)[None]
    model.set_attn_implementation("sdpa")
    with pytest.raises(UsageError, match="'local', which would be ignored"):
        model(tokens)
    model.set_attn_implementation("effitrans")
    model(tokens)
    with pytest.raises(UsageError, match="no attention weights"):
        model.encoder.layer[0].attention.self(torch.zeros(1, 4, 32), output_attentions=True)


def test_a_4d_mask_is_honoured_by_full_and_refused_by_the_others():
    model, tokens = bert(), torch.arange(6)[None]
    mask = (torch.rand(1, 1, 6, 6) > 0.4) | torch.eye(6, dtype=torch.bool)
    expected = model(tokens, attention_mask=mask)[0]
    torch.testing.assert_close(swap_attention(model, Full())(tokens, attention_mask=mask)[0], expected)
    with pytest.raises(UsageError, match="'local' cannot honour a mask beyond"):
        swap_attention(model, Local(window=2))(tokens, attention_mask=mask)


def test_softcap_and_sinks_are_honoured_or_refused():
    shared = {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
    gemma = transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**shared, attn_logit_softcapping=1.0, attn_implementation="eager")
    ).eval()
    oss = transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**shared, num_local_experts=2, num_experts_per_tok=1, attn_implementation="eager")
    ).eval()
    tokens = torch.arange(1, 8)[None]
    for model, what in ((gemma, "capped"), (oss, "sinks")):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
            expected = model(tokens).logits
            got = swap_attention(model, Full())(tokens).logits
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        with pytest.raises(UsageError, match=what):
            swap_attention(model, Local())


def test_probe_inputs_can_be_given():
    model = bert()
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"].shape), with_kwargs=True)
    swap_attention(model, Local(), inputs={"input_ids": torch.ones(2, 3, dtype=torch.long)}, inplace=True)
    assert set(seen) == {(2, 3)}


def test_learned_parameters_take_the_dtype_and_train(tmp_path):
    model = swap_attention(bert().to(torch.bfloat16), Linear(feature_map="hedgehog"), [1])
    names = [name for name, _ in model.named_parameters() if "attention_operator" in name]
    assert names == [
        f"encoder.layer.1.attention.self.attention_operator.{side}_map.weight" for side in ("query", "key")
    ]
    assert all(model.get_parameter(name).dtype == torch.bfloat16 for name in names)
    model(torch.arange(9)[None])[0].float().square().sum().backward()
    assert all(model.get_parameter(name).grad.abs().max() > 0 for name in names)
