"""`torchrun -m effitrans run`: two processes work, one of them writes."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from effitrans import checkpoint
from effitrans.checkpoint import load_model
from effitrans.evaluation import Record

pytestmark = pytest.mark.slow


def test_a_recipe_runs_under_torchrun(tiny_task: Path, tiny_teacher: Path, tmp_path: Path):
    recipe = {
        "name": "two-processes",
        "task": str(tiny_task),
        "model": str(tiny_teacher),
        "steps": [
            {"train": {"name": "teacher", "epochs": 1, "batch_size": 4, "learning_rate": 1e-3}},
            {"distill": {"student": "layers=2", "epochs": 1, "batch_size": 4}},
            {"prune": {"heads": 0.5, "ffn": 0.5, "method": "magnitude"}},
            {"quantize": {"scheme": "int8-dynamic"}},
        ],
        "evaluate": {
            "cost": {"batches": [1], "lengths": ["data"], "min_repeats": 2, "min_seconds": 0},
            "optimize": False,
        },
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "effitrans", "run", str(tmp_path / "recipe.yaml"), "--output", str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    records = [Record.load(path) for path in sorted((tmp_path / "run" / "records").iterdir())]
    assert [record.model for record in records] == ["01-teacher", "02-distill", "03-prune", "04-quantize"]
    model = load_model(tmp_path / "run" / "model", "AutoModelForSequenceClassification")
    assert model.config.num_hidden_layers == 2
    history = checkpoint.history(model)
    assert [entry["verb"] for entry in history] == ["train", "distill", "prune", "quantize"]
    # 48 examples in steps of two processes with four each.
    assert history[0]["summary"]["steps"] == 6
    assert (tmp_path / "run" / "report.html").is_file()
    assert ended.stdout.count("tiny-sentiment · test") == 1
