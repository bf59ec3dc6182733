"""A scheme is added as CONTRIBUTING.md says: a file, a line in `SCHEMES`, and one in `MODULE_KINDS` for its module."""

import importlib
import sys

import pytest
import torch
from typer.testing import CliRunner

from effitrans import checkpoint
from effitrans.checkpoint.kinds import MODULE_KINDS
from effitrans.cli import app
from effitrans.errors import UsageError
from effitrans.quantization import SCHEMES, Int8Embedding, quantize
from effitrans.recipes import json_schema, load_recipe
from effitrans.recipes.check import check_recipe
from tests.architectures.families import FAMILIES

FILE = '''
"""Scheme `ternary`: weights are -1, 0 or 1 times a scale per row (Li, Zhang and Liu 2016)."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import nn

from effitrans.config import Dimension
from effitrans.quantization.modules.base import QuantizedLinear
from effitrans.quantization.modules.linear import weight_of
from effitrans.quantization.scheme import LinearScheme


class Ternary(LinearScheme):
    """Scheme `ternary`."""

    name: ClassVar[str] = "ternary"

    threshold: Annotated[float, Field(gt=0, lt=1)] = 0.7
    """Fraction of a row's mean magnitude below which weights are 0."""

    def build(self, linear):
        weight = weight_of(linear).detach().float()
        large = weight.abs() > self.threshold * weight.abs().mean(1, keepdim=True)
        built = TernaryLinear(weight.shape[1], weight.shape[0], linear.bias is not None, linear.weight.dtype)
        built.weight.data = (weight.sign() * large).to(torch.int8)
        built.scale = (weight.abs() * large).sum(1) / large.sum(1).clamp_min(1)
        built.bias = linear.bias
        return built


class TernaryLinear(QuantizedLinear):
    """A linear layer with ternary weights."""

    kind: ClassVar[str] = "ternary_linear"

    def __init__(
        self, in_features: Dimension, out_features: Dimension, bias: bool = True, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(in_features, out_features)
        self.weight = nn.Parameter(torch.zeros(out_features, in_features, dtype=torch.int8), requires_grad=False)
        self.register_buffer("scale", torch.ones(out_features))
        self._add_bias(bias, dtype)

    def forward(self, x):
        return nn.functional.linear(x, (self.weight * self.scale[:, None]).to(x.dtype), self.bias)
'''
BERT = next(family for family in FAMILIES if family.name == "bert")


@pytest.fixture(autouse=True)
def ternary(tmp_path, monkeypatch):
    """The file, and its two lines."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "scratch_ternary.py").write_text(FILE)
    monkeypatch.syspath_prepend(folder)
    module = importlib.import_module("scratch_ternary")
    monkeypatch.setitem(SCHEMES, "ternary", module.Ternary)
    monkeypatch.setitem(MODULE_KINDS, "ternary_linear", "scratch_ternary:TernaryLinear")
    yield module
    sys.modules.pop("scratch_ternary")


@torch.no_grad()
def test_the_verb_takes_it_and_its_result_reloads_bit_equal(tmp_path, ternary):
    small = quantize(BERT.model(), "ternary")
    layer = small.bert.encoder.layer[0].output.dense
    assert isinstance(layer, ternary.TernaryLinear)
    assert set(layer.weight.unique().tolist()) == {-1, 0, 1}
    assert isinstance(small.bert.embeddings.word_embeddings, Int8Embedding)
    checkpoint.save(small, tmp_path / "model")
    again = checkpoint.load_model(tmp_path / "model", None).eval()
    assert torch.equal(again(**BERT.inputs()).logits, small(**BERT.inputs()).logits)
    with pytest.raises(UsageError, match=r"ternary has a format for linear layers, and skip=.* leaves none"):
        quantize(BERT.model(), ternary.Ternary(skip=("encoder", "pooler", "classifier")))


def test_the_command_line_offers_and_runs_it(tmp_path):
    shown = CliRunner().invoke(app, ["quantize", "--help"], env={"COLUMNS": "300"}).output
    assert "llm-int8, ternary." in shown
    assert "{" not in shown.replace("{model}", "")
    checkpoint.save(BERT.model(), tmp_path / "original")
    arguments = ["quantize", str(tmp_path / "original"), "--scheme", "ternary", "--set", "threshold=0.5"]
    done = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "small")])
    assert done.exit_code == 0, done.output
    (step,) = checkpoint.load_config(tmp_path / "small").quantization_config["history"]
    assert (step["summary"]["scheme"], step["config"]["threshold"]) == ("ternary", 0.5)


def test_recipes_and_their_schema_know_it():
    step = {"quantize": {"scheme": "ternary", "threshold": 0.5}}
    recipe = load_recipe({"name": "r", "task": "digits", "model": {"base": {"hidden_size": 16}}, "steps": [step]})
    assert recipe.steps[0].config.options == SCHEMES["ternary"](threshold=0.5)
    check_recipe(recipe)
    assert '"ternary"' in str(json_schema()).replace("'", '"')
    assert "threshold" in str(json_schema())
    with pytest.raises(UsageError, match="did you mean 'threshold'"):
        load_recipe({**recipe.plain(), "steps": [{"quantize": {"scheme": "ternary", "treshold": 0.5}}]})
