"""A record in TensorBoard, W&B and trackio, read back from what they wrote."""

import json
import os
import subprocess
import sys

import pytest

from effitrans.errors import UsageError
from effitrans.evaluation import Record
from effitrans.evaluation.tracking import scalars, track


@pytest.fixture
def compared(record):
    return record("sst2/model", accuracy=0.9, speed=0.5, baseline=("teacher", 0.92))


def test_every_figure_has_a_path_of_its_own(compared):
    found = scalars(compared)
    assert found["quality/accuracy"] == 0.9
    assert found["quality/accuracy/low"] < 0.9 < found["quality/accuracy/high"]
    assert found["fidelity/agreement"] == 0.95
    assert found["fidelity/accuracy/delta"] == pytest.approx(-0.02)
    assert found["cost/parameters"] == 22_000_000
    assert found["cost/latency/1xdata/p50_ms"] == 4.0
    assert found["cost/latency/32x128/ratio_to_baseline"] == 0.5
    assert found["cost/throughput/32x128/items_per_s"] == pytest.approx(32000 / 276.5)
    assert all(isinstance(value, float) for value in found.values())


def test_what_was_not_measured_is_left_out(record):
    found = scalars(record(cost=None))
    assert set(found) == {"quality/accuracy", "quality/accuracy/low", "quality/accuracy/high"}
    costs = record().cost.model_copy(update={"flops": None})
    assert "cost/flops" not in scalars(record(cost=costs))


def test_none_does_nothing_and_others_are_refused(compared, monkeypatch):
    track(compared, "none")
    with pytest.raises(UsageError, match="did you mean 'wandb'"):
        track(compared, "wandbb")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install trackio.*effitrans\[tracking\]"):
        track(compared, "trackio")


def test_tensorboard_holds_the_figures_and_the_record(compared, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    track(compared, "tensorboard", tmp_path / "board")
    (run,) = (tmp_path / "board").iterdir()
    assert run.name.startswith("sst2-model-2026")
    events = EventAccumulator(str(run))
    events.Reload()
    assert set(events.Tags()["scalars"]) == set(scalars(compared))
    assert events.Scalars("quality/accuracy")[0].value == pytest.approx(0.9)
    assert events.Scalars("cost/latency/1xdata/p50_ms")[0].value == pytest.approx(4.0)
    text = events.Tensors("record/text_summary")[0].tensor_proto.string_val[0].decode()
    stored = Record.parse(json.loads(text.removeprefix("```json\n").removesuffix("\n```")))
    assert stored.quality == compared.quality


def test_the_environment_says_where_tensorboard_writes(compared, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "elsewhere"))
    track(compared, "tensorboard", tmp_path / "board")
    assert not (tmp_path / "board").exists()
    assert len(list((tmp_path / "elsewhere").rglob("events.*"))) == 1


def in_a_process(code, path, **environment):
    """Trackers read their settings when they are first imported."""
    command = [sys.executable, "-c", f"import sys\nfrom effitrans.evaluation import Record\n{code}", str(path)]
    done = subprocess.run(
        command, env=os.environ | environment, cwd=path.parent, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_wandb_keeps_the_record_offline(compared, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed")
    compared.save(tmp_path / "record.json")
    code = "from effitrans.evaluation.tracking import track\ntrack(Record.load(sys.argv[1]), 'wandb')"
    out = in_a_process(code, tmp_path / "record.json", WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    assert out == "", "standard output is for data"
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    content = log.read_bytes()
    for name in ("quality/accuracy", "cost/latency/1xdata/p50_ms", "record-sst2-model", "record.json"):
        assert name.encode() in content


def test_trackio_keeps_the_figures(compared, tmp_path):
    pytest.importorskip("trackio", reason="trackio is not installed")
    compared.save(tmp_path / "record.json")
    code = "from effitrans.evaluation.tracking import track\ntrack(Record.load(sys.argv[1]), 'trackio')"
    settings = {"TRACKIO_DIR": str(tmp_path / "trackio"), "TRACKIO_PROJECT": "mine"}
    assert in_a_process(code, tmp_path / "record.json", **settings) == "", "standard output is for data"
    read = (
        "import json\nfrom trackio.sqlite_storage import SQLiteStorage\n"
        "(run,) = SQLiteStorage.get_runs('mine')\nprint(json.dumps([run, SQLiteStorage.get_logs('mine', run)]))"
    )
    run, (row,) = json.loads(in_a_process(read, tmp_path / "record.json", **settings).splitlines()[-1])
    assert run == "sst2/model"
    assert row["quality/accuracy"] == 0.9
    assert row["cost/latency/1xdata/p50_ms"] == 4.0
    stored = [path for path in (tmp_path / "trackio" / "artifacts").rglob("*") if path.is_file()]
    assert any("sst2/model" in path.read_text(errors="replace") for path in stored)
