"""Which models can be pruned at all."""

from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.checkpoint.record import is_frozen
from effitrans.errors import UsageError


def refuse_unprunable(model: PreTrainedModel) -> None:
    """Raise for a model whose weights are integers, or shared in a way that its architecture does not know.

    Raises:
        UsageError: with the order in which the passes go, or the weights that are shared.
    """
    if getattr(model, "is_quantized", False) or is_frozen(model):
        raise UsageError(
            f"this {type(model).__name__} holds integer weights, which cannot be pruned. The order is: prune the "
            "floating-point model, recover it by training or distillation, quantize last."
        )
    checkpoint.refuse_unknown_sharing(model)
