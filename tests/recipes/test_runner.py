"""A recipe leaves what DESIGN promises, and a killed run goes on to the same result."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from effitrans import checkpoint
from effitrans.errors import UsageError
from effitrans.recipes import run

FAST = {"batches": [1], "lengths": [8], "min_repeats": 2, "min_seconds": 0.0, "warmup": 1, "memory": False}


@pytest.fixture
def recipe(tiny_task: Path, tiny_teacher: Path) -> dict:
    """All verbs of the main job on tiny data."""
    return {
        "name": "tiny",
        "task": str(tiny_task),
        "model": str(tiny_teacher),
        "threads": 1,
        "steps": [
            {"train": {"name": "teacher", "epochs": 4, "batch_size": 8, "learning_rate": 1e-3, "save_every": 1}},
            {"distill": {"student": "layers=2", "epochs": 4, "batch_size": 8, "learning_rate": 1e-3, "save_every": 1}},
            {"prune": {"heads": 0.5, "ffn": 0.5, "method": "taylor"}},
            {"distill": {"name": "recover", "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "save_every": 1}},
            {"quantize": {"scheme": "int8-dynamic"}},
        ],
        "evaluate": {"cost": FAST, "optimize": False},
    }


STEPS = ["01-teacher", "02-distill", "03-prune", "04-recover", "05-quantize"]


def settled(folder: Path) -> list[dict]:
    """What must not depend on interruptions: quality, fidelity and sizes of every record."""
    records = [json.loads((folder / "records" / f"{step}.json").read_text()) for step in STEPS]
    sizes = ("parameters", "nonzero_parameters", "bytes_on_disk", "flops")
    return [
        {"quality": r["quality"], "fidelity": r["fidelity"], "task": r["task"], **{k: r["cost"][k] for k in sizes}}
        for r in records
    ]


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def test_run_leaves_everything_and_the_result_reloads(recipe, tmp_path):
    output = tmp_path / "out"
    outcome = run(recipe, output)
    assert [record.model for record in outcome.records] == STEPS
    for name in ("recipe.yaml", "report.html", "report.md", "model/config.json", "model/README.md"):
        assert (output / name).is_file(), name
    assert sorted(path.name for path in (output / "steps").iterdir()) == STEPS
    assert not (output / "work").exists()
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(output / "model")
    tokenizer = AutoTokenizer.from_pretrained(output / "model")
    assert [entry["verb"] for entry in checkpoint.history(model)] == [
        "train",
        "prune",
        "distill",
        "prune",
        "distill",
        "quantize",
    ]
    assert model.bert.encoder.layer[0].attention.self.num_attention_heads == 2
    step = AutoModelForSequenceClassification.from_pretrained(output / "steps" / "05-quantize")
    inputs = tokenizer(["a good film", "awful plot the bad"], return_tensors="pt", padding=True)
    assert torch.equal(model(**inputs).logits, step(**inputs).logits)
    assert outcome.records[-1].cost.bytes_on_disk < outcome.records[0].cost.bytes_on_disk

    again = run(recipe, output, resume=True)
    assert [r.model_dump() for r in again.records] == [r.model_dump() for r in outcome.records]
    with pytest.raises(UsageError, match="not empty"):
        run(recipe, output)
    recipe["steps"][1]["distill"]["epochs"] = 1
    with pytest.raises(UsageError, match="cannot resume"):
        run(recipe, output, resume=True)


def test_model_without_training_gets_an_original_to_compare_with(recipe, tmp_path):
    recipe["steps"] = [{"quantize": {"scheme": "int8-dynamic"}}]
    outcome = run(recipe, tmp_path / "out")
    assert [record.model for record in outcome.records] == ["00-original", "01-quantize"]
    assert outcome.records[1].fidelity is not None


def start(recipe: dict, output: Path, *extra: str) -> subprocess.Popen:
    file = output.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "effitrans", "run", str(file), "--output", str(output), *extra]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def kill_when(process: subprocess.Popen, condition, patience: float = 300.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_kill_in_every_kind_of_step_then_resume_gives_the_undisturbed_result(recipe, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    assert start(recipe, undisturbed).wait() == 0
    output = tmp_path / "killed"
    steps, work = output / "steps", output / "work"

    def training(step: str):
        return lambda: any((work / step).glob("checkpoints/checkpoint-*"))

    def temporary(step: str):
        return lambda: any(steps.glob(f".{step}.*"))

    moments = [training("01-teacher"), training("02-distill"), temporary("03-prune"), training("04-recover")]
    moments.append(temporary("05-quantize"))
    for number, moment in enumerate(moments):
        kill_when(start(recipe, output, *(["--resume"] if number else [])), moment)
        done = sorted(path.name for path in steps.glob("0*")) if steps.exists() else []
        assert done == STEPS[:number], f"killed in step {number + 1}"
    assert start(recipe, output, "--resume").wait() == 0
    assert settled(output) == settled(undisturbed)
    assert weights(output) == weights(undisturbed)
    assert not [path for path in steps.iterdir() if path.name.startswith(".")]


def test_overwrite_starts_again(recipe, tmp_path):
    recipe["steps"] = recipe["steps"][4:]
    output = tmp_path / "out"
    run(recipe, output)
    (output / "stray.txt").write_text("old")
    run(recipe, output, overwrite=True)
    assert not (output / "stray.txt").exists()
    shutil.rmtree(output)
