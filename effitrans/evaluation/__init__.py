"""Evaluation: one harness that scores every model on quality, fidelity and cost, and leaves a record."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from effitrans.evaluation.comparison import Comparison, compare_records
    from effitrans.evaluation.config import Cost
    from effitrans.evaluation.harness import evaluate
    from effitrans.evaluation.metrics import METRICS, metric
    from effitrans.evaluation.operator_error import LayerError, attention_error
    from effitrans.evaluation.record import Record, Step

# Imported on first use: reading records must not wait for torch and transformers.
_MODULE_OF = {
    "METRICS": "metrics",
    "Comparison": "comparison",
    "Cost": "config",
    "LayerError": "operator_error",
    "Record": "record",
    "Step": "record",
    "attention_error": "operator_error",
    "compare_records": "comparison",
    "evaluate": "harness",
    "metric": "metrics",
}

__all__ = [
    "METRICS",
    "Comparison",
    "Cost",
    "LayerError",
    "Record",
    "Step",
    "attention_error",
    "compare_records",
    "evaluate",
    "metric",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
