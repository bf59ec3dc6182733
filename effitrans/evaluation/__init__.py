"""Evaluation: one harness that scores every model on quality, fidelity and cost, and leaves a record."""

from typing import TYPE_CHECKING

from effitrans.lazy import exports

if TYPE_CHECKING:
    from effitrans.evaluation.comparison import Comparison, compare_records
    from effitrans.evaluation.config import Cost
    from effitrans.evaluation.harness import evaluate
    from effitrans.evaluation.operator_error import LayerError, attention_error
    from effitrans.evaluation.record import Record, StepPlace

__all__, __getattr__ = exports(
    __name__,
    {
        ".comparison": ("Comparison", "compare_records"),
        ".config": ("Cost",),
        ".harness": ("evaluate",),
        ".operator_error": ("LayerError", "attention_error"),
        ".record": ("Record", "StepPlace"),
    },
)
