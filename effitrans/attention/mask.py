"""What a query may see, without an L x L tensor.

transformers asks a mask function for a mask before the layers run, and passes the result through the model
unread. Ours is this small object: the padding mask as the caller gave it, whether attention is causal, the
model's own sliding window, and where queries and keys stand. It grows with S, never with L x S; only an
operator that needs the dense form asks for it, and all such layers of a forward pass share it.

Shapes: B batch, T all positions since the start of the sequence, L queries, S keys of this layer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
)

from effitrans.errors import UsageError

MaskFunction = Callable[..., Any]


@dataclass(eq=False)
class AttentionMask:
    """Which of S keys each of L queries may attend to.

    Query i stands at position `q_offset + i`, key j at `kv_offset + j`. All conditions hold at once.

    >>> mask = AttentionMask(batch_size=1, q_length=3, kv_length=3, causal=True)
    >>> mask.dense()[0, 0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """

    batch_size: int
    q_length: int
    kv_length: int
    q_offset: int = 0
    kv_offset: int = 0
    causal: bool = False
    """A query sees keys at its own position and before."""
    padding_BT: Tensor | None = None
    """bool [B, T] over positions from 0, True where there is a token, padding beyond T. None: no padding."""
    window: int | None = None
    """The model's own sliding window: only keys at a distance below it are seen."""
    pattern: MaskFunction | None = None
    """A condition of transformers that has no field here (packed sequences, chunks): `(b, h, q, k) -> bool`."""
    use_vmap: bool = False
    """How `pattern` must be evaluated."""
    allowed: Tensor | None = None
    """bool [B or 1, H or 1, L or 1, S]: a dense mask that the caller of the model made."""
    device: torch.device | None = None
    _dense: list[Tensor | None] = field(default_factory=list, repr=False)

    @property
    def offset(self) -> int:
        """Index among the keys of the key at the position of the first query."""
        return self.q_offset - self.kv_offset

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the tensor that it stands for; transformers looks at it where a mask is passed on from `generate`."""
        return self.batch_size, 1, self.q_length, self.kv_length

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def contiguous(self) -> "AttentionMask":
        """Itself: what `generate` asks of a mask."""
        return self

    @property
    def is_structured(self) -> bool:
        """Whether the fields other than `pattern` and `allowed` say everything."""
        return self.pattern is None and self.allowed is None

    @property
    def is_plain_causal(self) -> bool:
        """Whether this is a square causal mask and nothing else."""
        square = self.q_length == self.kv_length and self.offset == 0
        return self.causal and square and self.is_structured and self.padding_BT is None and self.window is None

    def for_lengths(self, q_length: int, kv_length: int) -> "AttentionMask":
        """The mask for a layer that holds another number of keys than the layer the mask was made for.

        Caches may differ from layer to layer. Under causal attention the last key always stands where the last
        query stands; otherwise the first key stands where it stood.
        """
        if q_length == self.q_length and kv_length == self.kv_length:
            return self
        offset = self.q_offset + q_length - kv_length if self.causal else self.kv_offset
        return replace(self, q_length=q_length, kv_length=kv_length, kv_offset=offset, _dense=[])

    def key_padding(self) -> Tensor | None:
        """bool [B, S], True where the key is a token; None if all are."""
        if self.padding_BT is None:
            return None
        end = self.kv_offset + self.kv_length
        missing = end - self.padding_BT.shape[1]
        padding_BT = torch.nn.functional.pad(self.padding_BT, (0, missing)) if missing > 0 else self.padding_BT
        return padding_BT[:, self.kv_offset : end]

    def dense(self) -> Tensor | None:
        """bool [B or 1, H or 1, L, S], True where the query sees the key; None if every query sees every key."""
        if not self._dense:
            self._dense.append(self._build())
        return self._dense[0]

    def _build(self) -> Tensor | None:
        if self.allowed is not None:
            return self.allowed
        if self.pattern is not None:
            return sdpa_mask(
                self.batch_size,
                self.q_length,
                self.kv_length,
                self.q_offset,
                self.kv_offset,
                mask_function=self.pattern,
                attention_mask=self.padding_BT,
                allow_is_causal_skip=False,
                use_vmap=self.use_vmap,
                device=self.device or "cpu",
            )
        conditions = []
        key_S = torch.arange(self.kv_length, device=self.device)
        query_L1 = torch.arange(self.offset, self.offset + self.q_length, device=self.device).unsqueeze(1)
        if self.causal and self.offset < self.kv_length - 1:
            conditions.append((key_S <= query_L1)[None, None])
        if self.window is not None and self.window < max(self.kv_length - self.offset, self.offset + self.q_length):
            conditions.append(((key_S - query_L1).abs() < self.window)[None, None])
        if (padding_BS := self.key_padding()) is not None:
            conditions.append(padding_BS[:, None, None, :])
        if not conditions:
            return None
        dense = conditions[0]
        for condition in conditions[1:]:
            dense = dense & condition
        return dense.expand(-1, -1, self.q_length, -1)

    def to(self, device: Any, non_blocking: bool = False) -> "AttentionMask":
        """The mask on another device; what accelerate calls where layers live on several."""
        moved = {
            name: None if tensor is None else tensor.to(device, non_blocking=non_blocking)
            for name, tensor in (("padding_BT", self.padding_BT), ("allowed", self.allowed))
        }
        return replace(self, device=torch.device(device), _dense=[], **moved)


def from_tensor(dense: Tensor, q_length: int, kv_length: int) -> AttentionMask:
    """The mask for a 4-D tensor that the caller of the model made: bool, or additive with very negative entries."""
    if dense.dtype != torch.bool and not dense.is_floating_point():
        raise UsageError(
            f"a 4-D attention mask must be bool (True: may be seen) or floating point (added to the scores), received "
            f"{dense.dtype}: pass mask.bool()"
        )
    allowed = dense if dense.dtype == torch.bool else dense > torch.finfo(dense.dtype).min / 2
    return AttentionMask(
        dense.shape[0], q_length, kv_length, allowed=allowed[..., -q_length:, :kv_length], device=dense.device
    )


def make_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = causal_mask_function,
    attention_mask: "Tensor | AttentionMask | None" = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **ignored: Any,
) -> AttentionMask | Tensor:
    """The function registered with `AttentionMaskInterface`.

    Args:
        batch_size, q_length, kv_length, q_offset, kv_offset: as transformers counts them.
        mask_function: transformers' condition on index tuples.
        attention_mask: bool [B, T] padding mask, or None; a mask made earlier comes back as it is.
        use_vmap: how `mask_function` must be evaluated.
        device: where masks are built.
        ignored: what only the mask functions of SDPA and eager attention use.

    Returns:
        An `AttentionMask`. With a static cache, which has room for keys to come, a bool tensor [B, 1, L, S].
    """
    if isinstance(attention_mask, AttentionMask):
        return attention_mask
    known = _recognise(mask_function)
    causal, window = known or (_is_causal(mask_function), None)
    if isinstance(q_offset, Tensor) or (causal and kv_offset + kv_length > q_offset + q_length):
        return sdpa_mask(  # type: ignore[return-value]
            batch_size,
            q_length,
            kv_length,
            q_offset,  # type: ignore[arg-type]
            kv_offset,
            mask_function,
            attention_mask,
            allow_is_causal_skip=False,
            use_vmap=use_vmap,
            device=device,
        )
    if attention_mask is not None and not torch.compiler.is_compiling() and bool(attention_mask.all()):
        covers = attention_mask.shape[1] >= kv_offset + kv_length
        attention_mask = None if covers else attention_mask
    return AttentionMask(
        batch_size,
        q_length,
        kv_length,
        q_offset,
        kv_offset,
        causal=causal,
        padding_BT=attention_mask,
        window=window,
        pattern=None if known else mask_function,
        use_vmap=use_vmap,
        device=torch.device(device),
    )


def _recognise(function: MaskFunction) -> tuple[bool, int | None] | None:
    """(causal, window) if `function` is one of transformers' plain patterns, else None."""
    if function is causal_mask_function:
        return True, None
    if function is bidirectional_mask_function:
        return False, None
    parts = _captured(function, "and_masks", "mask_functions")
    if parts is None or len(parts) != 2 or (base := _recognise(parts[1])) is None or base[1] is not None:
        return None
    if (window := _captured(parts[0], "sliding_window_overlay", "sliding_window")) is not None and base[0]:
        return True, int(window)
    if (reach := _captured(parts[0], "sliding_window_bidirectional_overlay", "sliding_window")) is not None:
        return base[0], int(reach) + 1
    return None


def _captured(function: MaskFunction, maker: str, variable: str) -> Any:
    """The value of `variable` in a closure made by `transformers.masking_utils.<maker>`; None for other functions."""
    code = getattr(function, "__code__", None)
    if code is None or function.__module__ != "transformers.masking_utils":
        return None
    if not function.__qualname__.startswith(f"{maker}.<locals>.") or variable not in code.co_freevars:
        return None
    cell: Any = (function.__closure__ or ())[code.co_freevars.index(variable)]
    return cell.cell_contents


def _is_causal(function: MaskFunction) -> bool:
    """Whether an unrecognised pattern keeps a query from a key that comes after it."""
    parts = _captured(function, "and_masks", "mask_functions") or ()
    inner = _captured(function, "remap_positions_for_packed_sequence", "mask_function")
    return function is causal_mask_function or any(_is_causal(part) for part in (*parts, *([inner] if inner else ())))
