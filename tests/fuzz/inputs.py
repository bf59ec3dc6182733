"""Inputs of the command line, each drawn with a seed: valid ones with one to three damages.

A kind writes what it needs into an empty folder, beside `assets`, and returns the arguments of the command.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from effitrans.cli import app
from effitrans.yaml_files import dump_yaml
from tests.fuzz.mutations import ODD, damage_file, damaged, damaged_text

SHORT = {"max_steps": 1, "batch_size": 8}
STEPS: tuple[dict[str, Any], ...] = (
    {"train": SHORT},
    {"distill": {"student": "layers=1", "objective": "response,feature", **SHORT}},
    {"distill": {"objective": {"response": {"temperature": 2.0}, "relation": 0.5}, **SHORT}},
    {"prune": {"heads": 0.5, "ffn": 0.5, "method": "taylor"}},
    {"prune": {"keep_layers": 2}},
    {"sparsify": {"pattern": "2:4", "method": "wanda"}},
    {"search": {"parameters": 0.8, "evaluations": 4, "population": 2, "widths": 2, "scored_examples": 8}},
    {"learn_gates": {"heads": 0.5, **SHORT}},
    {"prune_vocabulary": {"corpus": "task/task.yaml"}},
    {"swap": {"attention": "local", "window": 4, "layers": "0-1"}},
    {"swap": {"attention": "by_length", "long": {"attention": "performer"}, "crossover": 64}},
    {"linearize": {"attention": "linear", "transfer_steps": 1, **SHORT}},
    {"quantize": {"scheme": "int8-dynamic"}},
    {"quantize": {"scheme": "gptq", "bits": 4, "group_size": 16, "calibration_examples": 8}},
)
TASK = {
    "name": "tiny",
    "kind": "sequence-classification",
    "data": {split: f"task/{split}.jsonl" for split in ("train", "validation", "test")},
    "inputs": "sentence",
    "target": "label",
    "labels": [0, 1],
    "metrics": ["accuracy", "f1"],
    "max_length": 16,
    "version": 1,
}
MODELS = ("teacher", "int8", "pruned", "local")
BASES = {
    "train": ["--model", "../assets/teacher", "--task", "task/task.yaml", "-o", "out", "--max-steps", "1"],
    "distill": [
        *("--teacher", "../assets/teacher", "--student", "layers=1", "--task", "task/task.yaml", "-o", "out"),
        *("--max-steps", "1"),
    ],
    "prune": ["../assets/teacher", "--task", "task/task.yaml", "-o", "out", "--heads", "0.5"],
    "quantize": ["../assets/teacher", "-o", "out"],
    "swap": ["../assets/teacher", "--attention", "local", "-o", "out"],
    "linearize": ["../assets/teacher", "--task", "task/task.yaml", "-o", "out", "--max-steps", "1"],
    "eval": ["../assets/teacher", "--task", "task/task.yaml", "--no-cost"],
    "export": ["../assets/teacher", "-o", "out"],
    "report": ["../assets/teacher"],
    "inspect": ["../assets/int8"],
    "compare models": ["../assets/teacher", "../assets/pruned", "-t", "task/task.yaml", "-o", "out", "--no-cost"],
    "compare attention": ["-t", "task/task.yaml", "-o", "out", "--max-steps", "1", "--seeds", "1", "--lengths", "none"],
    "run": ["recipe.yaml", "-o", "out"],
    "recipes validate": ["recipe.yaml"],
}
"""Command -> arguments that are right."""


def recipe(draw: random.Random, folder: Path) -> list[str]:
    """A recipe of one to three steps."""
    values = {
        "name": "tiny",
        "task": draw.choice(("task/task.yaml", {**TASK, "name": "inline"})),
        "model": draw.choice(("../assets/teacher", {"base": {"hidden_size": 16, "num_attention_heads": 2}})),
        "seed": 1,
        "threads": 1,
        "steps": draw.sample(STEPS, draw.choice((1, 2, 3))),
        "evaluate": {"split": "test", "limit": 8, "cost": None},
    }
    _write_yaml(values, draw, folder / "recipe.yaml")
    return ["run", "recipe.yaml", *draw.choice((["--dry-run"], ["--dry-run"], ["--output", "out"]))]


def task(draw: random.Random, folder: Path) -> list[str]:
    """The file of a task."""
    _write_yaml(TASK, draw, folder / "mine.yaml")
    train = ["train", "--model", "base:hidden_size=16,num_attention_heads=2", "--max-steps", "1", "--output", "out"]
    return [*draw.choice((["eval", "../assets/teacher", "--no-cost"], train)), "--task", "mine.yaml"]


def model_folder(draw: random.Random, folder: Path) -> list[str]:
    """A model folder with a file that is damaged, or a value in one of its JSON files."""
    model = folder / "model"
    shutil.copytree(folder.parent / "assets" / draw.choice(MODELS), model)
    file = draw.choice(sorted(model.iterdir()))
    if file.suffix == ".json" and draw.random() < 0.6:
        file.write_text(json.dumps(damaged(json.loads(file.read_text()), draw)))
    else:
        damage_file(file, draw)
    return _use(draw)


def manifest(draw: random.Random, folder: Path) -> list[str]:
    """A model folder whose manifest is damaged."""
    model = folder / "model"
    shutil.copytree(folder.parent / "assets" / draw.choice(("int8", "local")), model)
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = damaged(config["quantization_config"], draw)
    (model / "config.json").write_text(json.dumps(config))
    return _use(draw)


def options(draw: random.Random, folder: Path) -> list[str]:
    """A command that is right, with one to three options more, whose values may be odd."""
    _write_yaml({"name": "tiny", "task": "task/task.yaml", "model": "../assets/teacher", "steps": [{"train": SHORT}],
                 "evaluate": {"cost": None}}, None, folder / "recipe.yaml")  # fmt: skip
    name = draw.choice(list(BASES))
    command: Any = typer.main.get_command(app)
    for part in name.split():
        command = command.commands[part]
    # What is overwritten must not be drawn.
    params = command.get_params(command.make_context(name, [], resilient_parsing=True))
    known = [p for p in params if p.param_type_name == "option" and p.name not in ("output", "overwrite", "help")]
    arguments = list(BASES[name])
    for option in draw.sample(known, min(len(known), draw.choice((1, 1, 2, 3)))):
        arguments.append(draw.choice([*option.opts, *option.secondary_opts]))
        if not option.is_flag:
            arguments.append(_value(draw))
    if draw.random() < 0.2:
        arguments[draw.randrange(len(arguments))] = _value(draw)
    return [*name.split(), *arguments]


KINDS: dict[str, Callable[[random.Random, Path], list[str]]] = {
    "recipe": recipe,
    "task": task,
    "model-folder": model_folder,
    "manifest": manifest,
    "options": options,
}


def _write_yaml(values: Any, draw: random.Random | None, path: Path) -> None:
    if draw is None:
        path.write_text(dump_yaml(values))
    elif draw.random() < 0.2:
        path.write_text(damaged_text(dump_yaml(values), draw), errors="surrogatepass")
    else:
        path.write_text(dump_yaml(damaged(values, draw)))


def _use(draw: random.Random) -> list[str]:
    """A command that reads the folder `model`."""
    return draw.choice(
        (
            ["inspect", "model"],
            ["inspect", "model", "--json"],
            ["eval", "model", "--task", "task/task.yaml", "--no-cost"],
            ["quantize", "model", "--output", "out"],
            ["swap", "model", "--attention", "local", "--output", "out"],
            ["prune", "model", "--task", "task/task.yaml", "--ffn", "0.5", "--output", "out"],
        )
    )


def _value(draw: random.Random) -> str:
    """A value for an option: a plausible one, or an odd one as text."""
    if draw.random() < 0.4:
        return draw.choice(
            ("1", "0.5", "2", "local", "layers=1", "wanda", "a=1", "window=4", "gptq", "full,local", "8")
        )
    odd = draw.choice([value for value in ODD if "\x00" not in str(value)])
    return odd if isinstance(odd, str) else str(odd)
