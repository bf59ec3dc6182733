"""Importance-guided evolution: structures inside a budget, bred from the best so far.

Every structure is first fitted to the budget: while it costs too much, the step that loses least importance for
what it saves goes; while there is room, the step that regains most comes back (the greedy answer to the knapsack
problem that Kwon et al. 2022, arXiv:2204.09656, solve for heads and neurons). The first structures are that of
importance alone and uniform ones; later ones are mutations and crossings of the best, with some noise in the
importance so that they differ, as in the evolutionary search of Real et al. 2019 (arXiv:1802.01548). What decides
between them is the loss of the structure, built and run on calibration examples.
"""

import random
from collections.abc import Callable, Mapping

from effitrans.errors import UsageError
from effitrans.pruning.search.cost import Costs, Table
from effitrans.pruning.search.space import Space, Structure

Measure = Callable[[Structure], float]


class Evolution:
    """The search inside one budget.

    Args:
        space, table: what to choose from, and what it costs.
        limits: cost -> most, as a share of the original.
        measure: the loss of a structure.
        population: structures to breed from.
        seed: of mutations and noise; the same seed and losses give the same structures.
    """

    def __init__(
        self, space: Space, table: Table, limits: Costs, measure: Measure, *, population: int, seed: int
    ) -> None:
        self.space, self.table, self.limits, self.measure = space, table, limits, measure
        self.population, self.seed = population, seed
        self.random = random.Random(seed)
        self.losses: dict[Structure, float] = {}
        self.check_reachable()

    def check_reachable(self) -> None:
        """Refuse limits that the narrowest structure does not meet.

        Raises:
            UsageError: with the smallest value that can be reached.
        """
        costs = self.table.of(self.narrowest())
        for name, most in self.limits.items():
            if costs[name] > most:
                raise UsageError(
                    f"{name} {most:.4g} cannot be reached: the smallest structure of this search has {costs[name]:.4g} "
                    f"of the original {name}. Raise the limit to that"
                )

    def narrowest(self) -> Structure:
        """The structure of which nothing more can go."""
        structure = self.space.full
        while steps := self._steps(structure, -1):
            structure = steps[0][1]
        return structure

    def run(self, evaluations: int) -> Structure:
        """The structure of least loss among so many."""
        attempts = 0
        for structure in self.first():
            self.score(structure)
        while len(self.losses) < evaluations and attempts < 20 * evaluations:
            attempts += 1
            best = sorted(self.losses, key=lambda structure: (self.losses[structure], structure))[: self.population]
            parent, other = self.random.choice(best), self.random.choice(best)
            self.score(self.fitted(self._mutated(self._crossed(parent, other)), noise=0.3))
        return self.best()

    def best(self) -> Structure:
        """The structure of least loss so far."""
        return min(self.losses, key=lambda structure: (self.losses[structure], structure))

    def fitted(self, structure: Structure, noise: float | None = None) -> Structure:
        """The structure made to fill the budget."""
        weights = self._weights(noise)
        return self._widened(self._narrowed(structure, weights), weights)

    def fits(self, structure: Structure) -> bool:
        """Whether the estimated costs are within the limits."""
        costs = self.table.of(structure)
        return all(costs[name] <= most for name, most in self.limits.items())

    def narrowed(self, structure: Structure) -> Structure:
        """The structure made to fit the budget, with room left where it had room."""
        return self._narrowed(structure, self._weights(None))

    def score(self, structure: Structure) -> float:
        """The loss of a structure, measured once."""
        if structure not in self.losses:
            self.losses[structure] = self.measure(structure)
        return self.losses[structure]

    def first(self) -> list[Structure]:
        """By importance alone, with little and much noise, and the same share everywhere and what room that leaves."""
        first = [self.fitted(self.space.full)]
        first += [self.fitted(self.space.full, noise=noise) for noise in (0.2, 0.5)]
        return [*first, self._widened(self.uniform(), self._weights(None))]

    def uniform(self) -> Structure:
        """The widest structure inside the limits that has the same share of the units in every place.

        Raises:
            UsageError: there is none.
        """
        found = None
        for thousandth in range(1, 1001):
            share = thousandth / 1000
            structure = tuple(
                min(range(len(place.widths)), key=lambda c, p=place: (abs(p.widths[c] - share * p.units), c))
                for place in self.space.places
            )
            if self.space.allowed(structure) and self.fits(structure):
                found = structure
        if found is None:
            return self.fitted(self.space.full)
        return found

    def _weights(self, noise: float | None) -> list[float]:
        count = len(self.space.places)
        return [1.0] * count if noise is None else [2.718281828 ** self.random.gauss(0, noise) for _ in range(count)]

    def _narrowed(self, structure: Structure, weights: list[float]) -> Structure:
        """Steps of least loss for what they save go until the structure fits (or nothing can go)."""
        while not self.fits(structure):
            steps = self._steps(structure, -1)
            if not steps:
                return structure
            over = self._exceeded(structure)
            structure = min(steps, key=lambda step: self._price(structure, *step, over, weights))[1]
        return structure

    def _widened(self, structure: Structure, weights: list[float]) -> Structure:
        while True:
            steps = [step for step in self._steps(structure, 1) if self.fits(step[1])]
            if not steps:
                return structure
            names = list(self.limits)
            structure = max(steps, key=lambda step: self._price(step[1], step[0], structure, names, weights))[1]

    def _steps(self, structure: Structure, direction: int) -> list[tuple[int, Structure]]:
        found = []
        for index, place in enumerate(self.space.places):
            choice = structure[index] + direction
            if 0 <= choice < len(place.widths):
                stepped = (*structure[:index], choice, *structure[index + 1 :])
                if self.space.allowed(stepped):
                    found.append((index, stepped))
        return found

    def _exceeded(self, structure: Structure) -> list[str]:
        costs = self.table.of(structure)
        return [name for name, most in self.limits.items() if costs[name] > most]

    def _price(
        self, wide: Structure, index: int, narrow: Structure, names: list[str], weights: list[float]
    ) -> tuple[float, int]:
        """Importance lost for each unit of cost saved when a place goes from wide to narrow."""
        place = self.space.places[index]
        lost = (place.lost[narrow[index]] - place.lost[wide[index]]) * weights[index]
        saved = sum(
            self.table.saved(index, narrow[index], name) - self.table.saved(index, wide[index], name) for name in names
        )
        return lost / max(saved, 1e-9), index

    def _crossed(self, one: Structure, other: Structure) -> Structure:
        child = tuple(self.random.choice(pair) for pair in zip(one, other, strict=True))
        return child if self.space.allowed(child) else one

    def _mutated(self, structure: Structure) -> Structure:
        changed = list(structure)
        for _ in range(self.random.randint(1, 3)):
            index = self.random.randrange(len(changed))
            last = len(self.space.places[index].widths) - 1
            changed[index] = min(last, max(0, changed[index] + self.random.choice((-3, -2, -1, 1, 2, 3))))
        return tuple(changed) if self.space.allowed(tuple(changed)) else structure


def pareto(points: Mapping[Structure, tuple[float, float]]) -> list[Structure]:
    """The structures than which no other is both cheaper and better, cheapest first; points are (cost, loss)."""
    front: list[Structure] = []
    best = float("inf")
    for structure in sorted(points, key=lambda s: (*points[s], s)):
        if points[structure][1] < best:
            best = points[structure][1]
            front.append(structure)
    return front
