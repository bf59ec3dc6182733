"""The record on disk: exact round trip, and refusal of what is no record of this schema."""

import json

import pytest

from effitrans.errors import UsageError
from effitrans.evaluation import Record


def test_a_saved_record_loads_back_equal(record, tmp_path):
    saved = record(baseline=("teacher", 0.9))
    saved.save(tmp_path / "record.json")
    assert Record.load(tmp_path / "record.json") == saved


def test_the_record_has_the_published_fields(record):
    values = json.loads(record(baseline=("teacher", 0.9)).to_json())
    assert values["schema"] == 1
    assert {"schema", "model", "task", "quality", "fidelity", "cost", "provenance", "notes"} <= set(values)
    assert {"name", "version", "split", "fingerprint"} <= set(values["task"])
    assert {"value", "ci95", "n"} <= set(values["quality"]["accuracy"])
    assert {"baseline", "agreement", "kl", "delta"} <= set(values["fidelity"])
    assert {"value", "ci95"} <= set(values["fidelity"]["delta"]["accuracy"])
    assert {
        "parameters",
        "nonzero_parameters",
        "bytes_on_disk",
        "bits_per_weight",
        "flops",
        "peak_memory_bytes",
        "latency",
        "throughput",
        "load_s",
    } <= set(values["cost"])
    row = {"batch", "length", "p50_ms", "p90_ms", "p99_ms", "cv", "runs", "ratio_to_baseline", "ratio_ci95"}
    assert row <= set(values["cost"]["latency"][0])
    assert {"batch", "length", "items_per_s", "tokens_per_s"} == set(values["cost"]["throughput"][0])
    assert set(values["provenance"]) == {
        "effitrans", "torch", "transformers", "python", "device", "threads", "dtype", "seed",
        "recipe_sha256", "git_commit", "dirty", "created",
    }  # fmt: skip


def test_plain_pydantic_dumps_use_the_published_names_too(record):
    assert "schema" in json.loads(record().model_dump_json())


def test_samples_can_be_left_out(record):
    full = record(baseline=("teacher", 0.9))
    brief = json.loads(full.to_json(samples=False))
    row = brief["cost"]["latency"][0]
    assert "samples_ms" not in row
    assert "samples_ms" not in row["others"]["baseline"]
    assert Record.parse(brief).cost.latency[0].p50_ms == full.cost.latency[0].p50_ms


def test_raw_samples_take_one_line_a_round(record):
    lines = record().to_json().splitlines()
    assert sum(line.strip() in ("[8.0]", "[8.0],") for line in lines) == 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema": 2}', "schema 2.*reads schema 1"),
        ('{"model": "x"}', "not a record"),
        ("[1]", "not a record"),
        ("{", "not valid JSON"),
        ('{"schema": 1, "model": 3}', "model"),
    ],
    ids=["newer-schema", "no-schema", "a-list", "broken-json", "wrong-type"],
)
def test_what_is_no_record_is_refused_with_the_file_name(text, message, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        Record.load(path)
    assert "broken.json" in str(error.value)


def test_an_unknown_field_is_refused_by_name(record):
    values = json.loads(record().to_json())
    values["cost"]["joules"] = 3
    with pytest.raises(UsageError, match=r"cost\.joules"):
        Record.parse(values)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        Record.load(tmp_path / "absent.json")
