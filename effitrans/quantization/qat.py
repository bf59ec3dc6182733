"""Schemes `int8-qat` and `qat`: train with fake quantization under the floating-point model, then store integers.

`prepare` puts in fake modules, `convert` int8 or packed modules in their places; between the two the model is an
ordinary one that any loop can train. `apply`, behind `quantize`, distils the model from what it was. The converted
model computes what the fake one computes, but for the order of sums and, where an int8 activation lies between two
integers, a step.
"""

import copy
from collections.abc import Sequence
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from effitrans.errors import UsageError
from effitrans.quantization.calibrated import input_ranges
from effitrans.quantization.calibration import Batch, Examples, trace
from effitrans.quantization.config import QAT, Int8QAT, Trained, scheme_name
from effitrans.quantization.low_bit import check_groups
from effitrans.quantization.modules.fake import FakeQuantEmbedding, FakeQuantLinear
from effitrans.quantization.modules.fake_packed import FakePackedLinear
from effitrans.quantization.modules.kernels import fixed_grid
from effitrans.quantization.selection import Candidate
from effitrans.quantization.swaps import Outcome, Swap, install, take, with_tables


def apply(model: PreTrainedModel, config: Int8QAT | QAT, examples: Examples) -> Outcome:
    """Train and quantize `model` in place.

    Raises:
        UsageError: no data to train on, or what `effitrans.distill` refuses.
    """
    if examples.data is None:
        raise UsageError(
            f"{scheme_name(config)} trains the model and got no data: give a task (--task) or a data set, or use "
            f"{'rtn' if isinstance(config, QAT) else 'int8-dynamic'}, which does not train"
        )
    from effitrans.distillation import Distillation, distill

    teacher = copy.deepcopy(model)
    batches = examples.batches(model, config) if _is_static(config) else []
    outcome = prepare(model, config, batches)
    settings: dict[str, Any] = config.model_dump(include=set(Distillation.model_fields) & set(Trained.model_fields))
    distill(
        model,
        teacher,
        examples.data,
        Distillation(**settings),
        processor=examples.processor,
        teacher_processor=examples.processor,
    )
    return convert(model, outcome)


def prepare(model: PreTrainedModel, config: Int8QAT | QAT, batches: Sequence[Batch] = ()) -> Outcome:
    """Put fake-quantized modules in the places of linear layers and tables, in place.

    Args:
        model: in floating point.
        config: which modules, and how they are quantized.
        batches: calibration data, for static activations.
    """
    taken, left = take(model, config)
    grids = {}
    linears = [candidate for candidate in taken if not candidate.is_embedding]
    if isinstance(config, QAT):
        _check_packed(taken, config)
    elif config.activations == "static":
        names = {candidate.module: candidate.paths[0] for candidate in linears}
        found = trace(model, names, batches)
        ranges = input_ranges(model, found.order, batches, {}, config.observer)
        grids = {layer: fixed_grid(*limits) for layer, limits in ranges.items()}
    tied = {candidate.module for candidate in with_tables(taken)[0]}
    swaps = []
    for candidate in taken:
        layer: Any = candidate.module
        if isinstance(config, QAT) and layer not in tied and not candidate.is_embedding:
            built: nn.Module = FakePackedLinear.from_float(layer, config.bits, config.group_size)
        elif candidate.is_embedding:
            built = FakeQuantEmbedding.from_float(layer)
        else:
            # A table's rows have the step of their largest entry, so a layer that shares the table has it too.
            learned = isinstance(config, Int8QAT) and config.steps == "learned" and layer not in tied
            built = FakeQuantLinear.from_float(layer, learned=learned, input_grid=grids.get(layer))
        swaps.append(Swap(candidate, built.train(layer.training)))
    install(model, swaps)
    return Outcome(swaps, left)


def _is_static(config: Int8QAT | QAT) -> bool:
    return isinstance(config, Int8QAT) and config.activations == "static"


def _check_packed(taken: Sequence[Candidate], config: QAT) -> None:
    """Refuse groups that do not divide a layer's width, and a model of tables alone."""
    linears = with_tables(taken)[1]
    if not linears:
        raise UsageError(f"qat packs linear layers, and skip={config.skipped} leaves none: use int8-dynamic")
    check_groups({candidate.module: candidate.paths[0] for candidate in linears}, config.group_size)


def convert(model: PreTrainedModel, prepared: Outcome) -> Outcome:
    """Put int8 or packed modules in the places of the fake ones, in place; what shared a weight shares its int8 one."""
    shared: dict[int, nn.Parameter] = {}
    swaps = []
    for swap in prepared.swaps:
        fake: Any = swap.built
        if isinstance(fake, FakePackedLinear):
            # Layers that shared a weight have learned steps of their own, and so other integers.
            built: nn.Module = fake.to_packed()
        else:
            built = fake.to_int8()
            built.weight = shared.setdefault(id(fake.weight), cast(nn.Parameter, built.weight))
        swaps.append(Swap(swap.candidate, built.eval()))
    install(model, swaps)
    return Outcome(swaps, prepared.left, prepared.notes)
