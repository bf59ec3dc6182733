"""What is refused, and that nothing has happened when it is."""

import copy

import pytest
import torch
import transformers
from torch import nn

from effitrans.errors import UsageError
from effitrans.pruning import FFNPruning, HeadPruning, LayerPruning, Pruning, prune
from tests.architectures.families import FAMILIES, Family

BY_NAME = {family.name: family for family in FAMILIES}

REFUSED = {
    "every-head": (HeadPruning(ratio=1.0), r"every head of bert\.encoder\.layer\.0\.attention\.self \(4 of 4\)"),
    "all-but-none": (HeadPruning(ratio=0.9), "The most that leaves something there is 0.75"),
    "every-neuron": (FFNPruning(ratio=1.0), r"every neuron of bert\.encoder\.layer\.0\.intermediate"),
    "every-head-global": (HeadPruning(ratio=0.9, scope="global"), "at most 0.75 can go"),
    "less-than-a-head": (HeadPruning(ratio=0.1), r"removes nothing.*at least 0\.25"),
    "less-than-a-multiple": (FFNPruning(ratio=0.02), "multiple_of=1"),
    "all-protected": (HeadPruning(ratio=0.5, min_heads=4), "min_heads=4 protects all"),
    "all-layers-kept": (LayerPruning(keep=3), "removes nothing: the model has 3 layers"),
    "more-layers-than-there-are": (LayerPruning(keep=9), "removes nothing: the model has 3 layers"),
    "layer-out-of-range": (LayerPruning(keep=(0, 5)), "no layer 5: it has 3"),
    "taylor-without-data": (HeadPruning(ratio=0.5, method="taylor"), r"got none.*\(magnitude, "),
    "late-failure": (Pruning(keep_layers=2, heads=1.0), "every head"),
}


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "inplace"])
@pytest.mark.parametrize("case", REFUSED)
def test_refused_and_untouched(case: str, inplace: bool) -> None:
    config, message = REFUSED[case]
    model = BY_NAME["bert"].model()
    before, settings = copy.deepcopy(model.state_dict()), model.config.to_dict()
    with pytest.raises(UsageError, match=message):
        prune(model, config, inplace=inplace)
    assert model.config.to_dict() == settings
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in before.items()
    }


def test_late_failure_of_the_data_leaves_the_model_untouched() -> None:
    family = BY_NAME["bert"]
    model = family.model()
    batch = {name: value for name, value in family.inputs().items() if name != "labels"}
    with pytest.raises(UsageError, match="no labels that it takes"):
        prune(model, Pruning(keep_layers=2, heads=0.5, method="taylor"), [batch], inplace=True)
    assert model.config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heads": 1.5}, "heads: Input should be less than or equal to 1"),
        ({"heads": -0.1}, "heads: Input should be greater than or equal to 0"),
        ({"ffn": "half"}, "ffn: "),
        ({}, "nothing to prune"),
        ({"heads": 0, "ffn": 0}, "nothing to prune"),
        ({"keep_layers": 0}, "keep_layers: received 0, expected a number of layers from 1"),
        ({"keep_layers": [0, 0]}, "names 0 twice"),
        ({"keep_layers": []}, "received an empty list"),
        ({"keep_ffn_layers": "1-0"}, "keep_ffn_layers: the span '1-0' runs backwards"),
        ({"heads": 0.5, "method": "tailor"}, "did you mean 'taylor'"),
        ({"head": 0.5}, "did you mean 'heads'"),
        ({"heads": 0.5, "scope": "local"}, "scope"),
        (
            {"keep_layers": 2, "method": "taylor"},
            "method='taylor' has no effect where layers are named",
        ),
        (
            {"keep_layers": [0, 1], "layer_choice": "importance", "method": "taylor"},
            "method='taylor' has no effect where layers are named",
        ),
    ],
)
def test_config_is_checked(values: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Pruning.parse(values)


def test_recipe_values_parse() -> None:
    config = Pruning.parse({"heads": 0.5, "ffn": 0.25, "keep_layers": [0, 2], "method": "taylor", "seed": 3})
    assert config.keep_layers == (0, 2)
    assert Pruning.parse({"keep_layers": 3}).keep_layers == 3


@pytest.mark.parametrize(
    "config", [HeadPruning(ratio=0.5), FFNPruning(ratio=0.5, multiple_of=4), LayerPruning(keep=2)], ids=type
)
def test_single_unit_configs_are_shorthands(config) -> None:
    model = BY_NAME["bert"].model()
    short, long = prune(model, config), prune(model, config.general())
    assert short.num_parameters() == long.num_parameters() < model.num_parameters()


@pytest.mark.parametrize("method", ["magnitude", "taylor"])
def test_scores_that_are_not_finite(method: str) -> None:
    family = BY_NAME["bert"]
    model = family.model()
    model.bert.encoder.layer[1].attention.self.value.weight.data[0, 0] = 1e38
    with pytest.raises(UsageError, match="is not finite"):
        prune(model, HeadPruning(ratio=0.5, method=method), [family.inputs()], inplace=True)
    assert model.num_parameters() == family.model().num_parameters()


def test_unknown_architecture() -> None:
    config = transformers.ElectraConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, embedding_size=32
    )
    with pytest.raises(UsageError, match=r"'electra'.*bart, bert, distilbert"):
        prune(transformers.ElectraModel(config), HeadPruning(ratio=0.5))


def test_integer_model_is_refused_with_the_order() -> None:
    model = BY_NAME["bert"].model()
    model.is_quantized = True  # type: ignore[assignment]
    with pytest.raises(UsageError, match=r"integer weights.*prune.*recover.*quantize last"):
        prune(model, HeadPruning(ratio=0.5))


def test_quantized_model_is_refused_with_the_order() -> None:
    quantization = pytest.importorskip("effitrans.quantization")
    quantized = quantization.quantize(BY_NAME["bert"].model(), quantization.Int8())
    with pytest.raises(UsageError, match="quantize last"):
        prune(quantized, HeadPruning(ratio=0.5))


def test_foreign_module_is_refused() -> None:
    class Adapted(nn.Linear):
        pass

    model = BY_NAME["bert"].model()
    model.bert.encoder.layer[1].attention.self.query = Adapted(32, 32)
    with pytest.raises(UsageError, match=r"layer\.1\.attention\.self holds a Adapted"):
        prune(model, HeadPruning(ratio=0.5))


def test_operator_with_weights_is_refused() -> None:
    model = BY_NAME["bert"].model()
    model.bert.encoder.layer[1].attention.self.attention_operator = nn.Linear(4, 4)
    with pytest.raises(UsageError, match=r"Prune heads first, then swap"):
        prune(model, HeadPruning(ratio=0.5))


def _multi_query() -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            intermediate_size=32,
        )
    ).eval()


def test_single_key_value_head_names_the_way_out() -> None:
    with pytest.raises(UsageError, match="grouped_queries='queries'"):
        prune(_multi_query(), HeadPruning(ratio=0.5))
    pruned = prune(_multi_query(), HeadPruning(ratio=0.5, grouped_queries="queries"))
    assert pruned.model.layers[0].self_attn.q_proj.weight.shape == (16, 32)


def test_inplace_changes_the_model_itself() -> None:
    family: Family = BY_NAME["bert"]
    model = family.model()
    before = model.num_parameters()
    assert prune(model, HeadPruning(ratio=0.5), inplace=True) is model
    assert model.num_parameters() < before


def test_frozen_weights_stay_frozen() -> None:
    model = BY_NAME["gpt2"].model()
    model.transformer.h[0].attn.c_attn.weight.requires_grad_(False)
    pruned = prune(model, HeadPruning(ratio=0.5))
    assert not pruned.transformer.h[0].attn.c_attn.weight.requires_grad
    assert pruned.transformer.h[0].attn.c_attn.bias.requires_grad
