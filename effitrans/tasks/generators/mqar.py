"""Multi-query associative recall: look up many keys in a list of pairs (Arora et al., "Zoology" (2023), section 3.1).

`k3 v7 k9 v1 . . k9 . k3 .` asks for `v1` at the second `k9` and for `v7` at the second `k3`. A row opens with the
pairs, whose keys differ; after them every key is asked once, in any order. The gap between the pairs and a question
follows a power law, so that short distances are more frequent. All other places hold a dot, and only questions
have a tag. More pairs, longer rows and larger vocabularies are harder; a model whose state is smaller than the
pairs cannot hold them. Zoology uses 64 to 1,024 tokens with 4 to 256 pairs and 4,096 keys and values each.

The task is causal: give it a decoder. A model that sees both ways can solve it as well.
"""

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from effitrans.tasks.generators.base import Drawn

if TYPE_CHECKING:
    import numpy as np

BLANK = "."


class MQAR(Drawn):
    """Columns `words` (keys `k0`, values `v0` and dots) and `tags` (the value at a question, else None)."""

    generator: Literal["mqar"] = "mqar"
    """Names this generator."""
    length: int = Field(64, ge=4, le=2**16)
    """Tokens of a row; at least four times `num_pairs`."""
    num_pairs: int = Field(8, ge=1, le=2**16)
    """Pairs of a row, each of which is asked for once."""
    num_keys: int = Field(64, ge=1, le=2**16)
    """Different keys."""
    num_values: int = Field(64, ge=2, le=2**16)
    """Different values."""
    power: float = Field(0.01, gt=0)
    """Exponent a of the gaps, drawn with probability proportional to gap^(a - 1); 1: all gaps are as likely."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.length < 4 * self.num_pairs:
            raise ValueError(f"length {self.length} is below {4 * self.num_pairs}, four times num_pairs")
        if self.num_keys < self.num_pairs:
            raise ValueError(f"num_keys {self.num_keys} is below num_pairs {self.num_pairs}: the keys of a row differ")
        return self

    @property
    def splits(self) -> tuple[str, ...]:
        return ("train", "validation", "test")

    def columns(self, split: str) -> dict[str, list[Any]]:
        import numpy as np

        counts = {"train": self.train_rows, "validation": self.validation_rows, "test": self.test_rows}
        seen: set[str] = set()
        for stream, (name, count) in enumerate(counts.items()):
            generator = np.random.default_rng([self.seed, stream])
            rows = [self._new_row(generator, seen) for _ in range(count)]
            if name == split:
                return {"words": [words for words, _ in rows], "tags": [tags for _, tags in rows]}
        raise AssertionError(split)

    def _new_row(
        self, generator: "np.random.Generator", seen: set[str], attempts: int = 1000
    ) -> tuple[list[str], list[str | None]]:
        for _ in range(attempts):
            words, tags = self._row(generator)
            if (text := " ".join(words)) not in seen:
                seen.add(text)
                return words, tags
        raise ValueError(
            f"mqar found no new row in {attempts} attempts: raise length, num_pairs, num_keys or num_values, "
            "or ask for fewer rows"
        )

    def _row(self, generator: "np.random.Generator") -> tuple[list[str], list[str | None]]:
        import numpy as np

        pairs = self.num_pairs
        keys = generator.permutation(self.num_keys)[:pairs]
        values = generator.integers(self.num_values, size=pairs)
        words = [BLANK] * self.length
        tags: list[str | None] = [None] * self.length
        words[: 2 * pairs : 2] = [f"k{key}" for key in keys]
        words[1 : 2 * pairs : 2] = [f"v{value}" for value in values]
        slots = (self.length - 2 * pairs) // 2
        chances = np.arange(1, slots + 1) ** (self.power - 1)
        gaps = generator.choice(slots, size=pairs, replace=False, p=chances / chances.sum())
        for key, value, gap in zip(keys, values, gaps, strict=True):
            place = 2 * pairs + 2 * int(gap)
            words[place], tags[place] = f"k{key}", f"v{value}"
        return words, tags
