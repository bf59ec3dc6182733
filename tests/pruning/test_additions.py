"""A unit and a criterion are added to a copy of the package: a file and an entry in a registry each, nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import effitrans

UNIT = """
from effitrans.config import Config
from effitrans.pruning.units.base import Ratio
from effitrans.pruning.units.neurons import Neurons


class WideSettings(Config):
    wide: Ratio = 0.0
    \"\"\"Fraction of the neurons of the first FFN to remove.\"\"\"


class Wide(Neurons):
    setting = "wide"
    help = "Fraction of the neurons of the first FFN removed."
    settings = WideSettings

    def sites(self, layers, config=None):
        return super().sites(layers[:1])

    def sizes(self, architecture):
        return {architecture.layers[0].feed_forward.width}
"""
CRITERION = """
import torch


def score(model, sites, batches=()):
    return [torch.arange(site.units, dtype=torch.float32) for site in sites]
"""
LOOK = """
import json, sys
import typer
from transformers import BertConfig, BertModel
from effitrans import make_student
from effitrans.cli import app
from effitrans.pruning import IMPORTANCE, UNITS, Pruning, measure_importance, prune
from effitrans.pruning.config import Importance
from effitrans.recipes.steps import VERBS

model = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                             intermediate_size=16))
pruned = prune(model, Pruning(wide=0.5, method="first"))
layers = pruned.encoder.layer
command = typer.main.get_command(app).commands["prune"]
context = command.make_context("prune", [], resilient_parsing=True)
print(json.dumps({
    "registries": ["wide" in UNITS, "first" in IMPORTANCE],
    "widths": [layer.intermediate.dense.out_features for layer in layers],
    "kept": layers[0].output.dense.weight.equal(model.encoder.layer[0].output.dense.weight[:, 8:]),
    "student": make_student(model, "wide=8").encoder.layer[0].intermediate.dense.out_features,
    "options": [name for option in command.get_params(context) for name in option.opts],
    "help": command.get_help(context),
    "schema": list(VERBS["prune"].schema()["properties"]),
    "parsed": VERBS["prune"].parse({"wide": 0.25, "method": "first"}, "step 1").wide,
    "scored": len(measure_importance(model, Importance(method="first")).values) > 0,
}))
"""


def insert(file: Path, before: str, line: str) -> None:
    text = file.read_text()
    assert text.count(before) == 1
    file.write_text(text.replace(before, line + before))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict:
    root = tmp_path_factory.mktemp("copy")
    package = root / "effitrans"
    shutil.copytree(Path(effitrans.__file__).parent, package)
    units, criteria = package / "pruning/units", package / "pruning/importance"
    (units / "wide.py").write_text(UNIT)
    insert(units / "__init__.py", "UNITS: dict", "from effitrans.pruning.units.wide import Wide\n\n")
    insert(units / "__init__.py", '    "hidden": Hidden(),', '    "wide": Wide(),\n')
    (criteria / "first.py").write_text(CRITERION)
    insert(criteria / "__init__.py", "IMPORTANCE: dict", "from effitrans.pruning.importance import first\n\n")
    insert(criteria / "__init__.py", '    "random": ', '    "first": Criterion(first.score, needs_data=False),\n')
    (root / "look.py").write_text(LOOK)
    done = subprocess.run(
        [sys.executable, "look.py"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "300"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_they_work(seen: dict) -> None:
    assert seen["registries"] == [True, True]
    assert seen["widths"] == [8, 16]
    assert seen["kept"], "the new criterion ranks the first neurons lowest"
    assert seen["student"] == 8
    assert seen["scored"]


def test_the_command_line_has_them(seen: dict) -> None:
    assert "--wide" in seen["options"]


def test_recipes_have_them(seen: dict) -> None:
    assert "wide" in seen["schema"]
    assert seen["parsed"] == 0.25
