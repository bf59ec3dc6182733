"""From scores to the units that go.

Units leave a site in steps: a step is the smallest set that may go at once (one head; under grouped queries the
weakest remaining query head of each group; `multiple_of` neurons, so that the width stays a multiple that
matrix kernels like). Steps are ordered from the least important on, each with the mean score of its units.
Ties fall to the lower index, so the choice is deterministic.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from effitrans.errors import UsageError
from effitrans.pruning.sites import PruningSite

Scope = Literal["layer", "global"]


@dataclass(frozen=True)
class _Step:
    units: tuple[int, ...]
    score: float


def select(
    sites: Sequence[PruningSite],
    scores: Sequence[Tensor],
    ratio: float,
    *,
    scope: Scope = "layer",
    multiple_of: int = 1,
    minimum: int | None = None,
) -> list[list[int]]:
    """Choose the units to remove.

    Args:
        sites: sites of one kind.
        scores: importance of their units, one tensor [units] per site.
        ratio: fraction of all units to remove, rounded to whole steps.
        scope: "layer" removes the ratio from every site; "global" ranks the steps of all sites together, by their
            scores divided by the root mean square of the site's scores (Molchanov et al. 2017 normalise by the
            Euclidean norm; the mean keeps sites of different sizes comparable).
        multiple_of: the number of units left in a site is a multiple of this, where it has at least twice as many.
        minimum: units that every site keeps. None: one under "global"; under "layer" nothing is assumed, and a
            ratio that empties a site is refused.

    Returns:
        For each site the sorted indices of the units to remove; may be empty.

    Raises:
        UsageError: the ratio empties a site, or cannot be reached with `minimum` units left everywhere.
    """
    if not sites:
        return []
    steps = [_steps(site, score, multiple_of) for site, score in zip(sites, scores, strict=True)]
    if scope == "layer":
        chosen = [
            site_steps[: _count(site, site_steps, ratio, minimum)]
            for site, site_steps in zip(sites, steps, strict=True)
        ]
    else:
        chosen = _select_globally(sites, scores, steps, ratio, minimum or 1)
    return [sorted(unit for step in site_steps for unit in step.units) for site_steps in chosen]


def _steps(site: PruningSite, score_U: Tensor, multiple_of: int) -> list[_Step]:
    size = site.units // site.blocks
    ranked = score_U.reshape(site.blocks, size).sort(dim=1, stable=True)
    units = (ranked.indices + torch.arange(site.blocks)[:, None] * size).T
    length = multiple_of if site.units >= 2 * multiple_of else 1
    first = size % length or length
    bounds = [0, *range(first, size + 1, length)]
    return [
        _Step(tuple(units[start:stop].flatten().tolist()), float(ranked.values[:, start:stop].mean()))
        for start, stop in pairwise(bounds)
    ]


def _count(site: PruningSite, steps: list[_Step], ratio: float, minimum: int | None) -> int:
    """How many of the site's first steps come nearest to the ratio."""
    removed = [0]
    for step in steps:
        removed.append(removed[-1] + len(step.units))
    count = min(range(len(removed)), key=lambda n: (abs(removed[n] - ratio * site.units), n))
    if minimum is not None:
        while count and site.units - removed[count] < minimum:
            count -= 1
    elif removed[count] == site.units:
        most = removed[-2] / site.units
        raise UsageError(
            f"a ratio of {ratio:g} removes every {site.kind} of {site.name} ({site.units} of {site.units}). "
            f"The most that leaves something there is {most:.4g}; " + _remedy(site)
        )
    return count


def _remedy(site: PruningSite) -> str:
    if site.kind == "head" and site.units == 1:
        return "it has a single key/value group, so take query heads out of it: grouped_queries='queries'"
    return "lower the ratio, give a floor for each layer, or rank over all layers with scope='global'"


def _select_globally(
    sites: Sequence[PruningSite], scores: Sequence[Tensor], steps: list[list[_Step]], ratio: float, minimum: int
) -> list[list[_Step]]:
    target = ratio * sum(site.units for site in sites)
    candidates: list[tuple[float, int, int]] = []
    for index, (site, score, site_steps) in enumerate(zip(sites, scores, steps, strict=True)):
        scale = float(score.square().mean().sqrt()) or 1.0
        left = site.units
        for position, step in enumerate(site_steps):
            left -= len(step.units)
            if left >= minimum:
                candidates.append((step.score / scale, index, position))
    removed, taken = 0, [0] * len(sites)
    for _, index, position in sorted(candidates):
        size = len(steps[index][position].units)
        if abs(removed + size - target) >= abs(removed - target):
            break
        removed += size
        taken[index] = position + 1
    reachable = sum(len(steps[index][position].units) for _, index, position in candidates)
    if removed == reachable and target - removed > 0.5 * max(len(step.units) for part in steps for step in part):
        total = sum(site.units for site in sites)
        raise UsageError(
            f"a ratio of {ratio:g} cannot be reached: with at least {minimum} {sites[0].kind}(s) left in each of "
            f"{len(sites)} places at most {reachable / total:.4g} can go; more would empty {sites[0].name} and others"
        )
    return [site_steps[:count] for site_steps, count in zip(steps, taken, strict=True)]
