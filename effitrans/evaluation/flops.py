"""Operations of a forward pass, counted by `torch.utils.flop_counter` with formulas for what it does not know.

A multiply-add counts as two operations. Integer products count like floating-point ones. Element-wise work is not
counted, as is usual; products that no formula covers are named, so that a count is never silently short.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

PRODUCTS = ("mm", "matmul", "linear", "conv", "attention", "einsum", "_bag", "fft")
"""An `aten` operator whose name holds one of these does work that ought to be counted."""


def _int_mm(a_shape: Any, b_shape: Any, *args: Any, **kwargs: Any) -> int:
    rows, inner = a_shape
    return 2 * rows * inner * b_shape[1]


def _int4_mm(x_shape: Any, weight_shape: Any, *args: Any, **kwargs: Any) -> int:
    # The packed weight has a row for each output and half a byte for each input.
    rows, inner = x_shape
    return 2 * rows * inner * weight_shape[0]


def _cpu_attention(query_shape: Any, key_shape: Any, value_shape: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query_shape, key_shape, value_shape)


FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._int_mm: _int_mm,
    torch.ops.aten._weight_int4pack_mm_for_cpu: _int4_mm,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
}
"""Operators missing from torch's registry -> operations from the shapes of their arguments."""


class _Seen(TorchDispatchMode):
    """Remembers the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.add(func._overloadpacket)
        return func(*args, **(kwargs or {}))


def count_flops(
    run: Callable[[Mapping[str, torch.Tensor]], Any], batches: Iterable[Mapping[str, torch.Tensor]]
) -> tuple[int, tuple[str, ...]]:
    """Mean operations of a forward pass over the batches, and the names of the products that were not counted.

    >>> layer = torch.nn.Linear(8, 4, bias=False)
    >>> count_flops(lambda batch: layer(batch["x"]), [{"x": torch.zeros(2, 8)}])
    (128, ())
    """
    total, passes = 0, 0
    seen = _Seen()
    with torch.no_grad():
        for batch in batches:
            if not passes:
                # What a model prepares in its first call (packed weights, probed kernels) is not part of a pass.
                run(batch)
            counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
            with counter, seen:
                run(batch)
            total += counter.get_total_flops()
            passes += 1
    counted = set(flop_registry) | set(FORMULAS)
    uncounted = sorted(str(operator) for operator in seen.operators - counted if _is_product(operator))
    return round(total / max(passes, 1)), tuple(uncounted)


def _is_product(operator: Any) -> bool:
    namespace, _, name = str(operator).partition(".")
    if namespace not in ("aten", "prims", "prim"):
        return True
    return any(part in name for part in PRODUCTS)
