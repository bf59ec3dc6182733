"""The objective of CONTRIBUTING.md, added as the page says: one file and one line in the registry."""

import importlib
import re
import sys
from pathlib import Path

import jsonschema
import pytest
import torch

from effitrans import Distillation, UsageError, checkpoint
from effitrans.distillation import OBJECTIVES
from effitrans.distillation.objectives import DistillationBatch
from effitrans.recipes import json_schema, load_recipe
from tests.cli.conftest import effitrans  # noqa: F401 - a fixture

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
NAME = "logit_huber"


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    """The page's module, and its line in the registry."""
    section = PAGE.split("## Add a distillation objective")[1].split("\n## ")[0]
    (source,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    (tmp_path / f"{NAME}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    made = importlib.import_module(NAME).LogitHuber
    assert f'"{NAME}": LogitHuber,' in section
    monkeypatch.setitem(OBJECTIVES, NAME, made)
    return made


def test_its_settings_are_settings_of_distillation(registered):
    config = Distillation(objective={NAME: {"weight": 2, "delta": 0.5}, "response": 1})
    assert (config.objective[NAME].weight, config.objective[NAME].delta) == (2, 0.5)
    assert Distillation.parse(config.model_dump(mode="json")) == config
    assert Distillation(objective=NAME, teachers={"other": 1.0}).teachers
    with pytest.raises(UsageError, match="did you mean 'delta'"):
        Distillation.parse({"objective": {NAME: {"dleta": 0.5}}})
    with pytest.raises(UsageError, match="did you mean 'logit_huber'"):
        Distillation.parse({"objective": "logit_hubr"})


def test_its_value_is_the_formula(registered):
    student, teacher = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 0.0]])
    batch = DistillationBatch({"logits": student}, {"logits": teacher}, {})
    objective = registered(registered.config_class(delta=2.0), batch)
    assert objective(batch).item() == pytest.approx((0.5 + 2 * (3 - 1)) / 2)


def test_recipes_take_it(tiny_task):
    values = {"name": "tiny", "task": str(tiny_task), "model": "minilm"}
    for settings, valid in (({"delta": 0.5}, True), (0.5, True), ({"delta": 0}, False), ({"dleta": 1}, False)):
        recipe = {**values, "steps": [{"distill": {"student": "layers=1", "objective": {NAME: settings}}}]}
        assert jsonschema.Draft202012Validator(json_schema()).is_valid(recipe) == valid
        if valid:
            assert NAME in load_recipe(recipe).steps[0].config.objective


def test_the_command_line_takes_it(effitrans, tiny_teacher, tiny_task, tmp_path):  # noqa: F811
    command = ("distill", "--teacher", tiny_teacher, "--student", "layers=1", "--task", tiny_task, "--max-steps", 1)
    outcome = effitrans(
        *(*command, "--objective", NAME, "--set", f"objective.{NAME}.delta=0.5", "--output", tmp_path / "student"),
    )
    assert outcome.code == 0, outcome.err
    student = checkpoint.load_model(tmp_path / "student", None)
    assert checkpoint.history(student)[-1]["config"]["objective"] == {NAME: {"weight": 1.0, "delta": 0.5}}
    outcome = effitrans(*command, "--objective", "nonsense", "--output", tmp_path / "other")
    assert (outcome.code, NAME in outcome.err) == (2, True)
