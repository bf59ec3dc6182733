"""docs/adding_an_operator.md, followed to the letter."""

import re
import types
from pathlib import Path

import pytest
import torch
import yaml

from effitrans import checkpoint, swap_attention
from effitrans.attention import OPERATORS, operator_config
from effitrans.recipes import load_recipe
from tests.architectures.families import FAMILIES
from tests.attention.cases import SCALE, Problem, build

PAGE = (Path(__file__).parents[2] / "docs" / "adding_an_operator.md").read_text(encoding="utf-8")


def _block(language: str) -> str:
    (block,) = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    return block


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The page's file, and its line in the registry."""
    module = types.ModuleType("sigmoid")
    exec(compile(_block("python"), "sigmoid.py", "exec"), module.__dict__)
    assert '"sigmoid": Sigmoid,' in PAGE
    monkeypatch.setitem(OPERATORS, "sigmoid", module.Sigmoid)


PROBLEMS = [
    Problem(length=19),
    Problem(length=19, heads=3, groups=3, causal=True),
    Problem(length=17, padding="left"),
    Problem(length=17, causal=True, padding="empty"),
    Problem(length=11, keys=5),
]


@pytest.mark.parametrize("bias", [0.0, 0.5])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_its_fast_path_is_its_reference(problem, bias):
    operator, inputs = build(operator_config("sigmoid", {"bias": bias}), problem), problem.inputs()
    got = operator(*inputs, problem.mask(), scale=SCALE)
    expected = operator.reference(*inputs, problem.mask(), scale=SCALE)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    mine, theirs = (torch.autograd.grad(out.square().sum(), inputs) for out in (got, expected))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_models_take_it_by_name(name, tmp_path):
    family = next(family for family in FAMILIES if family.name == name)
    original, inputs = family.model(), family.inputs()
    model = swap_attention(original, operator_config("sigmoid", {"bias": 0.5}))
    with torch.no_grad():
        before, out = (one(**inputs)[0] for one in (original, model))
    assert not torch.allclose(before, out)
    checkpoint.save(model, tmp_path)
    with torch.no_grad():
        assert torch.equal(checkpoint.load_model(tmp_path, None).eval()(**inputs)[0], out)


def test_its_recipe_is_one():
    steps = load_recipe(yaml.safe_load(_block("yaml"))).steps
    assert [step.verb for step in steps] == ["train", "swap", "distill"]
