"""ListOps: nested list operations whose value is a digit (Nangia and Bowman 2018; Long Range Arena, Tay et al. 2021).

`[MAX 2 9 [MIN 4 7 ] 0 ]` is 9. Operators: MIN, MAX, MED (median, rounded down) and SM (sum modulo 10). The
answer needs the whole tree, which makes it a test of whether attention reaches across a sequence. Long
Range Arena uses 500 to 2,000 tokens; the default here is short, and the grammar and the answer are the same.

Trees are grown at random and kept if their length is in range and they were not seen before, in this split
or another. A tree costs time in proportion to its length, and ranges that random trees seldom hit cost more.
"""

import random
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from effitrans.tasks.generators.base import Drawn

OPERATORS = ("MIN", "MAX", "MED", "SM")
Tree = int | tuple[str, list["Tree"]]


class ListOps(Drawn):
    """Columns `source` (tokens separated by a space) and `label` (0 to 9)."""

    generator: Literal["listops"] = "listops"
    """Names this generator."""
    min_length: int = Field(10, ge=4, le=2**16)
    """Fewest tokens of an expression, brackets included."""
    max_length: int = Field(60, ge=4, le=2**16)
    """Most tokens of an expression, brackets included."""
    max_depth: int = Field(10, ge=1, le=100)
    """Deepest nesting of operators."""
    max_arguments: int = Field(10, ge=2, le=2**16)
    """Most arguments of an operator."""

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.min_length > self.max_length:
            raise ValueError(f"min_length {self.min_length} is above max_length {self.max_length}")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", "test")

    def columns(self, split: str) -> dict[str, list[Any]]:
        counts = {"train": self.train_rows, "validation": self.validation_rows, "test": self.test_rows}
        seen: set[str] = set()
        for name, count in counts.items():
            generator = random.Random(f"{self.seed}/{name}")
            rows = [self._row(generator, seen) for _ in range(count)]
            if name == split:
                return {"source": [source for source, _ in rows], "label": [label for _, label in rows]}
        raise AssertionError(split)

    def _row(self, generator: random.Random, seen: set[str], attempts: int = 100_000) -> tuple[str, int]:
        for _ in range(attempts):
            tree = self._grow(generator, depth=1, budget=[self.max_length])
            if tree is None:
                continue
            source = write(tree)
            if source.count(" ") + 1 >= self.min_length and source not in seen:
                seen.add(source)
                return source, value(tree)
        raise ValueError(
            f"listops found no new expression of {self.min_length} to {self.max_length} tokens in {attempts} attempts: "
            "widen the range, raise max_depth or max_arguments, or ask for fewer rows"
        )

    def _grow(self, generator: random.Random, depth: int, budget: list[int]) -> Tree | None:
        """An operator with random arguments, or None once `budget` (tokens left, shared by the tree) is spent."""
        budget[0] -= 2
        arguments: list[Tree] = []
        for _ in range(generator.randint(2, self.max_arguments)):
            nested = depth < self.max_depth and generator.random() < 0.25
            if nested:
                argument = self._grow(generator, depth + 1, budget)
            else:
                argument = generator.randrange(10)
                budget[0] -= 1
            if argument is None or budget[0] < 0:
                return None
            arguments.append(argument)
        return generator.choice(OPERATORS), arguments


def value(tree: Tree) -> int:
    """What an expression evaluates to, 0 to 9."""
    if isinstance(tree, int):
        return tree
    operator, arguments = tree
    values = sorted(value(argument) for argument in arguments)
    if operator == "MIN":
        return values[0]
    if operator == "MAX":
        return values[-1]
    if operator == "SM":
        return sum(values) % 10
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) // 2


def write(tree: Tree) -> str:
    """The expression as tokens separated by a space: `[SM 1 2 ]`."""
    if isinstance(tree, int):
        return str(tree)
    operator, arguments = tree
    return " ".join([f"[{operator}", *map(write, arguments), "]"])
