"""AWQ's search against the reference's, written out from its description: scales first, then how far to clip."""

import pytest
import torch
from torch import Tensor

from effitrans.quantization.modules.grid import best_grid, full_range_grid
from effitrans.quantization.schemes.low_bit.awq import best_scale
from effitrans.quantization.schemes.low_bit.by_block import output_error

GROUP = 32


def problem(kind: str, seed: int) -> tuple[Tensor, Tensor]:
    """A weight [N, K] and inputs [M, K]: correlated, or with a few features much larger than the others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(300, 96, generator=generator)
    if kind == "correlated":
        x = x @ torch.randn(96, 96, generator=generator) / 10 + 0.5
    else:
        x = x * torch.exp(torch.randn(96, generator=generator))
        x[:, ::24] *= 12
    weight = torch.randn(40, 96, generator=generator)
    return weight * (1 + 3 * torch.rand(40, 96, generator=generator) ** 8), x


def nearest(weight: Tensor, bits: int) -> Tensor:
    """Rounded to the nearest of 2**bits equal steps from the least to the largest weight of each group."""
    groups = weight.reshape(-1, GROUP)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    zero = torch.round(-low / scale).clamp(0, 2**bits - 1)
    q = (torch.round(groups / scale) + zero).clamp(0, 2**bits - 1)
    return ((q - zero) * scale).reshape(weight.shape)


def reference(weight: Tensor, x: Tensor, bits: int) -> Tensor:
    """The weight that the layer multiplies by in effect: llm-awq's `auto_scale`, then its `auto_clip`."""
    size, y = x.abs().mean(0), x @ weight.t()
    scales = [size ** (step / 20) for step in range(20)]
    scales = [scale / (scale.max() * scale.min()).sqrt() for scale in scales]
    errors = [(x @ (nearest(weight * scale, bits) / scale).t() - y).square().mean() for scale in scales]
    scale = scales[int(torch.stack(errors).argmin())]
    weight, x = weight * scale, x / scale
    groups, inputs = weight.unflatten(1, (-1, GROUP)), x.unflatten(1, (-1, GROUP))
    largest = groups.abs().amax(-1, keepdim=True)
    limit, least = largest, torch.full_like(largest, float("inf"))
    for step in range(10):
        tried = largest * (1 - step / 20)
        clipped = groups.clamp(-tried, tried).reshape(weight.shape)
        difference = nearest(clipped, bits).unflatten(1, (-1, GROUP)) - groups
        error = torch.einsum("mgk,ngk->ngm", inputs, difference).square().mean(-1, keepdim=True)
        limit = torch.where(error < least, tried, limit)
        least = torch.minimum(error, least)
    return nearest(groups.clamp(-limit, limit).reshape(weight.shape), bits) / scale


@pytest.mark.parametrize("kind", ["correlated", "outliers"])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_leaves_no_more_error_than_the_reference(bits: int, kind: str):
    for seed in range(3):
        weight, x = problem(kind, seed)
        hessian = x.t() @ x / len(x)
        scale, grid = best_scale(weight, hessian, bits, GROUP)
        scale = torch.ones(weight.shape[1]) if scale is None else scale
        mine = grid.values(grid.round(weight * scale)) / scale
        plain = full_range_grid(weight, bits, GROUP)
        error, theirs, rounding = (
            float(output_error(weight - w, hessian).sum())
            for w in (mine, reference(weight, x, bits), plain.values(plain.round(weight)))
        )
        assert error <= 1.01 * theirs
        assert error < 0.95 * rounding


def test_a_group_is_clipped_for_its_part_of_the_output():
    """Against trying all fractions of one group's range on the inputs themselves."""
    weight, x = problem("correlated", 0)
    weight, x = weight[:, :GROUP], x[:, :GROUP]
    grid = best_grid(weight, 3, GROUP, x.t() @ x)
    errors = (x @ (grid.values(grid.round(weight)) - weight).t()).square().sum(0)
    for step in range(13):
        other = full_range_grid(weight, 3, GROUP, 1 - 0.05 * step)
        tried = (x @ (other.values(other.round(weight)) - weight).t()).square().sum(0)
        assert bool((errors <= tried * (1 + 1e-4)).all())
