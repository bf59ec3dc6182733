"""From predictions to metrics with intervals, and to the comparison with a baseline's predictions."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from effitrans.errors import UsageError
from effitrans.evaluation.proportions import difference_interval, mcnemar, retained_interval, wilson
from effitrans.evaluation.record import Delta, Fidelity, Flips, Quality
from effitrans.evaluation.statistics import bootstrap, paired_bootstrap
from effitrans.tasks.metrics import describe
from effitrans.tasks.metrics.base import ExampleMetric

if TYPE_CHECKING:
    from effitrans.tasks import Predictions


def check_predictions(predictions: "Predictions", model: str) -> None:
    """Refuse predictions that no metric can be trusted with.

    Raises:
        UsageError: no examples, or scores or losses that are NaN or infinite (with the first such example).
    """
    if len(predictions) == 0:
        raise UsageError(f"{model}: the split holds no examples; choose a split (or a limit) that holds some")
    for field in ("scores", "losses", "predictions"):
        values = getattr(predictions, field)
        if values is None or np.asarray(values[:1]).dtype.kind != "f":
            continue
        numbers = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
        bad = np.asarray(~np.isfinite(numbers).all(axis=1))
        if bad.any():
            raise UsageError(
                f"{model}: {field} of {bad.sum()} of {len(bad)} examples are NaN or infinite, the first at row "
                f"{int(bad.argmax())}. The model is broken (or overflows in its dtype: try float32)."
            )


def statistics_of(built: ExampleMetric, predictions: "Predictions") -> np.ndarray:
    """Per-example statistics `[N, K]` of a metric.

    Raises:
        UsageError: the predictions lack a field that the metric reads.
    """
    inputs = [getattr(predictions, field) for field in built.inputs]
    for field, values in zip(built.inputs, inputs, strict=True):
        if values is None:
            raise UsageError(f"metric {built.name!r} needs {field}, which this kind of task does not give")
    return built.statistics(*inputs)


def score(predictions: "Predictions", metrics: Iterable[ExampleMetric], seed: int = 0) -> dict[str, Quality]:
    """Each metric with its 95 % interval.

    Raises:
        UsageError: a metric is undefined on these predictions (a correlation with a constant).
    """
    result = {}
    for built in metrics:
        statistics = statistics_of(built, predictions)
        value, n = built.point(statistics), len(statistics)
        if not np.isfinite(value):
            raise UsageError(
                f"metric {built.name!r} is undefined on these predictions ({_why_undefined(built)}): "
                "train the model further, score more examples, or choose another metric"
            )
        if built.right_or_wrong and is_proportion(statistics):
            interval = wilson(round(statistics[:, 0].sum()), n)
        else:
            interval = bootstrap(built, statistics, seed, built.resamples)
        result[built.name] = Quality(value=value, ci95=interval, n=n)
    return result


def right(predictions: "Predictions", metrics: Iterable[ExampleMetric]) -> str | None:
    """Which examples were right, as the record keeps it; null where no metric is right or wrong on each example."""
    for built in metrics:
        statistics = statistics_of(built, predictions)
        if built.right_or_wrong and is_proportion(statistics):
            return np.packbits(statistics[:, 0] > 0.5).tobytes().hex()
    return None


def is_proportion(statistics_NK: np.ndarray) -> bool:
    """Whether each example was right (1, 1) or wrong (0, 1), so that the tests for proportions apply."""
    return bool(np.isin(statistics_NK[:, 0], (0, 1)).all() and (statistics_NK[:, 1] == 1).all())


def _why_undefined(built: ExampleMetric) -> str:
    return {
        "roc_auc": "one class does not occur",
        "perplexity": "it overflows",
    }.get(built.name, "the predictions or the references are all the same")


def compare(
    predictions: "Predictions",
    baseline: "Predictions",
    metrics: Iterable[ExampleMetric],
    *,
    name: str,
    seed: int = 0,
) -> Fidelity:
    """Fidelity to a baseline that predicted the same examples in the same order.

    Raises:
        UsageError: the two were not scored on the same examples.
    """
    if len(predictions) != len(baseline) or not _same(predictions.references, baseline.references):
        raise UsageError(
            f"the baseline {name} was scored on other examples ({len(baseline)} against {len(predictions)}, "
            "or other references): use the same split, limit, labels and, for language models, tokenizer"
        )
    delta, flips = {}, None
    for built in metrics:
        model_NK, baseline_NK = statistics_of(built, predictions), statistics_of(built, baseline)
        if model_NK.shape != baseline_NK.shape:
            model_NK, baseline_NK = _joint_statistics(built, predictions, baseline)
        delta[built.name] = _delta(built, model_NK, baseline_NK, seed)
        if flips is None and built.right_or_wrong and is_proportion(model_NK):
            right, was_right = model_NK[:, 0] > 0.5, baseline_NK[:, 0] > 0.5
            flips = Flips(
                gained=tuple(np.flatnonzero(right & ~was_right).tolist()),
                lost=tuple(np.flatnonzero(~right & was_right).tolist()),
            )
    return Fidelity(
        baseline=name,
        agreement=agreement(predictions, baseline),
        kl=divergence(predictions.scores, baseline.scores),
        delta=delta,
        flips=flips,
    )


def _joint_statistics(
    built: ExampleMetric, predictions: "Predictions", baseline: "Predictions"
) -> tuple[np.ndarray, np.ndarray]:
    """Statistics over the classes that either model names, so that the columns of both mean the same."""
    inputs = [[*getattr(predictions, field), *getattr(baseline, field)] for field in built.inputs]
    model_NK, baseline_NK = np.split(built.statistics(*inputs), 2)
    return model_NK, baseline_NK


def _delta(built: ExampleMetric, model_NK: np.ndarray, baseline_NK: np.ndarray, seed: int) -> Delta:
    if built.right_or_wrong and is_proportion(model_NK):
        return counted_delta(model_NK[:, 0] > 0.5, baseline_NK[:, 0] > 0.5)
    value, was = built.point(model_NK), built.point(baseline_NK)
    higher = describe(built.name).higher_is_better

    def kept(model: Any, baseline: Any) -> Any:
        return model / baseline if higher else baseline / model

    def interval(compare: Any) -> tuple[float, float] | None:
        return paired_bootstrap(built, compare, model_NK, baseline_NK, seed, built.resamples)

    meaningful = value > 0 and was > 0
    return Delta(
        value=value - was,
        ci95=interval(np.subtract),
        retained=kept(value, was) if meaningful else None,
        retained_ci95=interval(kept) if meaningful else None,
    )


def counted_delta(right_N: np.ndarray, was_right_N: np.ndarray) -> Delta:
    """The difference of two fractions of right examples; boolean `[N]` of the model and of the baseline."""
    gained, lost = int(np.sum(right_N & ~was_right_N)), int(np.sum(~right_N & was_right_N))
    value, was = float(np.mean(right_N)), float(np.mean(was_right_N))
    meaningful = value > 0 and was > 0
    return Delta(
        value=value - was,
        ci95=difference_interval(gained, lost, len(right_N)),
        retained=value / was if meaningful else None,
        retained_ci95=retained_interval(np.sum(right_N & was_right_N), gained, lost) if meaningful else None,
        p_value=mcnemar(gained, lost),
    )


def agreement(predictions: "Predictions", baseline: "Predictions") -> float | None:
    """Fraction of equal predictions: examples, or tags for tag sequences. Null for numbers and language models."""
    first, second = predictions.predictions, baseline.predictions
    if first is None or second is None or isinstance(first[0], float | np.floating):
        return None
    if isinstance(first[0], list | tuple):
        pairs = [pair for a, b in zip(first, second, strict=True) for pair in zip(a, b, strict=True)]
        return float(np.mean([a == b for a, b in pairs])) if pairs else None
    return float(np.mean([a == b for a, b in zip(first, second, strict=True)]))


def divergence(scores: np.ndarray | None, baseline: np.ndarray | None) -> float | None:
    """Mean KL(baseline || model) in nats of the softmax of logits `[N, C]`. Null without two classes or more."""
    if scores is None or baseline is None or scores.shape != baseline.shape or scores.shape[1] < 2:
        return None
    log_p, log_q = (_log_softmax(np.asarray(logits, dtype=np.float64)) for logits in (baseline, scores))
    return float(max(0.0, (np.exp(log_p) * (log_p - log_q)).sum(1).mean()))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def _same(first: Any, second: Any) -> bool:
    if first is None or second is None:
        return first is second
    if len(first) != len(second):
        return False
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return bool(np.array_equal(np.asarray(first), np.asarray(second)))
    return list(first) == list(second)
