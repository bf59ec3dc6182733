"""Cutting features out of modules, through torch-pruning's slicing functions.

torch-pruning narrows `nn.Linear` and `nn.Embedding` and keeps their width attributes in step; GPT-2's Conv1D,
which it does not know, is described to it as it asks for: by a subclass of its `BasePruningFunc`. Its
`MetaPruner` is not used (it prunes other dimensions than those asked for in transformers models).
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

Side = Literal["in", "out"]


@cache
def _conv1d_function() -> Any:
    from torch_pruning.pruner.function import BasePruningFunc

    class Conv1DFunction(BasePruningFunc):
        """Slices transformers' Conv1D: weight [in, out], widths `nx` and `nf`."""

        TARGET_MODULES = Conv1D  # type: ignore[assignment]

        def prune_out_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
            keep = sorted(set(range(layer.nf)) - set(idxs))
            layer.weight = self._prune_parameter_and_grad(layer.weight, keep, 1)
            layer.bias = self._prune_parameter_and_grad(layer.bias, keep, 0)
            layer.nf = len(keep)
            return layer

        def prune_in_channels(self, layer: Any, idxs: Sequence[int]) -> nn.Module:
            keep = sorted(set(range(layer.nx)) - set(idxs))
            layer.weight = self._prune_parameter_and_grad(layer.weight, keep, 0)
            layer.nx = len(keep)
            return layer

        def get_out_channels(self, layer: Any) -> int:
            return layer.nf

        def get_in_channels(self, layer: Any) -> int:
            return layer.nx

    return Conv1DFunction()


def drop_features(module: nn.Module, side: Side, indices: Sequence[int]) -> None:
    """Remove input or output features from a linear module or an embedding, in place.

    Args:
        module: `nn.Linear`, Conv1D or (side "out": its columns) `nn.Embedding`.
        side: "out" removes rows of the weight and entries of the bias, "in" removes columns of the weight.
        indices: the features to remove.
    """
    from torch_pruning import ops
    from torch_pruning.pruner.function import PrunerBox

    if isinstance(module, Conv1D):
        function = _conv1d_function()
    else:
        function = PrunerBox[ops.OPTYPE.EMBED if isinstance(module, nn.Embedding) else ops.OPTYPE.LINEAR]
    trainable = {name: parameter.requires_grad for name, parameter in module.named_parameters(recurse=False)}
    function(module, indices, to_output=side == "out")
    for name, parameter in module.named_parameters(recurse=False):
        parameter.requires_grad_(trainable[name])


def drop_entries(module: nn.Module, name: str, dim: int, indices: Sequence[int]) -> None:
    """Remove entries along `dim` from a parameter, buffer or embedding table of `module`, in place."""
    if isinstance(module, nn.Embedding) and dim == 1:
        drop_features(module, "out", indices)
        return
    old = getattr(module, name)
    keep = torch.tensor(sorted(set(range(old.shape[dim])) - set(indices)), device=old.device)
    new = old.detach().index_select(dim, keep)
    setattr(module, name, nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new)
