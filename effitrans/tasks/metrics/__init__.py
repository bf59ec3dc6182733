"""Quality metrics: `evaluate.Metric` modules that need no network, listed in one place.

`METRICS` says for each name where its class is, which kinds of task it scores and how a report shows it.
`metric(name)` builds it; `evaluate:NAME` wraps a metric of the `evaluate` library (from the hub, or a local script)
instead.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from effitrans.errors import unknown_name
from effitrans.tasks.kinds.base import Answer

if TYPE_CHECKING:
    from effitrans.tasks.kinds.base import Kind
    from effitrans.tasks.metrics.base import ExampleMetric
    from effitrans.tasks.task import Task


@dataclass(frozen=True)
class Entry:
    """One line of the registry."""

    path: str
    """ "module:class", imported when the metric is used."""
    label: str
    """Name in tables."""
    answers: tuple[Answer, ...] = ()
    """What it scores: it is a metric of every kind of task with one of these as its `answer`."""
    percent: bool = True
    """Shown as a percentage."""
    higher_is_better: bool = True


HUB_PREFIX = "evaluate:"
"""`evaluate:NAME` is a metric of the `evaluate` library, which any kind may name; it is looked for when computed."""

_HERE = "effitrans.tasks.metrics"

METRICS: dict[str, Entry] = {
    "accuracy": Entry(f"{_HERE}.classification:Accuracy", "Accuracy", ("class", "tags")),
    "f1": Entry(f"{_HERE}.classification:F1", "F1", ("class",)),
    "f1_macro": Entry(f"{_HERE}.classification:MacroF1", "F1 (macro)", ("class", "tags")),
    "precision": Entry(f"{_HERE}.classification:Precision", "Precision", ("class",)),
    "recall": Entry(f"{_HERE}.classification:Recall", "Recall", ("class",)),
    "mcc": Entry(f"{_HERE}.classification:MatthewsCorrelation", "MCC", ("class",), percent=False),
    "roc_auc": Entry(f"{_HERE}.ranking:RocAuc", "ROC-AUC", ("class",)),
    "calibration_error": Entry(
        f"{_HERE}.classification:CalibrationError", "Calibration error", ("class",), higher_is_better=False
    ),
    "pearson": Entry(f"{_HERE}.regression:Pearson", "Pearson r", ("number",), percent=False),
    "spearman": Entry(f"{_HERE}.ranking:Spearman", "Spearman ρ", ("number",), percent=False),
    "mse": Entry(f"{_HERE}.regression:MeanSquaredError", "MSE", ("number",), percent=False, higher_is_better=False),
    "cross_entropy": Entry(
        f"{_HERE}.language:CrossEntropy",
        "Cross-entropy",
        ("class", "tags", "span", "tokens", "masked-tokens", "text"),
        percent=False,
        higher_is_better=False,
    ),
    "perplexity": Entry(
        f"{_HERE}.language:Perplexity",
        "Perplexity",
        ("tokens", "masked-tokens", "text"),
        percent=False,
        higher_is_better=False,
    ),
    "bits_per_byte": Entry(
        f"{_HERE}.language:BitsPerByte", "Bits per byte", ("tokens",), percent=False, higher_is_better=False
    ),
    "bleu": Entry(f"{_HERE}.translation:Bleu", "BLEU", ("text",), percent=False),
    "chrf": Entry(f"{_HERE}.translation:Chrf", "chrF", ("text",), percent=False),
    "rouge_l": Entry(f"{_HERE}.text:RougeL", "ROUGE-L", ("text",)),
    "exact_match": Entry(f"{_HERE}.text:ExactMatch", "Exact match", ("span", "text")),
    "f1_span": Entry(f"{_HERE}.text:SpanF1", "Span F1", ("span",)),
    "entity_f1": Entry(f"{_HERE}.tagging:EntityF1", "Entity F1", ("tags",)),
}


def metric(name: str) -> "ExampleMetric":
    """Build a metric by name.

    Raises:
        UsageError: an unknown name (with the nearest valid one), or `evaluate:NAME` that cannot be loaded.
    """
    if name.startswith(HUB_PREFIX):
        from effitrans.tasks.metrics.hub import HubMetric

        return HubMetric(name.removeprefix(HUB_PREFIX))
    if name not in METRICS:
        raise unknown_name("metric", name, METRICS)
    module, _, attribute = METRICS[name].path.partition(":")
    return getattr(import_module(module), attribute)()


def metrics_of(kind: "Kind") -> tuple[str, ...]:
    """The names of the metrics that score a kind of task."""
    return tuple(name for name, entry in METRICS.items() if kind.answer in entry.answers)


def check_metrics(task: "Task") -> "list[ExampleMetric]":
    """The metrics of a task, refused where the task's definition and labels already tell that they cannot work.

    It runs no model: call it before a first step whose result these metrics will score.

    Returns:
        The metrics, ready to score predictions.

    Raises:
        UsageError: a metric that does not fit the number of labels (with those that do), that needs what is not
            installed, or that cannot be loaded.
    """
    metrics = [metric(name) for name in task.metrics]
    for built in metrics:
        built.check_task(task)
    return metrics


def describe(name: str) -> Entry:
    """How to show a metric; one that is not built in is shown as a plain number, higher taken as better."""
    return METRICS.get(name) or Entry("", name.removeprefix(HUB_PREFIX), percent=False)
