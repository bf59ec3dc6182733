"""Every command does its job on tiny models; data goes to stdout, talk to stderr."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import typer
from rich.emoji import Emoji
from transformers import AutoModelForSequenceClassification

from effitrans import checkpoint
from effitrans.cli import app

SENTENCE = torch.tensor([[2, 5, 6, 7, 3]])


def test_version_and_help(effitrans):
    import effitrans as package

    assert effitrans("--version").out.strip() == package.__version__
    for name in [
        "run",
        "train",
        "distill",
        "prune",
        "quantize",
        "swap",
        "linearize",
        "eval",
        "report",
        "inspect",
        "compare",
        "recipes",
    ]:
        outcome = effitrans(name, "--help")
        assert outcome.code == 0
        assert "Usage" in outcome.out
        assert name in ("recipes", "compare") or "Example" in outcome.out


def test_prune_then_quantize_then_inspect(effitrans, tiny_teacher, tiny_task, tmp_path):
    pruned, small = tmp_path / "pruned", tmp_path / "int8"
    outcome = effitrans(
        *("prune", tiny_teacher, "--task", tiny_task, "--heads", 0.5, "--ffn", 0.25, "--method", "taylor"),
        *("--recover", 1, "--output", pruned),
    )
    assert outcome.code == 0, outcome.err
    assert "accuracy" in outcome.out
    assert effitrans("quantize", pruned, "--output", small).code == 0
    model = AutoModelForSequenceClassification.from_pretrained(small)
    assert [entry["verb"] for entry in checkpoint.history(model)] == ["prune", "distill", "quantize"]
    facts = json.loads(effitrans("inspect", small, "--json").out)
    layers = facts["structure"]["layers"]
    assert [(layer["heads"], layer["ffn"], layer["bits"]) for layer in layers] == [(2, 48, 8)] * 4
    shown = effitrans("inspect", small).out
    assert "BertForSequenceClassification" in shown
    assert "prune" in shown


def test_train_base_and_distill_into_fewer_layers(effitrans, tiny_task, tmp_path):
    teacher, student = tmp_path / "teacher", tmp_path / "student"
    small = [
        part for key in ("hidden_size=32", "num_hidden_layers=4", "num_attention_heads=2") for part in ("--set", key)
    ]
    task_text = tiny_task.read_text() + "tokenizer: {method: words}\n"
    tiny_task.write_text(task_text)
    outcome = effitrans(
        *("train", "--model", "base", "--task", tiny_task, "--output", teacher, "--epochs", 2, "--batch-size", 8),
        *small,
    )
    assert outcome.code == 0, outcome.err
    outcome = effitrans(
        *("distill", "--teacher", teacher, "--student", "layers=2", "--task", tiny_task, "--output", student),
        *("--epochs", 1, "--batch-size", 8),
    )
    assert outcome.code == 0, outcome.err
    assert checkpoint.load_config(student).num_hidden_layers == 2
    record = json.loads((student / "record.json").read_text())
    assert record["fidelity"]["delta"]["accuracy"]
    assert not student.with_name("student.partial").exists()


def test_swap(effitrans, tiny_teacher, tmp_path):
    outcome = effitrans(
        "swap", tiny_teacher, "--attention", "local", "--set", "window=4", "--layers", "0-1", "--output", tmp_path / "o"
    )
    assert outcome.code == 0, outcome.err
    facts = json.loads(effitrans("inspect", tmp_path / "o", "--json").out)
    assert [layer["operator"] for layer in facts["structure"]["layers"]] == ["local", "local", "full", "full"]


def test_swap_heals_in_two_stages(effitrans, tiny_teacher, tiny_task, tmp_path):
    outcome = effitrans(
        *("swap", tiny_teacher, "--attention", "local", "--set", "window=4", "--layers", "0-1", "--heal", tiny_task),
        *("--output", tmp_path / "o"),
    )
    assert outcome.code == 0, outcome.err
    facts = json.loads(effitrans("inspect", tmp_path / "o", "--json").out)
    assert [layer["operator"] for layer in facts["structure"]["layers"]] == ["local", "local", "full", "full"]
    healed = checkpoint.history(AutoModelForSequenceClassification.from_pretrained(tmp_path / "o"))[-1]
    assert healed["verb"] == "linearize"
    assert healed["summary"]["transfer"]["steps"] > 0


def test_linearize(effitrans, tiny_teacher, tiny_task, tmp_path):
    outcome = effitrans(
        *("linearize", tiny_teacher, "--task", tiny_task, "--set", "feature_map=hedgehog", "--layers", "1-3"),
        *("--epochs", 1, "--batch-size", 8, "--output", tmp_path / "o"),
    )
    assert outcome.code == 0, outcome.err
    facts = json.loads(effitrans("inspect", tmp_path / "o", "--json").out)
    assert [layer["operator"] for layer in facts["structure"]["layers"]] == ["full", "linear", "linear", "linear"]


def test_settings_without_an_option_of_their_own(effitrans, tiny_teacher, tiny_task, tmp_path):
    steps = ("--max-steps", 1, "--batch-size", 8)
    outcome = effitrans(
        *("distill", "--teacher", tiny_teacher, "--student", "layers=2", "--task", tiny_task, *steps),
        *("--set", "alpha=0.9", "--set", "objective.feature={layer_mapping: skip, weight: 0.5}"),
        *(
            "--temperature",
            3,
            "--cache",
            "--set",
            f"cache.folder={tmp_path / 'cache'}",
            "--output",
            tmp_path / "student",
        ),
    )
    assert outcome.code == 0, outcome.err
    settings = checkpoint.history(AutoModelForSequenceClassification.from_pretrained(tmp_path / "student"))[-1][
        "config"
    ]
    assert (settings["alpha"], settings["cache"]["folder"]) == (0.9, str(tmp_path / "cache"))
    assert settings["objective"] == {
        "response": {"weight": 1.0, "temperature": 3.0},
        "feature": {"weight": 0.5, "layer_mapping": "skip"},
    }
    outcome = effitrans(
        *(
            "linearize",
            tiny_teacher,
            "--task",
            tiny_task,
            *steps,
            "--set",
            "layers=0-1",
            "--set",
            "transfer.max_steps=1",
        ),
        *("--output", tmp_path / "linear"),
    )
    assert outcome.code == 0, outcome.err
    facts = json.loads(effitrans("inspect", tmp_path / "linear", "--json").out)
    assert [layer["operator"] for layer in facts["structure"]["layers"]] == ["linear", "linear", "full", "full"]


def test_eval_prints_one_record(effitrans, tiny_teacher, tiny_task):
    outcome = effitrans("eval", tiny_teacher, "--task", tiny_task, "--json", "--no-cost", "--baseline", tiny_teacher)
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert record["schema"] == 1
    assert record["fidelity"]["agreement"]["value"] if isinstance(record["fidelity"]["agreement"], dict) else 1


def test_gate_that_is_missed_exits_with_three(effitrans, tiny_teacher, tiny_task):
    arguments = ("eval", tiny_teacher, "--task", tiny_task, "--no-cost", "--baseline", tiny_teacher, "--gate")
    assert effitrans(*arguments, "accuracy>=1.0*baseline").code == 0
    missed = effitrans(*arguments, "accuracy>=1.5*baseline")
    assert missed.code == 3
    assert "gate missed" in missed.err


def test_recipes_commands(effitrans, tmp_path):
    assert "quickstart" in effitrans("recipes", "list").out
    assert "steps:" in effitrans("recipes", "show", "quickstart").out
    assert "ok" in effitrans("recipes", "validate", "quickstart").out
    assert json.loads(effitrans("recipes", "schema").out)["title"] == "effitrans recipe"
    outcome = effitrans("run", "quickstart", "--dry-run", "--set", "teacher.epochs=1")
    assert outcome.code == 0
    assert "epochs: 1" in outcome.out


@pytest.mark.slow
def test_run_and_report(effitrans, tiny_teacher, tiny_task, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"name: recipe\ntask: {tiny_task}\nmodel: {tiny_teacher}\nsteps: [quantize: {{scheme: int8-dynamic}}]\n"
    )
    outcome = effitrans("run", recipe, "--output", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert effitrans("report", tmp_path / "run", "--output", tmp_path / "again.html").code == 0
    assert "<html" in (tmp_path / "again.html").read_text()
    assert (tmp_path / "again.md").is_file()


def _helps(command: Any) -> Iterator[str]:
    """The help texts of a command, its options and the commands in it."""
    yield from filter(None, [command.help, *(getattr(param, "help", None) for param in command.params)])
    for inner in getattr(command, "commands", {}).values():
        yield from _helps(inner)


def test_help_texts_hold_nothing_that_becomes_an_emoji():
    texts = list(_helps(typer.main.get_command(app)))
    assert len(texts) > 100
    assert [text for text in texts if Emoji.replace(text) != text] == []
