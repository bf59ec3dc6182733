"""What happens inside the layers of a model, recorded during a forward pass for the objectives that compare it.

Queries, keys and values are taken where they pass through effitrans's attention function, after rotary positions
and before keys are repeated for grouped queries. So no model is asked for attention probabilities, and a layer's
attention may be computed by any operator. Outputs of feed-forward networks are taken where they leave the last linear
module, before the residual is added.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.architectures import adapter
from effitrans.attention.interface import NAME, Call, recording
from effitrans.errors import UsageError

Calls = dict[str, Sequence[Call | None]]
"""Stack ("encoder", "decoder") -> what the self-attention of each of its layers was given; None where it has none."""


def last_attending(calls: Sequence[Call | None]) -> int:
    """The index of the last layer that has self-attention."""
    return max(index for index, call in enumerate(calls) if call is not None)


class LayerRecorder(ABC):
    """Keeps one thing of every layer while it is `running`.

    Args:
        model: of a family with an adapter.

    Raises:
        UsageError: the family has no adapter.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._architecture = adapter(model)
        self._depths = {stack.name: len(stack.modules) for stack in self._architecture.stacks}
        self._kept: dict[tuple[str, int], Any] = {}

    @abstractmethod
    def running(self) -> AbstractContextManager[None]:
        """Forward passes in here are kept, the last one wins."""

    def take(self) -> dict[str, Sequence[Any]]:
        """What was kept since the last time, by stack and layer, None where there was nothing; it is forgotten."""
        kept, self._kept = self._kept, {}
        return {stack: tuple(kept.get((stack, i)) for i in range(depth)) for stack, depth in self._depths.items()}


class AttentionRecorder(LayerRecorder):
    """Keeps the last call of every self-attention layer."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._places = {
            site.module: (layer.stack, layer.index)
            for layer in self._architecture.layers
            for site in layer.attention
            if not site.is_cross
        }

    def running(self) -> AbstractContextManager[None]:
        return recording(self._keep)

    def _keep(self, module: nn.Module, call: Call) -> None:
        if module in self._places:
            self._kept[self._places[module]] = call


class FeedForwardRecorder(LayerRecorder):
    """Keeps the last output [B, L, C] of every feed-forward network."""

    @contextmanager
    def running(self) -> Iterator[None]:
        handles = [
            layer.feed_forward.output.register_forward_hook(partial(self._keep, (layer.stack, layer.index)))
            for layer in self._architecture.layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, place: tuple[str, int], module: nn.Module, args: Any, output: Tensor) -> None:
        if output.dim():  # a network that was removed gives a scalar
            self._kept[place] = output


RECORDERS: dict[str, type[LayerRecorder]] = {
    "attention": AttentionRecorder,
    "feed_forward": FeedForwardRecorder,
}
"""Name under which outputs hold what was kept -> what keeps it."""


class Recorder:
    """Keeps whatever the objectives ask for, often nothing.

    Args:
        model: of a family with an adapter, if anything is asked for.
        names: of `RECORDERS`.
    """

    def __init__(self, model: PreTrainedModel, names: Sequence[str] = ()) -> None:
        self._parts = {name: RECORDERS[name](model) for name in names}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Forward passes in here are kept, the last one wins."""
        with ExitStack() as stack:
            for part in self._parts.values():
                stack.enter_context(part.running())
            yield

    def take(self) -> dict[str, Any]:
        """What was kept since the last time, by name; it is forgotten."""
        return {name: part.take() for name, part in self._parts.items()}


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
