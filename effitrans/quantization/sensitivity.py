"""Keep a quantized model within a bound by leaving the layers that cost most in floating point.

Each layer alone is quantized and the model run on the calibration data: the relative error of the output is the layer's
sensitivity. The most sensitive layers are then left as they were, as few as bisection finds to suffice: under
`max_error` for the same relative error of the whole model, under `max_drop` for the task's first metric on its
validation split. The bound is checked on the model that is handed over, whether or not more layers help monotonically.

Cost: a run over the calibration data for each layer, and `1 + log2(layers)` measurements of the bound.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.errors import UsageError
from effitrans.quantization.calibration import Batch, CalibrationData, main_output, relative_error
from effitrans.quantization.replacement import QuantizationResult, Replacement, install
from effitrans.quantization.scheme import Scheme

logger = logging.getLogger(__name__)

Group = list[Replacement]
"""Replacements that share a weight and go together."""


def enforce(
    model: PreTrainedModel, result: QuantizationResult, config: Scheme, data: CalibrationData
) -> QuantizationResult:
    """Bring the quantized `model` within the bound of `config`, in place.

    Returns:
        The result with the replacements that remain, and notes: the bound, what was measured, and the layers that are
        kept in floating point with the error that each alone would cost.

    Raises:
        UsageError: the bound holds for no quantized layer at all, or `max_drop` has no task to be measured on.
            The model is then in floating point.
    """
    groups = _groups(result.replacements)
    _restore(model, result.replacements)
    try:
        batches = data.batches(model, config)
        reference = _outputs(model, batches)
        loss, bound = _measure(model, config, data, batches, reference)
        errors = {}
        for group in groups:
            install(model, group)
            errors[id(group)] = relative_error(_outputs(model, batches), reference)
            _restore(model, group)
        groups.sort(key=lambda group: -errors[id(group)])
        left = _fewest(model, groups, loss, bound)
    except BaseException:
        _restore(model, result.replacements)
        raise
    stay = {id(replacement) for group in groups[:left] for replacement in group}
    kept = [replacement for replacement in result.replacements if id(replacement) not in stay]
    table = [
        {"layer": replacement.target.paths[0], "error": errors[id(group)]}
        for group in groups[:left]
        for replacement in group
    ]
    for row in table:
        logger.info("kept in floating point: %s (alone it moves the output by %.3g)", row["layer"], row["error"])
    name = "max_error" if config.max_error is not None else "max_drop"
    notes = {"bound": {name: bound, "measured": loss()}, "left_for_the_bound": table}
    return replace(
        result,
        replacements=kept,
        left=[*result.left, *(str(row["layer"]) for row in table)],
        notes={**result.notes, **notes},
    )


def _groups(replacements: Sequence[Replacement]) -> list[Group]:
    found: dict[int, Group] = {}
    for replacement in replacements:
        found.setdefault(id(replacement.target.module.weight), []).append(replacement)
    return list(found.values())


def _restore(model: PreTrainedModel, replacements: Sequence[Replacement]) -> None:
    for replacement in replacements:
        replacement.undo(model)


def _fewest(model: PreTrainedModel, groups: Sequence[Group], loss: Callable[[], float], bound: float) -> int:
    """How many of the groups, from the front, are kept in floating point; the others are installed at the end."""

    def lose(left: int) -> float:
        for place, group in enumerate(groups):
            (_restore if place < left else install)(model, group)
        return loss()

    if lose(0) <= bound:
        return 0
    too_few, enough = 0, len(groups)
    closest = float("inf")
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        measured = lose(middle)
        closest = min(closest, measured)
        if measured <= bound:
            enough = middle
        else:
            too_few = middle
    if enough == len(groups):
        raise UsageError(
            f"the bound {bound:g} leaves nothing to quantize: even with the fewest layers tried the loss is "
            f"{closest:.3g}. Raise the bound, use more bits or another scheme, or train with quantization (int8-qat)"
        )
    lose(enough)
    return enough


def _measure(
    model: PreTrainedModel, config: Scheme, data: CalibrationData, batches: Sequence[Batch], reference: list[Tensor]
) -> tuple[Callable[[], float], float]:
    """(what tells how much the model as it is has lost, the bound)."""
    if config.max_drop is None:
        assert config.max_error is not None
        return lambda: relative_error(_outputs(model, batches), reference), config.max_error
    score, higher_is_better = _scorer(model, data)
    before = score()
    sign = 1 if higher_is_better else -1
    return lambda: 100 * sign * (before - score()), config.max_drop


def _scorer(model: PreTrainedModel, data: CalibrationData) -> tuple[Callable[[], float], bool]:
    """(the task's first metric of the model as it is, on the validation split; whether higher is better)."""
    from effitrans.tasks import load_task, names_task, predict
    from effitrans.tasks.metrics import describe, metric

    if not names_task(data.data):
        raise UsageError(
            "max_drop bounds the task's metric and the calibration data are no task: pass a task, or bound the error "
            "of the output with max_error"
        )
    task = load_task(data.data)
    if "validation" not in task.splits:
        raise UsageError(
            f"max_drop is measured on a validation split, and task {task.name!r} has {', '.join(task.splits)}: add "
            "one, or bound the error of the output with max_error"
        )
    built = metric(task.metrics[0])
    processor = data.processor

    def score() -> float:
        predictions = predict(model, task, "validation", processor)
        return built.point(built.statistics(*(getattr(predictions, name) for name in built.inputs)))

    return score, describe(task.metrics[0]).higher_is_better


@torch.no_grad()
def _outputs(model: PreTrainedModel, batches: Sequence[Batch]) -> list[Tensor]:
    """The main output of each batch, padding left out where it has a place for each token."""
    outputs: list[Any] = []
    for batch in batches:
        output = main_output(model(**batch))
        mask = batch.get("attention_mask")
        if mask is not None and not model.config.is_encoder_decoder and output.shape[: mask.dim()] == mask.shape:
            output = output[mask.bool()]
        outputs.append(output)
    return outputs
