"""From the outputs of a batch to what is stored of each of its rows, and back.

Padding is not stored. Logits over a vocabulary may be cut to the k largest: stored are these, and one value for all
the others, such that they share what probability is left evenly. At the temperature of the run the k tokens keep
their probabilities; no token has none, as it would if the others were left out.

Shapes: B rows, L positions, C width or classes, K largest.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from effitrans.distillation.objectives.base import attended
from effitrans.distillation.recording import last_attending

PREDICTIONS = ("logits", "start_logits", "end_logits")
STATES = ("hidden_states", "encoder_hidden_states", "decoder_hidden_states")
ATTENTION = "attention"
INDICES = "/indices"


@dataclass
class StoredCall:
    """What is stored of the call of an attention layer, under the names of `effitrans.attention.interface.Call`."""

    query_BHLD: Tensor | None = None
    key_BGSD: Tensor | None = None
    value_BGSD: Tensor | None = None


@dataclass(frozen=True)
class Layout:
    """How an output lies in a batch."""

    over: Literal["row", "tokens", "decoder", "positions"]
    """[B, ...]; [B, L, ...] with L the tokens read, or those written; or L positions without padding."""
    classes: int | None = None
    """Classes of logits that are cut to the largest; None: stored whole."""


def flatten(outputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The outputs that objectives compare, by name; hidden states as `hidden_states.0` and so on."""
    flat = {name: outputs[name] for name in PREDICTIONS if outputs.get(name) is not None}
    for name in STATES:
        flat |= {f"{name}.{i}": state for i, state in enumerate(outputs.get(name) or ())}
    if not any(name in flat for name in PREDICTIONS):
        flat["last_hidden_state"] = outputs["last_hidden_state"]
    return flat


def flatten_heads(calls: Mapping[str, Sequence[Any]], layer: int | None, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Queries, keys or values of one layer of each stack, each [B, L, heads, D], by name.

    Args:
        calls: stack -> what its attention layers were given.
        layer: counted from 1; None: the last that has attention.
        kinds: fields of a call.
    """
    flat = {}
    for stack, layers in calls.items():
        index = last_attending(layers) if layer is None else layer - 1
        for kind in kinds:
            flat[f"{ATTENTION}.{stack}.{index}.{kind}"] = getattr(layers[index], kind).transpose(1, 2)
    return flat


def unflatten(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `flatten` and of `flatten_heads`: `attention` maps stacks to layers, and these to `StoredCall`."""
    outputs: dict[str, Any] = {}
    for name, tensor in flat.items():
        stem, dot, rest = name.partition(".")
        if stem == ATTENTION:
            stack, layer, kind = rest.split(".")
            layers = outputs.setdefault(ATTENTION, {}).setdefault(stack, {})
            setattr(layers.setdefault(int(layer), StoredCall()), kind, tensor.transpose(1, 2))
        else:
            outputs[stem] = (*outputs.get(stem, ()), tensor) if dot else tensor
    return outputs


def layouts_of(
    flat: Mapping[str, Tensor], inputs: Mapping[str, Tensor], is_encoder_decoder: bool, top_k: int | None
) -> dict[str, Layout]:
    """How each output lies in a batch, found from one batch."""
    layouts = {}
    for name, tensor in flat.items():
        classes = tensor.shape[-1] if name == "logits" and top_k is not None and tensor.shape[-1] > top_k else None
        if name == "logits" and tensor.dim() == 2:
            layouts[name] = Layout("row", classes)
            continue
        written = is_encoder_decoder and (name == "logits" or name.startswith(("decoder", f"{ATTENTION}.decoder")))
        mask = inputs.get("decoder_attention_mask", inputs.get("labels")) if written else inputs.get("attention_mask")
        is_padded = mask is not None and mask.shape == tensor.shape[:2]
        layouts[name] = Layout(("decoder" if written else "tokens") if is_padded else "positions", classes)
    return layouts


def pack(
    flat: Mapping[str, Tensor],
    inputs: Mapping[str, Tensor],
    layouts: Mapping[str, Layout],
    top_k: int | None,
    temperature: float = 1.0,
) -> list[dict[str, Tensor]]:
    """What is stored of each row: its tensors without padding, [C] or [positions, ...], and int32 token ids."""
    rows: list[dict[str, Tensor]] = []
    for name, tensor in flat.items():
        layout = layouts[name]
        parts = {name: tensor.float()}
        if layout.classes is not None:
            assert top_k is not None
            parts[name], parts[name + INDICES] = largest(tensor.float(), top_k, temperature)
        for part, values in parts.items():
            kept: Sequence[Tensor] = list(values)
            if layout.over in ("tokens", "decoder"):
                mask = attended(inputs, values, layout.over == "decoder")
                kept = [row[positions] for row, positions in zip(values, mask, strict=True)]
            rows = rows or [{} for _ in kept]
            for row, value in zip(rows, kept, strict=True):
                row[part] = value
    return rows


def unpack(
    rows: Sequence[Mapping[str, Tensor]], inputs: Mapping[str, Tensor], layouts: Mapping[str, Layout]
) -> dict[str, Tensor]:
    """The outputs of a batch, float32, from what was stored of its rows; 0 at padding."""
    flat = {}
    for name, layout in layouts.items():
        if layout.over in ("row", "positions"):
            values, indices = (
                torch.stack([row[part] for row in rows]) if part in rows[0] else None for part in (name, name + INDICES)
            )
            assert values is not None
            flat[name] = _whole(values.float(), indices, layout)
            continue
        values = torch.cat([row[name] for row in rows]).float()
        indices = torch.cat([row[name + INDICES] for row in rows]) if layout.classes is not None else None
        values = _whole(values, indices, layout)
        source = inputs.get("attention_mask") if layout.over == "tokens" else inputs.get("decoder_attention_mask")
        mask = (source if source is not None else inputs["labels"].ne(-100)).bool().cpu()
        flat[name] = values.new_zeros(*mask.shape, *values.shape[1:])
        flat[name][mask] = values
    return flat


def _whole(values: Tensor, indices: Tensor | None, layout: Layout) -> Tensor:
    return values if indices is None else from_largest(values, indices, layout.classes or 0)


def largest(logits: Tensor, k: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The k largest logits and, in place k, that of each other class; and the classes of the k, int32.

    Softened by the temperature, the others are together as probable as they were.

    >>> values, classes = largest(torch.tensor([0.7, 0.1, 0.1, 0.1]).log(), 1)
    >>> from_largest(values, classes, 4).exp().mul(10).round().tolist()
    [7.0, 1.0, 1.0, 1.0]
    """
    top, classes = logits.topk(k, dim=-1)
    others = (logits.scatter(-1, classes, -torch.inf) / temperature).logsumexp(-1, keepdim=True)
    rest = temperature * (others - math.log(logits.shape[-1] - k))
    return torch.cat([top, rest], -1), classes.to(torch.int32)


def from_largest(values: Tensor, classes: Tensor, total: int) -> Tensor:
    """Logits over `total` classes from the two results of `largest`."""
    return values[..., -1:].expand(*values.shape[:-1], total).scatter(-1, classes.long(), values[..., :-1])
