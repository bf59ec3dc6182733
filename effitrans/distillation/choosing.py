"""Which layers `linearize` converts, chosen by the error that the operator makes in each.

The error is that of `effitrans.attention_error`: the relative L2 error of a layer's attention output on examples of the
training data, with the operator as it is initialised and softmax in all layers before. It says in which layers the
operator is near to softmax before training, not what transfer can correct. Time: a forward pass over 64
examples.
"""

import re
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from effitrans.attention import OperatorConfig
from effitrans.errors import UsageError
from effitrans.evaluation import attention_error
from effitrans.layers import parse_layers
from effitrans.training.data import Data

EXAMPLES, BATCH = 64, 8

_RULE = re.compile(r"\s*(best|error)\s*:\s*(\d+(?:\.\d+)?)\s*")


def parse_rule(text: object) -> tuple[str, float] | None:
    """A rule and its number from `best:4` or `error:0.2`; None for anything that starts otherwise.

    Raises:
        UsageError: one of these words without a number that it can take.

    >>> parse_rule("best:4"), parse_rule("0-3")
    (('best', 4.0), None)
    """
    if not isinstance(text, str) or text.strip().partition(":")[0] not in ("best", "error"):
        return None
    match = _RULE.fullmatch(text)
    if match is None or float(match[2]) == 0 or (match[1] == "best" and "." in match[2]):
        raise UsageError(
            f"layers {text!r}: expected best:N (the N layers with the smallest error) or error:E (all layers whose "
            "relative error is at most E)"
        )
    return match[1], float(match[2])


def layers_or_rule(given: Any) -> Any:
    """Layers as `effitrans.layers` writes them, a rule of `parse_rule`, or None: what `Linearization.layers` takes."""
    return given if given is None or parse_rule(given) is not None else parse_layers(given)


def chosen_layers(
    model: PreTrainedModel, data: Data, operator: OperatorConfig, rule: tuple[str, float]
) -> tuple[list[int], dict[int, float]]:
    """The self-attention layers that a rule chooses, and the measured error of every layer that takes the operator.

    Args:
        model: the model with softmax attention; left as it was.
        data: the error is measured on its training examples.
        operator: what is put in place of softmax.
        rule: as `parse_rule` gives it.

    Raises:
        UsageError: fewer layers that take the operator than asked for, or none whose error is small enough.
    """
    entries = attention_error(model, _batches(data), operator, limit=EXAMPLES)
    errors = {entry.layer: entry.error for entry in entries if entry.layer is not None and entry.error is not None}
    ranked = sorted(errors, key=lambda layer: errors[layer])
    kind, number = rule
    if kind == "best" and number > len(ranked):
        refused = next((f" ({entry.refused})" for entry in entries if entry.refused), "")
        raise UsageError(
            f"layers best:{int(number)}: {operator.name} can be put into {len(ranked)} of {len(entries)} "
            f"layers{refused}: give a smaller number"
        )
    chosen = ranked[: int(number)] if kind == "best" else [layer for layer in ranked if errors[layer] <= number]
    if not chosen:
        smallest = f"the smallest is {errors[ranked[0]]:.3g}" if ranked else "no layer takes it"
        raise UsageError(f"layers error:{number:g}: {operator.name} has a larger error in every layer ({smallest})")
    return sorted(chosen), {layer: round(errors[layer], 6) for layer in sorted(errors)}


def _batches(data: Data) -> Iterator[dict[str, Any]]:
    """The training examples in their order, as the model reads them in training."""
    if isinstance(data.train, DataLoader):
        yield from data.train
        return
    for start in range(0, len(data.train), BATCH):
        yield data.collate([data.train[i] for i in range(start, min(start + BATCH, len(data.train)))])
