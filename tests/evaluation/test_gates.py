"""Gates on a record."""

import pytest

from effitrans.errors import GateMissed, UsageError
from effitrans.evaluation.gates import parse_gate, require


@pytest.fixture
def student(record):
    return record("student", accuracy=0.88, speed=0.25, bytes_on_disk=18_000_000, baseline=("teacher", 0.89))


@pytest.mark.parametrize(
    "gate",
    [
        "accuracy>=0.88",
        "accuracy >= 0.98 * baseline",
        "latency<=0.25*baseline",
        "latency@1x128<=6",
        "latency@1xdata<=0.3*baseline",
        "size<=0.2*baseline",
        "size<=2e7",
        "parameters<=1*baseline",
        "memory<=1e9",
        "flops>=1",
    ],
)
def test_gates_that_are_met(student, gate):
    require(student, [gate])


@pytest.mark.parametrize(
    ("gate", "figure"),
    [
        ("accuracy>=0.99*baseline", "0.9888"),
        ("latency<=0.2*baseline", "0.25"),
        ("latency@32x128<=100", "138.2"),
        ("size<=0.1*baseline", "0.2"),
    ],
)
def test_a_missed_gate_says_what_the_figure_is(student, gate, figure):
    with pytest.raises(GateMissed, match=r"student misses 1 of 2 gates") as error:
        require(student, ["accuracy>=0", gate])
    assert f"{gate} (it is {figure})" in str(error.value)


@pytest.mark.parametrize(
    "gate", ["accuracy>0.9", "accuracy", ">=3", "accuracy>=x", "accuracy@1x8>=0.5", "latency@x<=3"]
)
def test_what_is_no_gate_is_refused(gate):
    with pytest.raises(UsageError, match="cannot be read"):
        parse_gate(gate)


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("acuracy>=0.9", "did you mean 'accuracy'"),
        ("latency@2x128<=3", "latency at this shape"),
        ("flops<=0.5*baseline", "the baseline's flops"),
    ],
)
def test_a_gate_on_something_that_was_not_measured_is_refused(student, gate, message):
    with pytest.raises(UsageError, match=message):
        require(student, [gate])


def test_a_relative_gate_needs_a_baseline(record):
    with pytest.raises(UsageError, match="baseline"):
        require(record("alone"), ["accuracy>=0.9*baseline"])
