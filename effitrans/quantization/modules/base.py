"""What the modules of quantized models have in common."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn


class FixedTypes(nn.Module):
    """A module whose tensors keep their types when the model is cast, or loaded in another type than it was saved in.

    They move between devices like any other. Only the bias, and the weight where it is floating point, are cast.
    """

    trainable: ClassVar[bool] = False
    """Integer weights have no gradient; `Trainer` and the passes that train ask for this."""
    meant_compiled: ClassVar[bool] = False
    """Whether a model that holds it is meant to run under `effitrans.optimize`, as evaluation then times it."""

    is_packed: ClassVar[bool] = False
    """Whether its weight is stored several values to a byte, which `dequantized()` tells apart."""

    @classmethod
    def from_spec(cls, spec: dict[str, Any], original: nn.Module | None) -> Self:
        """An empty module in the place of `original`, whose type its output has.

        `from_pretrained` builds a model with the type it was asked for as torch's default, and loads every tensor in
        the type that it then finds: without regard to the default, what is declared without a type is float32.
        """
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            return cls(**spec, dtype=floating_dtype(original))
        finally:
            torch.set_default_dtype(default)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: tensor.data for name, tensor in self._fixed()}
        super()._apply(fn, recurse)
        for name, moved in self._fixed():
            if moved.dtype != before[name].dtype:
                moved.data = before[name].to(moved.device)
        return self

    def _fixed(self) -> list[tuple[str, Tensor]]:
        tensors = {**self._parameters, **self._buffers}
        return [(n, t) for n, t in tensors.items() if t is not None and n not in ("weight", "bias", "like")]


class QuantizedLinear(FixedTypes):
    """Base of the linear layers with quantized weights: sizes, bias, and what the manifest says of them."""

    settings: ClassVar[tuple[str, ...]] = ()
    """Attributes that the constructor takes beside the sizes and `bias`."""
    bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features

    def _add_bias(self, bias: bool, dtype: torch.dtype) -> None:
        self.bias = nn.Parameter(torch.zeros(self.out_features, dtype=dtype), requires_grad=False) if bias else None

    def spec(self) -> dict[str, Any]:
        """How to build this layer empty: what the manifest stores."""
        names = ("in_features", "out_features", *self.settings)
        return {**{name: getattr(self, name) for name in names}, "bias": self.bias is not None}

    def refuse_integers(self, x: Tensor) -> None:
        """Raise a TypeError if `x` holds integers, as when code casts its input to the type of the weight."""
        if not x.is_floating_point():
            raise TypeError(f"{type(self).__name__} takes floating point, received {x.dtype}")

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.spec().items())


def floating_dtype(original: nn.Module | None) -> torch.dtype:
    """The floating-point type of the module that is replaced: the one that `from_pretrained(dtype=...)` asked for."""
    tensors = [] if original is None else original.parameters(recurse=False)
    return next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)
