"""What the adapters say about models, against what is written down by hand in `families` and what really runs."""

import pytest
import torch
import transformers
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from effitrans.architectures import ARCHITECTURES, adapter, evenly_chosen
from effitrans.errors import UsageError
from tests.architectures.families import FAMILIES, HEAD_DIM, LAYERS, THROUGH_INTERFACE, WIDTH, Family, logits

families = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


def test_every_architecture_is_tested() -> None:
    assert {family.build().config.model_type for family in FAMILIES} == set(ARCHITECTURES)


@families
def test_layers_are_described(family: Family) -> None:
    model = family.model()
    architecture = adapter(model)
    assert tuple(stack.name for stack in architecture.stacks) == family.stacks
    layers = architecture.layers
    assert [(layer.stack, layer.index) for layer in layers] == [(s, i) for s in family.stacks for i in range(LAYERS)]
    modules = dict(model.named_modules())
    for layer in layers:
        assert modules[layer.path] is layer.module
        assert modules[layer.feed_forward.path] is layer.feed_forward.module
        assert layer.feed_forward.width == WIDTH
        assert len(layer.feed_forward.inputs) == family.ffn_inputs
        assert len(layer.attention) == (2 if layer.stack == "decoder" and _has_cross(family) else 1)
        for position, site in enumerate(layer.attention):
            assert modules[site.path] is site.module
            assert site.is_cross == (position == 1)
            assert (site.num_key_value_heads, site.num_heads) == (family.units, family.units * family.queries)
            assert site.head_dim == HEAD_DIM
            before = {name: vars(site.module).get(name) for name in site.attributes}
            assert None not in before.values(), "an attribute that the forward pass does not have"
            site.update_attributes()
            assert before == {name: getattr(site.module, name) for name in site.attributes}
    assert architecture.attention_modules == [(s.path, s.module) for layer in layers for s in layer.attention]


@pytest.mark.parametrize("family", THROUGH_INTERFACE, ids=lambda family: family.name)
def test_attention_modules_are_those_that_run(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    attend = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def spy(module, *arguments, **options):
        called.append(module)
        return attend(module, *arguments, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", spy)
    model = family.model()
    model.set_attn_implementation("sdpa")
    logits(model, family.inputs())
    assert set(called) == {module for _, module in adapter(model).attention_modules}


@families
def test_dropping_layers(family: Family) -> None:
    model = family.model()
    architecture = adapter(model)
    kept = [layer.module for layer in architecture.layers if layer.index != 1]
    architecture.drop_layers(keep=[2, 0])
    layers = architecture.layers
    assert [layer.module for layer in layers] == kept
    assert [layer.index for layer in layers] == [0, 1] * len(family.stacks)
    for field in family.layers_field:
        assert getattr(model.config, field) == 2
    for layer in layers:
        indices = {m.layer_idx for m in layer.module.modules() if getattr(m, "layer_idx", None) is not None}
        assert indices <= {layer.index}
    rebuilt = type(model)(model.config)
    assert {n: p.shape for n, p in rebuilt.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert torch.isfinite(logits(model, family.inputs())).all()


@pytest.mark.parametrize("name", ["t5", "bart", "base-seq2seq"])
def test_dropping_layers_of_one_stack(name: str) -> None:
    family = next(family for family in FAMILIES if family.name == name)
    model = family.model()
    adapter(model).drop_layers(keep={"decoder": [1]})
    assert [len(stack.modules) for stack in adapter(model).stacks] == [3, 1]
    inputs = {k: v for k, v in family.inputs().items() if k != "labels"}
    with_cache, without = (model.generate(**inputs, max_new_tokens=4, use_cache=use) for use in (True, False))
    assert torch.equal(with_cache, without)
    with pytest.raises(UsageError, match="no stack named 'tail'"):
        adapter(model).drop_layers(keep={"tail": [0]})


HEADLESS = {
    "BertModel": transformers.BertConfig,
    "RobertaModel": transformers.RobertaConfig,
    "DistilBertModel": transformers.DistilBertConfig,
    "GPT2Model": transformers.GPT2Config,
    "GPT2ForSequenceClassification": transformers.GPT2Config,
    "LlamaModel": transformers.LlamaConfig,
    "ViTModel": transformers.ViTConfig,
    "T5Model": transformers.T5Config,
    "T5EncoderModel": transformers.T5Config,
    "T5ForSequenceClassification": transformers.T5Config,
    "T5ForTokenClassification": transformers.T5Config,
    "BartModel": transformers.BartConfig,
    "BartForCausalLM": transformers.BartConfig,
    "BartForSequenceClassification": transformers.BartConfig,
}


@pytest.mark.parametrize("name", HEADLESS)
def test_any_head_or_none(name: str) -> None:
    model_class = getattr(transformers, name)
    with torch.device("meta"):
        model: PreTrainedModel = model_class(HEADLESS[name]())
    modules = dict(model.named_modules())
    sites = [site for layer in adapter(model).layers for site in layer.attention]
    assert sites
    assert all(modules[site.path] is site.module for site in sites)


def test_unknown_architecture_is_refused_by_name() -> None:
    model = transformers.ElectraModel(
        transformers.ElectraConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    with pytest.raises(UsageError, match="'electra'") as raised:
        adapter(model)
    assert all(name in str(raised.value) for name in ARCHITECTURES)
    with pytest.raises(UsageError, match="Linear"):
        adapter(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("keep", "message"),
    [([], "every layer"), ([3], "has no layer 3"), ([-1], "has no layer -1"), ([0, 0], "twice")],
    ids=["none", "beyond", "negative", "doubled"],
)
def test_layers_that_cannot_be_kept(keep: list[int], message: str) -> None:
    model = FAMILIES[0].model()
    with pytest.raises(UsageError, match=message):
        adapter(model).drop_layers(keep)
    assert len(adapter(model).layers) == LAYERS


@pytest.mark.parametrize(
    ("total", "keep", "chosen"), [(6, 3, [0, 2, 5]), (12, 6, [0, 2, 4, 7, 9, 11]), (4, 4, [0, 1, 2, 3]), (5, 1, [0])]
)
def test_evenly_chosen(total: int, keep: int, chosen: list[int]) -> None:
    assert evenly_chosen(total, keep) == chosen


@pytest.mark.parametrize("keep", [0, 7])
def test_evenly_chosen_refuses(keep: int) -> None:
    with pytest.raises(UsageError, match="from 1 to 6"):
        evenly_chosen(6, keep)


def _has_cross(family: Family) -> bool:
    return any("cross" in site or "encoder_attn" in site for site in family.attention)
