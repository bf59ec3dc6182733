"""How much of a difference between two computations of an int8 model rounding explains.

A sum taken in another order moves a value by 1e-7, which now and then moves an int8 activation by a whole step; a few
layers on, all rounding errors are other ones. So two right computations differ by about as much as each differs from
the floating-point model, which for two logits near zero is more than any relative tolerance. Hence it is measured.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES = 3


def rounding_noise(run: Callable[[], Sequence[Tensor]], layers: Sequence[nn.Module]) -> list[float]:
    """L2 norm by which each output moves, at most, when the outputs of int8 layers are changed in the fifth digit.

    Args:
        run: gives the outputs.
        layers: the int8 layers; without any, nothing moves.
    """
    right = run()
    noise = [0.0] * len(right)
    for seed in range(SAMPLES if layers else 0):
        with _perturbed(layers, seed):
            moved = run()
        noise = [max(n, l2_norm(a - b)) for n, a, b in zip(noise, moved, right, strict=True)]
    return noise


def l2_norm(x: Tensor) -> float:
    """L2 norm of the finite entries."""
    return float(torch.nan_to_num(x.float(), 0.0, 0.0, 0.0).norm())


@contextmanager
def _perturbed(layers: Sequence[nn.Module], seed: int) -> Iterator[None]:
    """Let every layer's output be off by a random relative error of 1e-5."""

    def disturb(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output * (1 + 1e-5 * torch.randn(output.shape, generator=generator).to(output))

    generator = torch.Generator().manual_seed(seed)
    handles = [layer.register_forward_hook(disturb) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
