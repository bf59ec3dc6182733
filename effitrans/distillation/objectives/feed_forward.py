"""Feed-forward: what each feed-forward network of the student adds follows what the teacher's adds.

As `feature`, with the outputs of the networks, before the residual is added, in place of hidden states (hints from
within a layer: FitNets, Romero et al. 2015, section 2.2). A hidden state is the sum of all that came before it; this is
the part of one network. A layer whose network was pruned away adds nothing that could be compared. Time and memory as
`feature`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor

from effitrans.distillation.objectives.feature import Feature
from effitrans.errors import UsageError


class FeedForward(Feature):
    """See the module's text."""

    needs: ClassVar[tuple[str, ...]] = ()
    records: ClassVar[tuple[str, ...]] = ("feed_forward",)
    uncached: ClassVar[str | None] = "the outputs of feed-forward networks"
    first: ClassVar[int] = 1

    @staticmethod
    def states(outputs: Mapping[str, Any]) -> dict[str, Sequence[Tensor]]:
        for stack, found in outputs["feed_forward"].items():
            missing = [str(layer) for layer, output in enumerate(found, 1) if output is None]
            if missing:
                raise UsageError(
                    f"objective 'feed_forward' compares the networks of all layers, and layer {', '.join(missing)} of "
                    f"the {stack} has none any more: use 'feature'"
                )
        # Layers count from 1; no network stands where hidden states have the embeddings, and no pair names that place.
        return {stack: (found[0], *found) for stack, found in outputs["feed_forward"].items()}
