"""Gradients of the loss with respect to gates on the units: what the criteria by gradient share.

Every unit u gets a gate g_u = 1 that multiplies its contribution to the residual stream (the context of a head
before the output projection, the activation of a neuron before the down projection). Gates are one for each
example, so their gradients are those of each example's own loss. Weights get no gradients.

Cost: one forward and one backward pass per batch, and the memory of the activations.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.checkpoint.accepting import evaluation_mode
from effitrans.errors import UsageError
from effitrans.pruning.sites import PruningSite


def mean_over_examples(
    model: PreTrainedModel,
    sites: Sequence[PruningSite],
    batches: Iterable[Mapping[str, Tensor]],
    measure: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """The mean over examples of `measure(dL/dg)`.

    Args:
        model: must return a loss when the batch holds labels. Runs in eval mode, is left as it was.
        sites: where the gates are.
        batches: model inputs with labels; the first dimension is the example.
        measure: [B, U] gradients -> [B, U], such as the absolute value.

    Returns:
        One float32 tensor [units] per site, on the CPU.

    Raises:
        UsageError: there are no batches, or the model returns no loss for them.
    """
    totals = [torch.zeros(site.units) for site in sites]
    examples = 0
    with frozen_in_eval_mode(model), torch.enable_grad():
        for batch in batches:
            with ExitStack() as hooks:
                gates = [hooks.enter_context(_gated(site)) for site in sites]
                loss = loss_of(model, batch)
            examples += (size := len(next(iter(batch.values()))))
            used = [(total, gate[0]) for total, gate in zip(totals, gates, strict=True) if gate]
            if not used:
                continue
            gradients = torch.autograd.grad(loss, [gate_BU for _, gate_BU in used], allow_unused=True)
            for (total, _), gradient_BU in zip(used, gradients, strict=True):
                if gradient_BU is not None:
                    # The loss is a mean over the batch: times its size is the gradient of an example's own loss.
                    total += measure(gradient_BU * size).sum(0).cpu()
    require_examples(examples)
    return [total / examples for total in totals]


def loss_of(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    """The model's loss for a batch.

    Raises:
        UsageError: it returns none.
    """
    loss = getattr(model(**{name: value.to(model.device) for name, value in batch.items()}), "loss", None)
    if loss is None:
        raise UsageError(
            f"{type(model).__name__} returned no loss for a calibration batch with {', '.join(batch)}: "
            "importance by gradient needs a model with a task head and batches with labels"
        )
    return loss


def require_examples(examples: int) -> None:
    """Refuse calibration data without examples."""
    if not examples:
        raise UsageError("there are no calibration examples: give data with at least one labelled example")


@contextmanager
def _gated(site: PruningSite) -> Iterator[list[Tensor]]:
    """Multiply the contributions of the site's units by gates of 1; yields a list that will hold the gates [B, U]."""
    gates: list[Tensor] = []

    def gate(inputs: Tensor) -> Tensor:
        if not gates:
            gates.append(torch.ones(len(inputs), site.units, device=inputs.device, requires_grad=True))
        return gates[0]

    with site.gated(gate):
        yield gates


@contextmanager
def frozen_in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients for weights, for the duration."""
    trainable = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    try:
        with evaluation_mode(model):
            yield
    finally:
        for parameter, needs in trainable.items():
            parameter.requires_grad_(needs)
