"""Which records may stand side by side, and who is on the Pareto front."""

import pytest

from effitrans.errors import UsageError
from effitrans.evaluation.comparison import (
    compare_records,
    headline_shape,
    headline_shapes,
    latency_at,
    pareto_front,
    shapes_of,
)


def test_records_of_one_task_compare(run_of_records):
    comparison = compare_records(run_of_records)
    assert comparison.metric == "accuracy"
    assert comparison.baseline is run_of_records[0]
    assert comparison.notes == ()


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("name", "stsb", "task name.*'sst2'.*'stsb'"),
        ("version", 2, "task version.*1.*2"),
        ("split", "validation", "task split.*'test'.*'validation'"),
        ("fingerprint", "ff" * 32, "fingerprint.*ab12.*ffff"),
    ],
)
def test_records_of_different_data_are_refused_with_the_difference(record, field, value, named):
    first = record("a")
    other = record("b", task=first.task.model_copy(update={field: value}))
    with pytest.raises(UsageError, match=named):
        compare_records([first, other])


def test_records_without_a_common_metric_are_refused(record):
    first = record("a")
    other = record("b", quality={"f1": first.quality["accuracy"]})
    with pytest.raises(UsageError, match=r"share no metric.*a: accuracy.*b: f1"):
        compare_records([first, other])


def test_no_records_are_refused():
    with pytest.raises(UsageError, match="at least one"):
        compare_records([])


def test_different_machines_are_noted(record):
    first = record("a")
    other = record("b", provenance=first.provenance.model_copy(update={"device": "Other CPU", "threads": 4}))
    notes = " ".join(compare_records([first, other]).notes)
    assert "Other CPU" in notes
    assert "thread counts (2, 4)" in notes


def test_pareto_front_keeps_what_no_other_point_beats():
    points = [(3, 0.9), (1, 0.7), (2, 0.9), (2.5, 0.85), (1, 0.6)]
    assert pareto_front(points) == [1, 2]
    assert pareto_front([(x, -y) for x, y in points], higher_is_better=False) == [1, 2]


def test_shapes_are_ordered_with_real_data_first(run_of_records):
    assert shapes_of(run_of_records) == [(1, "data"), (32, "data"), (1, 128), (32, 128)]
    assert latency_at(run_of_records[0], (32, 128)).p50_ms == 553.0
    assert latency_at(run_of_records[0], (8, 128)) is None


def test_the_headline_shapes_are_those_that_every_record_has(record):
    whole = record("a")
    assert headline_shapes([whole]) == [(1, "data"), (32, "data")]
    assert headline_shape([whole]) == (32, "data")
    rows = whole.cost.latency
    failed = rows[1].model_copy(update={"p50_ms": None, "error": "out of memory"})
    part = record("b", cost=whole.cost.model_copy(update={"latency": (rows[0], failed, *rows[2:])}))
    assert headline_shapes([whole, part]) == [(1, "data")]
    assert headline_shapes([whole, part, record("c", cost=None)]) == [(1, "data")]
    fixed = record("d", cost=whole.cost.model_copy(update={"latency": rows[2:]}))
    assert headline_shapes([whole, fixed]) == [(1, 128), (32, 128)]
    assert headline_shape([record("e", cost=None)]) is None
