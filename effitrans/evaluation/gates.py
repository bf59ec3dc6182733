"""Gates: conditions that a record must meet, for use in continuous integration.

`accuracy>=0.99*baseline`, `latency<=0.5*baseline`, `latency@1x128<=20`, `size<=25000000`. On the left a metric of the
record, or `latency` (p50 in milliseconds), `size` (bytes on disk), `parameters`, `memory` (peak bytes), `flops`; on the
right a number, or a multiple of the baseline's figure. `@BATCHxLENGTH` names the shape of a latency.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from effitrans.errors import GateMissed, UsageError, unknown_name
from effitrans.evaluation.comparison import Shape, headline_shape, latency_at
from effitrans.evaluation.record import Record

COSTS = {"size": "bytes_on_disk", "parameters": "parameters", "memory": "peak_memory_bytes", "flops": "flops"}
"""Name in a gate -> field of the record's cost."""

_PATTERN = re.compile(
    r"\s*(?P<name>[\w:/.-]+?)(?:@(?P<batch>\d+)x(?P<length>\d+|data))?\s*(?P<operator>>=|<=)\s*"
    r"(?P<limit>\d+(?:\.\d*)?(?:e-?\d+)?)(?P<relative>\s*\*\s*baseline)?\s*"
)


@dataclass(frozen=True)
class Gate:
    """One condition."""

    text: str
    name: str
    at_least: bool
    limit: float
    relative: bool
    shape: Shape | None

    def figure(self, record: Record) -> float:
        """The record's figure on the scale of the limit: itself, or as a multiple of the baseline's.

        Raises:
            UsageError: the record has no such figure.
        """
        if self.name in record.quality:
            return self._quality(record)
        if self.name == "latency":
            return self._latency(record)
        if self.name not in COSTS:
            raise unknown_name(f"figure in gate {self.text!r}:", self.name, [*record.quality, "latency", *COSTS])
        return self._cost(record)

    def met(self, record: Record) -> bool:
        """Whether the record meets the condition."""
        figure = self.figure(record)
        return figure >= self.limit if self.at_least else figure <= self.limit

    def _quality(self, record: Record) -> float:
        value = record.quality[self.name].value
        if not self.relative:
            return value
        delta = record.fidelity.delta.get(self.name) if record.fidelity else None
        if delta is None or value == delta.value:
            raise self.missing("a baseline to compare with")
        return value / (value - delta.value)

    def _latency(self, record: Record) -> float:
        shape = self.shape or headline_shape([record])
        row = latency_at(record, shape) if shape else None
        figure = (row.ratio_to_baseline if self.relative else row.p50_ms) if row else None
        if figure is None:
            raise self.missing(f"a latency{' ratio' if self.relative else ''} at this shape")
        return figure

    def _cost(self, record: Record) -> float:
        figure = getattr(record.cost, COSTS[self.name]) if record.cost else None
        if figure is None:
            raise self.missing(f"a figure for {self.name}")
        if not self.relative:
            return float(figure)
        base = getattr(record.fidelity, f"baseline_{COSTS[self.name]}", None) if record.fidelity else None
        if not base:
            raise self.missing(f"the baseline's {self.name}")
        return figure / base

    def missing(self, what: str) -> UsageError:
        return UsageError(
            f"gate {self.text!r} needs {what}, which the record does not hold: evaluate with a baseline and with costs"
        )


def parse_gate(text: str) -> Gate:
    """Read a gate.

    >>> parse_gate("accuracy>=0.99*baseline").limit
    0.99

    Raises:
        UsageError: the text is no gate.
    """
    match = _PATTERN.fullmatch(text)
    if match is None or (match["batch"] and match["name"] != "latency"):
        raise UsageError(
            f"gate {text!r} cannot be read: expected NAME>=NUMBER or NAME<=NUMBER*baseline, such as "
            "accuracy>=0.99*baseline or latency@1xdata<=0.5*baseline"
        )
    length = match["length"]
    shape = (int(match["batch"]), length if length == "data" else int(length)) if match["batch"] else None
    return Gate(text, match["name"], match["operator"] == ">=", float(match["limit"]), bool(match["relative"]), shape)


def check_gates(gates: Sequence[str], metrics: Iterable[str], *, compared: bool, measured: bool) -> None:
    """Refuse gates that no record will be able to answer, before anything is scored.

    Args:
        gates: the conditions.
        metrics: the metrics of the task.
        compared: whether there is a baseline.
        measured: whether costs are measured.

    Raises:
        UsageError: a gate that cannot be read, on an unknown figure, or on one that will be missing.
    """
    quality = list(metrics)
    for gate in map(parse_gate, gates):
        if gate.name not in (*quality, "latency", *COSTS):
            raise unknown_name(f"figure in gate {gate.text!r}:", gate.name, [*quality, "latency", *COSTS])
        if (gate.relative and not compared) or (gate.name not in quality and not measured):
            raise gate.missing("a baseline to compare with" if measured or gate.name in quality else "costs")


def require(record: Record, gates: Sequence[str]) -> None:
    """Check every gate.

    Raises:
        UsageError: a gate that cannot be read, or about something the record does not hold.
        GateMissed: at least one condition is not met; the message lists those with the figures.
    """
    parsed = [parse_gate(text) for text in gates]
    missed = [f"{gate.text} (it is {gate.figure(record):.4g})" for gate in parsed if not gate.met(record)]
    if missed:
        raise GateMissed(f"{record.model} misses {len(missed)} of {len(parsed)} gates: {'; '.join(missed)}")
