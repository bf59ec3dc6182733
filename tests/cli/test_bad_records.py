"""Records and models that cannot be put side by side: one message, exit code 2, no page."""

import json

import pytest

from tests.evaluation.records import make_record


def test_a_record_of_another_schema_is_refused_by_version(effitrans, tmp_path):
    values = json.loads(make_record().to_json()) | {"schema": 7}
    (tmp_path / "later.json").write_text(json.dumps(values))
    outcome = effitrans("report", tmp_path / "later.json", "--output", tmp_path / "report.html")
    assert outcome.code == 2
    assert "later.json: record of schema 7" in outcome.err
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("field", "other", "named"),
    [("name", "stsb", "'sst2'"), ("fingerprint", "ff" * 32, "data (fingerprint)"), ("split", "validation", "'test'")],
)
def test_records_of_different_tasks_are_refused_with_the_difference(effitrans, tmp_path, field, other, named):
    first = make_record("a")
    first.save(tmp_path / "records" / "a.json")
    second = make_record("b", task=first.task.model_copy(update={field: other}))
    second.save(tmp_path / "records" / "b.json")
    outcome = effitrans("report", tmp_path, "--output", tmp_path / "report.html")
    assert outcome.code == 2
    assert named in outcome.err
    assert other in outcome.err.replace("\n", "")
    assert not (tmp_path / "report.html").exists()


def test_a_missing_baseline_is_called_one(effitrans, tiny_teacher, tiny_task, tmp_path):
    outcome = effitrans("eval", tiny_teacher, "--task", tiny_task, "--baseline", tmp_path / "gone", "--no-cost")
    assert outcome.code == 2
    assert "baseline: " in outcome.err
    assert "gone" in outcome.err
    assert outcome.out == ""


def test_a_gate_on_a_missing_baseline_says_what_it_needs(effitrans, tiny_teacher, tiny_task):
    outcome = effitrans("eval", tiny_teacher, "--task", tiny_task, "--no-cost", "--gate", "accuracy>=0.9*baseline")
    assert outcome.code == 2
    assert "needs a baseline" in outcome.err
