"""Grids for groups of weights: a group of neighbouring input features is `w ~ scale (q - zero)`, q of few bits.

The zero point is a point of the grid, so a weight of 0 (a pruned one) stays 0. Scales are rounded to bfloat16, the
type they are stored in, before anything is rounded to the grid: the range of float32, and nothing is lost, as the
integers are chosen for the scale that will multiply them. N output features, K input features, G groups.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_SMALLEST_SCALE = torch.finfo(torch.bfloat16).tiny
SHRINKS = tuple(1 - 0.05 * step for step in range(13))
"""Fractions of a group's full range that `best_grid` tries: a few clipped weights may cost less than a wide step."""


@dataclass(frozen=True)
class Grid:
    """The grids of all groups of a weight [N, K]."""

    bits: int
    group_size: int
    scale_NG: Tensor
    """bfloat16, above 0."""
    zero_NG: Tensor
    """uint8, 0 to 2**bits - 1."""

    def round(self, weight_NK: Tensor) -> Tensor:
        """The nearest point for each weight: uint8 [N, K]."""
        scale_NK, zero_NK = self.spread()
        q_NK = torch.round(weight_NK.float() / scale_NK) + zero_NK
        return q_NK.clamp(0, 2**self.bits - 1).to(torch.uint8)

    def values(self, q_NK: Tensor) -> Tensor:
        """The weights that the integers stand for: float32 [N, K]."""
        q_NGg = q_NK.unflatten(1, (-1, self.group_size)).float()
        return ((q_NGg - self.zero_NG.float()[..., None]) * self.scale_NG.float()[..., None]).flatten(1)

    def rows(self, chosen_N: Tensor, other: Self) -> "Grid":
        """This grid where `chosen_N` (bool) is true, the other's rows elsewhere."""
        pick = chosen_N[:, None]
        return Grid(
            self.bits,
            self.group_size,
            torch.where(pick, self.scale_NG, other.scale_NG),
            torch.where(pick, self.zero_NG, other.zero_NG),
        )

    def spread(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of every weight: float32 [N, K] each."""
        return (
            self.scale_NG.float().repeat_interleave(self.group_size, 1),
            self.zero_NG.float().repeat_interleave(self.group_size, 1),
        )


def full_range_grid(weight_NK: Tensor, bits: int, group_size: int, shrink: float = 1.0) -> Grid:
    """The grid from each group's least to its largest weight, 0 included, or over a fraction of that range."""
    rows, columns = weight_NK.shape
    groups = weight_NK.float().reshape(rows, columns // group_size, group_size)
    low, high = groups.amin(-1).clamp_max(0) * shrink, groups.amax(-1).clamp_min(0) * shrink
    steps = 2**bits - 1
    scale_NG = _round_up((high / steps - low / steps).clamp_min(_SMALLEST_SCALE))
    zero_NG = torch.round(-low / scale_NG.float()).clamp(0, steps).to(torch.uint8)
    return Grid(bits, group_size, scale_NG, zero_NG)


def best_grid(weight_NK: Tensor, bits: int, group_size: int, importance: Tensor) -> Grid:
    """For each group, the fraction of its range with the least squared error.

    Args:
        weight_NK: floating point.
        bits, group_size: of the grid.
        importance: of the features, [K]; or the Hessian of their inputs [K, K], with which the error is that of the
            group's part of the output.
    """
    blocks = importance.unflatten(0, (-1, group_size))
    if importance.dim() == 2:
        blocks = blocks.unflatten(2, (-1, group_size)).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    best: Grid | None = None
    least_NG = torch.tensor(float("inf"))
    for shrink in SHRINKS:
        grid = full_range_grid(weight_NK, bits, group_size, shrink)
        error_GNg = (grid.values(grid.round(weight_NK)) - weight_NK).unflatten(1, (-1, group_size)).transpose(0, 1)
        weighted_GNg = error_GNg * blocks[:, None] if importance.dim() == 1 else error_GNg @ blocks
        error_NG = (weighted_GNg * error_GNg).sum(-1).t()
        if best is None:
            best, least_NG = grid, error_NG
            continue
        better_NG = error_NG < least_NG
        best = Grid(
            bits,
            group_size,
            torch.where(better_NG, grid.scale_NG, best.scale_NG),
            torch.where(better_NG, grid.zero_NG, best.zero_NG),
        )
        least_NG = torch.minimum(error_NG, least_NG)
    assert best is not None
    return best


def _round_up(scale: Tensor) -> Tensor:
    """bfloat16 not below `scale`, so that the range is covered."""
    rounded = scale.to(torch.bfloat16)
    up = torch.nextafter(rounded, torch.full_like(rounded, float("inf")))
    return torch.where(rounded.float() < scale, up, rounded)
