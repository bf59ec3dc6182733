"""Unstructured and N:M pruning: single weights go, and the checkpoint holds the others alone.

Magnitude (Han et al. 2015, arXiv:1506.02626): the smallest absolute values of a matrix, or of all matrices, go.
Wanda (Sun et al. 2023, arXiv:2306.11695, section 3): |W_ij| times the norm of input j over calibration tokens,
compared within each output row. N:M keeps the N most important of every M consecutive inputs of each row, without
permuting them (Mishra et al. 2021, arXiv:2104.08378, for 2:4).
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from effitrans.checkpoint.accepting import takes_models
from effitrans.errors import UsageError
from effitrans.pruning.accepting import refuse_unprunable
from effitrans.pruning.calibration import criterion_batches
from effitrans.pruning.config import Importance
from effitrans.pruning.importance.wanda import mean_squared_inputs
from effitrans.pruning.recording import logger, record
from effitrans.pruning.sparse.config import Sparsity
from effitrans.pruning.sparse.modules import SparseLinear

Importances = dict[str, Tensor]
"""Module path -> importance of its weights [out, in], float32."""


@takes_models("model")
def sparsify(
    model: PreTrainedModel, config: Sparsity, data: Any = None, *, processor: Any = None, inplace: bool = False
) -> PreTrainedModel:
    """Remove single weights from the linear layers of a model.

    Args:
        model: a floating-point model of any architecture. The task head and embeddings are left alone, as is
            every linear layer whose weights are shared.
        config: how many weights, and by which criterion.
        data: calibration data for "wanda" (labels are not needed).
        processor: as in `prune`.
        inplace: change `model` itself instead of a copy.

    Returns:
        The model, whose linear layers are `SparseLinear`; an ordinary trainable one.

    Raises:
        UsageError: integer weights, a criterion without its data, widths that no pattern of M fits, no linear
            layer, or a sparsity that removes nothing.
    """
    refuse_unprunable(model)
    _refuse_sparse(model)
    target = model if inplace else copy.deepcopy(model)
    modules = _linear_modules(target)
    if config.pattern is not None:
        _check_widths(modules, config.groups[1])
    importances = _importances(target, modules, config, data, processor)
    masks = _masks(importances, config)
    total = sum(mask.numel() for mask in masks.values())
    kept = sum(int(mask.sum()) for mask in masks.values())
    if kept in (0, total):
        raise UsageError(f"sparsity {config.sparsity} removes {'all' if not kept else 'none'} of {total} weights")
    before = target.num_parameters()
    for path, mask in masks.items():
        parent, _, name = path.rpartition(".")
        linear = modules[path]
        sparse = SparseLinear.from_dense(linear, mask).train(linear.training)
        target.get_submodule(parent).register_module(name, sparse)
    logger.info("%d of %d weights of %d layers are left", kept, total, len(masks))
    return record(target, config, before, layers=len(masks), weights=total, sparsity=1 - kept / total)


def _refuse_sparse(model: nn.Module) -> None:
    if any(isinstance(module, SparseLinear) for module in model.modules()):
        raise UsageError(
            "this model is sparse already: prune the dense model once, to the sparsity that is wanted in the end"
        )


def _linear_modules(model: PreTrainedModel) -> dict[str, nn.Linear | Conv1D]:
    """Linear layers of the model without its head, less those that share their weights."""
    base = model.base_model
    owners: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        weight = module._parameters.get("weight")
        if weight is not None:
            owners[id(weight)] = owners.get(id(weight), 0) + 1
    inside = set(base.modules())
    found = {
        path: module
        for path, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) and module in inside and owners[id(module.weight)] == 1
    }
    if not found:
        raise UsageError(f"{type(model).__name__} has no linear layers that could become sparse")
    return found  # type: ignore[return-value]


def _check_widths(modules: dict[str, nn.Linear | Conv1D], size: int) -> None:
    for path, module in modules.items():
        width = _weight(module).shape[1]
        if width % size:
            raise UsageError(
                f"{path} has {width} inputs, which is no multiple of {size}: choose another pattern, or keep widths a "
                f"multiple of {size} when neurons and heads are pruned before (multiple_of={size})"
            )


def _weight(module: nn.Linear | Conv1D) -> Tensor:
    """The weight [out, in]."""
    return (module.weight.t() if isinstance(module, Conv1D) else module.weight).detach()


def _importances(
    model: PreTrainedModel, modules: dict[str, nn.Linear | Conv1D], config: Sparsity, data: Any, processor: Any
) -> Importances:
    found = {path: _weight(module).float().abs() for path, module in modules.items()}
    if config.method == "wanda":
        settings = Importance(
            method="wanda",
            calibration_examples=config.calibration_examples,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        batches = criterion_batches(model, settings, data, processor)
        power = mean_squared_inputs(model, modules.values(), batches)
        for path, module in modules.items():
            found[path] = found[path] * power[module].sqrt().to(found[path].device)
    for path, importance in found.items():
        if not importance.isfinite().all():
            raise UsageError(f"the weights or inputs of {path} hold NaN or infinity: train the model anew")
    return found


def _masks(importances: Importances, config: Sparsity) -> dict[str, Tensor]:
    """Which weights stay."""
    if config.pattern is not None:
        keep, size = config.groups
        return {
            path: _largest(scores.reshape(-1, size), keep).reshape(scores.shape) for path, scores in importances.items()
        }
    assert config.sparsity is not None
    if config.scope == "global":
        flat = torch.cat([scores.flatten().cpu() for scores in importances.values()])[None]
        mask = _largest(flat, round((1 - config.sparsity) * flat.numel()))[0]
        parts = mask.split([scores.numel() for scores in importances.values()])
        return {
            path: part.reshape(scores.shape) for part, (path, scores) in zip(parts, importances.items(), strict=True)
        }
    by_row = config.method == "wanda"
    rows = {path: scores if by_row else scores.reshape(1, -1) for path, scores in importances.items()}
    return {
        path: _largest(scores, round((1 - config.sparsity) * scores.shape[1])).reshape(importances[path].shape)
        for path, scores in rows.items()
    }


def _largest(scores_RC: Tensor, keep: int) -> Tensor:
    """True at the `keep` largest of each row, the first of equal ones: bool [R, C]."""
    chosen = scores_RC.sort(dim=1, descending=True, stable=True).indices[:, :keep]
    return torch.zeros_like(scores_RC, dtype=torch.bool).scatter_(1, chosen, True)
