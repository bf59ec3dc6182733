"""What the attention layers of a model are given, kept during a forward pass for the objectives that compare it.

Queries, keys and values are taken where they pass through effitrans's attention function, after rotary positions
and before keys are repeated for grouped queries. So no model is asked for attention probabilities, and a layer's
attention may be computed by any operator.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from effitrans.architectures import adapter
from effitrans.attention.interface import NAME, Call
from effitrans.errors import UsageError

Calls = dict[str, Sequence[Call | None]]
"""Stack ("encoder", "decoder") -> what the self-attention of each of its layers was given; None where it has none."""


def last_attending(calls: Sequence[Call | None]) -> int:
    """The index of the last layer that has self-attention."""
    return max(index for index, call in enumerate(calls) if call is not None)


class AttentionRecorder:
    """Keeps the last call of every self-attention layer; to be passed to `effitrans.attention.interface.recording`.

    Args:
        model: of a family with an adapter.

    Raises:
        UsageError: the family has no adapter.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        architecture = adapter(model)
        self._depths = {stack.name: len(stack.modules) for stack in architecture.stacks}
        self._places = {
            site.module: (layer.stack, layer.index)
            for layer in architecture.layers
            for site in layer.attention
            if not site.is_cross
        }
        self._calls: dict[tuple[str, int], Call] = {}

    def __call__(self, module: nn.Module, call: Call) -> None:
        if module in self._places:
            self._calls[self._places[module]] = call

    def take(self) -> Calls:
        """The calls since the last time, by stack and layer; they are forgotten."""
        calls, self._calls = self._calls, {}
        return {stack: tuple(calls.get((stack, i)) for i in range(depth)) for stack, depth in self._depths.items()}


@contextmanager
def through_interface(model: PreTrainedModel) -> Iterator[None]:
    """The model with effitrans's attention function in all layers; its own is given back at the end.

    Raises:
        UsageError: the architecture does not let its attention be replaced.
    """
    before = model.config._attn_implementation
    if before == NAME:
        yield
        return
    if not model._can_set_attn_implementation():
        raise UsageError(
            f"{type(model).__name__} computes attention by itself, so its queries and keys cannot be read: "
            "use objectives 'response' and 'feature'"
        )
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before or "eager")
