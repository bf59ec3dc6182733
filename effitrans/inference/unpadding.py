"""Unpadding: between its first and its last layer an encoder sees the tokens of a batch without the padding.

Texts of different lengths fill a batch [B, L] partly with padding, sentences in the order of their data set often by
half, and projections, FFNs and norms spend as much time on it as on text. They treat each token by itself, so they can
as well be given the T real tokens as one sequence [1, T, C]. Attention alone asks whose tokens are whose: there
queries, keys and values are laid out as [B, L] again, padded and masked as before, and the output is gathered
(Zhai et al. 2023, "ByteTransformer", section III.D).

Shapes: B batch, L length, T real tokens, H heads, D head dimension, C hidden size.
"""

import copy
import inspect
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from effitrans.architectures import adapter
from effitrans.tasks.padding import IGNORED

NAME = "effitrans_unpadded"
"""The attention implementation, as transformers calls it."""

FAMILIES = ("bert", "distilbert", "effitrans", "roberta")
"""Model types that hand the arguments of their forward pass on to their layers and to attention."""

_PADDED = ("output_hidden_states", "output_attentions", "start_positions", "end_positions")
"""Arguments with which padding has a part in the result; a span is found by a softmax over all places."""

WORTHWHILE = 0.9
"""Share of real tokens in a batch up to which the padding is left out."""


class Tokens(NamedTuple):
    """Where the real tokens of a batch are. Travels through the model's forward pass as the argument `tokens`."""

    places_T: Tensor
    """Their places among the B x L."""
    numbers_BL: Tensor
    """The number of each among the T; at padding that of the token before."""
    real_BL: Tensor
    """False at padding."""

    def gathered(self, x: Tensor) -> Tensor:
        """[B, L, ...] -> [1, T, ...]."""
        return x.flatten(0, 1)[self.places_T].unsqueeze(0)

    def laid_out(self, x: Tensor) -> Tensor:
        """[1, T, ...] -> [B, L, ...], whatever is at padding."""
        return x[0][self.numbers_BL]


def without_padding(model: PreTrainedModel) -> PreTrainedModel | None:
    """A model with the same weights that takes `tokens` in its forward pass; None where layers depend on padding.

    The result shares parameters and buffers with `model`, which is not changed. Its hidden states are 0 at padding.
    """
    if not _is_suited(model):
        return None
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, shared)
    twin.set_attn_implementation(NAME)
    layers = adapter(twin).stacks[0].modules
    for layer in layers:
        layer.register_forward_pre_hook(_gather_positions, with_kwargs=True)
    layers[0].register_forward_pre_hook(_gather, with_kwargs=True)
    layers[-1].register_forward_hook(_lay_out, with_kwargs=True)
    return twin


def _is_suited(model: PreTrainedModel) -> bool:
    """An encoder alone, with exact attention, without biases on the scores, that gives its last hidden states only."""
    config = model.config
    if config.model_type not in FAMILIES or gives_more(config) or getattr(config, "chunk_size_feed_forward", 0):
        return False
    if config._attn_implementation != "sdpa" or getattr(config, "position", None) in ("alibi", "relative"):
        return False
    if all(one.kind is not one.VAR_KEYWORD for one in inspect.signature(model.forward).parameters.values()):
        return False
    stacks = adapter(model).stacks
    return [stack.name for stack in stacks] == ["encoder"] and len(stacks[0].modules) > 0


def gives_more(config: PreTrainedConfig) -> bool:
    """Whether a model gives all hidden states or attentions by its config."""
    return bool(config.output_hidden_states or config.output_attentions)


def tokens_of(arguments: dict[str, Any]) -> Tokens | None:
    """Where the real tokens are in a call with these named arguments.

    None where little is gained, more is asked for than the last hidden states, a loss takes padding into account, or a
    text does not begin with its first token: a head that reads the first place would miss what layers make of padding.
    """
    mask = arguments.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2 or len(mask) < 2 or mask.device.type != "cpu":
        return None
    if any(arguments.get(name) is not None and arguments[name] is not False for name in _PADDED):
        return None
    real_BL = mask != 0
    labels = arguments.get("labels")
    if isinstance(labels, Tensor) and labels.shape == mask.shape and (labels[~real_BL] != IGNORED).any():
        return None
    places_T = real_BL.flatten().nonzero().squeeze(1)
    if len(places_T) > WORTHWHILE * mask.numel() or not real_BL[:, 0].all():
        return None
    numbers_BL = (real_BL.flatten().cumsum(0) - 1).view_as(mask)
    return Tokens(places_T, numbers_BL, real_BL)


def _gather(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tokens: Tokens | None = kwargs.get("tokens")
    return None if tokens is None else ((tokens.gathered(args[0]), *args[1:]), kwargs)


def _gather_positions(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The angles of rotary positions, [B or 1, 1, L, D/2] -> [1, 1, T, D/2]."""
    tokens: Tokens | None = kwargs.get("tokens")
    angles = kwargs.get("position_embeddings")
    if tokens is None or angles is None:
        return None
    batch = len(tokens.real_BL)
    gathered = (tokens.gathered(x.squeeze(1).expand(batch, -1, -1)).unsqueeze(1) for x in angles)
    return args, {**kwargs, "position_embeddings": tuple(gathered)}


def _lay_out(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    tokens: Tokens | None = kwargs.get("tokens")
    if tokens is None:
        return None
    hidden = output[0] if isinstance(output, tuple) else output
    laid_out = tokens.laid_out(hidden) * tokens.real_BL.unsqueeze(-1)
    return (laid_out, *output[1:]) if isinstance(output, tuple) else laid_out


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tokens: Tokens | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function registered with `AttentionInterface`: SDPA on queries, keys and values [1, H, T, D].

    Args:
        attention_mask: [B, 1, L, L] of the padded batch.
        tokens: where the tokens belong. None: the batch is padded, and so are query, key and value, [B, H, L, D].

    Returns:
        [1, T, H, D], or [B, L, H, D].
    """
    if tokens is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    query, key, value = (tokens.laid_out(x.transpose(1, 2)).transpose(1, 2) for x in (query, key, value))
    output_BLHD, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return tokens.gathered(output_BLHD), None


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
