"""What all layers agree on stands in the config, and caches fit the layers whether they agree or not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from effitrans import Int8, checkpoint, quantize
from effitrans.pruning import Pruning, prune
from tests.architectures.families import FAMILIES, Family, logits

BY_NAME = {family.name: family for family in FAMILIES}
UNITS = {"ffn": {"ffn": 0.5}, "heads": {"heads": 0.5}, "all": {"heads": 0.5, "ffn": 0.5, "hidden": 0.5}}
PLAIN = ("llama", "mistral", "vit", "t5", "base-decoder", "base-seq2seq")
"""Families whose architecture is built with any size of heads."""


def sizes(model: PreTrainedModel) -> tuple[int, int, int]:
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return config.hidden_size, heads, getattr(config, "head_dim", None) or config.hidden_size // heads


@pytest.mark.parametrize(
    ("name", "units"),
    # T5 scales by the width that it was trained with, which stays in the manifest.
    [pytest.param(n, UNITS[u], id=f"{n}-{u}") for n in PLAIN for u in UNITS if (n, u) != ("t5", "all")],
)
def test_equally_pruned_layers_leave_a_plain_model(name: str, units: dict, tmp_path: Path) -> None:
    family = BY_NAME[name]
    pruned = prune(family.model(), Pruning(**units))
    assert not checkpoint.manifest_of(pruned).is_structural
    hidden, heads = (32 // (2 if "hidden" in units else 1)), 4 // (2 if "heads" in units else 1)
    assert sizes(pruned) == (hidden, heads, 8)
    checkpoint.save(pruned, tmp_path / "m")
    again = getattr(transformers, family.auto_class).from_pretrained(tmp_path / "m")
    assert torch.equal(logits(again, family.inputs()), logits(pruned, family.inputs()))


@pytest.mark.parametrize("name", ["bert", "distilbert", "gpt2", "bart"])
def test_heads_that_no_config_sizes_stay_in_the_manifest(name: str, tmp_path: Path) -> None:
    family = BY_NAME[name]
    pruned = prune(family.model(), Pruning(heads=0.5))
    assert sizes(pruned) == (32, 2, 8)
    assert checkpoint.manifest_of(pruned).attributes
    checkpoint.save(pruned, tmp_path / "m")
    again = getattr(transformers, family.auto_class).from_pretrained(tmp_path / "m")
    assert torch.equal(logits(again, family.inputs()), logits(pruned, family.inputs()))


def test_what_the_architecture_cannot_be_built_with_stays_out_of_the_config() -> None:
    """Three heads do not divide 32 channels; the narrower FFN is written all the same."""
    pruned = prune(BY_NAME["bert"].model(), Pruning(heads=0.25, ffn=0.5))
    assert sizes(pruned) == (32, 4, 8)
    assert pruned.config.intermediate_size == 32
    assert not any("intermediate" in path for path in checkpoint.manifest_of(pruned).modules)


def test_layers_that_differ_leave_the_config() -> None:
    pruned = prune(BY_NAME["llama"].model(), Pruning(heads=0.4, ffn=0.5, scope="global"))
    assert pruned.config.num_key_value_heads == 4
    assert checkpoint.manifest_of(pruned).is_structural


def test_an_untouched_model_keeps_its_config() -> None:
    model = BY_NAME["gpt2"].model()
    before = model.config.to_dict()
    quantized = quantize(model, Int8())
    assert {**quantized.config.to_dict(), "quantization_config": None} == {**before, "quantization_config": None}


def test_checkpoints_that_say_it_layer_by_layer_load_and_are_pruned_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = BY_NAME["llama"]
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["effitrans.checkpoint.record"], "settle", lambda model: None)
        old = prune(family.model(), Pruning(heads=0.5, ffn=0.5, hidden=0.25))
        checkpoint.save(old, tmp_path / "old")
    assert old.config.num_key_value_heads == 4
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "old")
    assert torch.equal(logits(loaded, family.inputs()), logits(old, family.inputs()))
    further = prune(loaded, Pruning(ffn=0.5))
    assert sizes(further) == (24, 2, 8)
    assert not checkpoint.manifest_of(further).is_structural
    checkpoint.save(further, tmp_path / "new")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert torch.equal(logits(again, family.inputs()), logits(further, family.inputs()))


@pytest.mark.slow
def test_an_equally_pruned_llama_loads_without_effitrans(tmp_path: Path) -> None:
    family = BY_NAME["llama"]
    pruned = prune(family.model(), Pruning(heads=0.5, ffn=0.5, hidden=0.25))
    checkpoint.save(pruned, tmp_path / "m")
    torch.save(family.inputs()["input_ids"], tmp_path / "ids.pt")
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM as auto;"
        f"model = auto.from_pretrained({str(tmp_path / 'm')!r});"
        f"torch.save(model(torch.load({str(tmp_path / 'ids.pt')!r})).logits, {str(tmp_path / 'out.pt')!r});"
        "assert 'effitrans' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert torch.equal(torch.load(tmp_path / "out.pt"), logits(pruned, family.inputs()))


STRUCTURES = {
    "equal": {"heads": 0.5},
    "equal-but-indivisible": {"heads": 0.25},
    "different": {"heads": 0.4, "scope": "global"},
    "narrow": {"hidden": 0.25},
    "without-an-attention": {"keep_attention_layers": (1, 2)},
}
CACHES = ({"cache_implementation": "static"}, {"prefill_chunk_size": 4})


@pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "bart"])
def test_every_cache_fits_the_layers(name: str, structure: dict, tmp_path: Path) -> None:
    family = BY_NAME[name]
    pruned = prune(family.model(), Pruning(**structure))
    checkpoint.save(pruned, tmp_path / "m")
    again = getattr(transformers, family.auto_class).from_pretrained(tmp_path / "m")
    chunked = [] if pruned.config.is_encoder_decoder else [CACHES[1], CACHES[0] | CACHES[1]]
    for model in (pruned, again):
        expected = _written(model, family)
        for options in (CACHES[0], *chunked):
            assert torch.equal(_written(model, family, **options), expected)


def _written(model: PreTrainedModel, family: Family, **options: object) -> Tensor:
    ids = family.inputs()["input_ids"][:1]
    settings = {
        "max_new_tokens": 4,
        "min_new_tokens": 4,
        "do_sample": False,
        "pad_token_id": 0,
        "disable_compile": True,
    }
    return model.generate(ids, attention_mask=torch.ones_like(ids), **settings, **options)  # type: ignore[operator]
