"""Models that have a structure and no weights, on which a plan can be tried before anything is loaded.

Every tensor is one zero, seen in the shape of the weight: it takes no memory, and passes that look at values or run a
forward pass work.
"""

import copy
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def hollow(model: Model) -> Model:
    """The model itself, with zeros in the place of its tensors; what was shared stays so."""
    memo: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = memo.setdefault(id(tensor), _zeros(tensor))  # type: ignore[assignment]
    return model


def duplicate(model: Model) -> Model:
    """A copy of a skeleton."""
    tensors = chain(model.parameters(), model.buffers())
    return copy.deepcopy(model, {id(tensor): _zeros(tensor) for tensor in tensors})


def _zeros(tensor: Any) -> Any:
    zeros = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)
    return nn.Parameter(zeros, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else zeros
