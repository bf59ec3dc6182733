"""Centred kernel alignment of hidden states: which layers of two models say the same.

Linear CKA (Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019) of N examples,

    CKA(X, Y) = HSIC(X X', Y Y') / sqrt(HSIC(X X', X X') HSIC(Y Y', Y Y')),

with the unbiased estimate of HSIC (Song et al., "Feature Selection via Dependence Maximization", 2012, equation 5),
because the usual one tends to 1 when there are more features than examples. It needs neither equal widths nor equal
tokens: an example's state is the mean over its tokens that are not padding.

Shapes: N examples, D features, M and B layers of the model and of its baseline, embeddings included.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from effitrans.evaluation import shapes
from effitrans.evaluation.latency import EvaluatedModel

if TYPE_CHECKING:
    from effitrans.tasks import Task

EXAMPLES = 256
"""Examples that are compared; the split's first ones, evenly spread over it."""


def layer_similarity(
    model: EvaluatedModel, baseline: EvaluatedModel, task: "Task", split: str, limit: int | None = None
) -> tuple[tuple[float, ...], ...] | None:
    """CKA of every layer of a model with every layer of its baseline, `[M, B]`; the first is the embeddings' output.

    None where a model gives no hidden states, or there are fewer than 8 examples.
    """
    examples = shapes.SplitBatches(task, split, limit)
    kernels = []
    for subject in (model, baseline):
        states = _states(subject, examples)
        if states is None or len(states[0]) < 8:
            return None
        kernels.append([_centred_kernel(state_ND) for state_ND in states])
    norms = [[_alignment(kernel, kernel) for kernel in side] for side in kernels]
    return tuple(
        tuple(_ratio(_alignment(ours, theirs), a * b) for theirs, b in zip(kernels[1], norms[1], strict=True))
        for ours, a in zip(kernels[0], norms[0], strict=True)
    )


def linear_cka(first_ND: np.ndarray, second_NE: np.ndarray) -> float:
    """Linear CKA of two sets of features of the same N >= 4 examples; 1 up to rotation and scale, about 0 by chance.

    >>> x = np.random.default_rng(0).normal(size=(50, 4))
    >>> round(linear_cka(x, 3 * x[:, ::-1]), 6)
    1.0
    """
    ours, theirs = _centred_kernel(first_ND), _centred_kernel(second_NE)
    return _ratio(_alignment(ours, theirs), _alignment(ours, ours) * _alignment(theirs, theirs))


def _ratio(cross: float, product: float) -> float:
    return cross / product**0.5 if product > 0 else 0.0


def _centred_kernel(states_ND: np.ndarray) -> np.ndarray:
    """The kernel `X X'` without its diagonal; features are centred first, which changes no HSIC, for the numerics."""
    states_ND = states_ND - states_ND.mean(0)
    kernel_NN = states_ND @ states_ND.T
    np.fill_diagonal(kernel_NN, 0.0)
    return kernel_NN


def _alignment(first_NN: np.ndarray, second_NN: np.ndarray) -> float:
    """Unbiased HSIC of two kernels whose diagonals are zero."""
    n = len(first_NN)
    trace = float((first_NN * second_NN).sum())
    means = float(first_NN.sum()) * float(second_NN.sum()) / ((n - 1) * (n - 2))
    cross = 2.0 / (n - 2) * float(first_NN.sum(0) @ second_NN.sum(0))
    return (trace + means - cross) / (n * (n - 3))


@torch.inference_mode()
def _states(subject: EvaluatedModel, examples: shapes.SplitBatches) -> list[np.ndarray] | None:
    """Mean hidden states of the examples, float64 `[N, D]` a layer."""
    collected: list[list[np.ndarray]] = []
    for batch in examples.batches(subject.model, subject.processor, 8, EXAMPLES // 8):
        output = subject.model(**batch, output_hidden_states=True)
        states = getattr(output, "hidden_states", None) or getattr(output, "encoder_hidden_states", None)
        if not states:
            return None
        pooled = [_pooled(state, batch.get("attention_mask")) for state in states]
        collected = collected or [[] for _ in pooled]
        for layer, state in zip(collected, pooled, strict=True):
            layer.append(state)
    return [np.concatenate(layer) for layer in collected] or None


def _pooled(state_BLD: Tensor, mask_BL: Tensor | None) -> np.ndarray:
    if state_BLD.dim() != 3 or mask_BL is None or mask_BL.shape != state_BLD.shape[:2]:
        return state_BLD.double().flatten(1, -2).mean(1).cpu().numpy()
    weights = mask_BL.double()[..., None]
    return ((state_BLD.double() * weights).sum(1) / weights.sum(1).clamp(min=1)).cpu().numpy()
