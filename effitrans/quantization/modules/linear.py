"""What linear layers have in common, whatever their class."""

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def weight_of(linear: nn.Module) -> Tensor:
    """The weight [N, K] of an `nn.Linear`, or of a `Conv1D`, which holds it transposed: the same memory."""
    return linear.weight.t() if isinstance(linear, Conv1D) else linear.weight  # type: ignore[return-value,operator]


def parameter_of(linear: nn.Module) -> nn.Parameter:
    """The weight [N, K] as a parameter: the same object for an `nn.Linear`, a copy for a `Conv1D`."""
    if isinstance(linear, Conv1D):
        return nn.Parameter(linear.weight.detach().t().contiguous())
    return linear.weight  # type: ignore[return-value]
