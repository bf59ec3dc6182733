"""What unstructured and N:M pruning can be asked for."""

import re
from typing import Annotated, ClassVar, Literal, Self

import pydantic

from effitrans.config import Config, Count, Seed


class Sparsity(Config):
    """Single weights of the linear layers, for `prune(model, Sparsity(sparsity=0.5))`."""

    verb: ClassVar[str] = "prune"

    sparsity: Annotated[float, pydantic.Field(gt=0, lt=1)] | None = None
    """Fraction of the weights of the linear layers to remove."""
    pattern: str | None = None
    """Instead of a sparsity: "N:M", of every M consecutive inputs of a row N weights stay ("2:4", "4:8")."""
    method: Literal["magnitude", "wanda"] = "magnitude"
    """"magnitude": the smallest weights go (no data). "wanda": weights times the norm of their inputs."""
    scope: Literal["layer", "global"] = "layer"
    """"layer": the same sparsity in every matrix (in every row, by "wanda"). "global": ranked over all matrices."""
    calibration_examples: Count = 128
    """Examples that "wanda" looks at."""
    batch_size: Count = 32
    """Examples a calibration batch."""
    seed: Seed = 0
    """Seed with which the examples are drawn."""

    def idle(self) -> dict[str, str]:
        found = {} if self.pattern is None else {"scope": "with a pattern, which fixes every group"}
        if self.method == "wanda":
            return found
        return found | dict.fromkeys(("calibration_examples", "batch_size"), f"as {self.method!r} needs no data")

    @pydantic.model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("set one of sparsity (a fraction) and pattern (such as 2:4)")
        if self.pattern is not None:
            keep, size = self.groups
            if not 0 < keep < size:
                raise ValueError(f"pattern {self.pattern!r}: N of N:M is at least 1 and below M")
        if self.scope == "global" and self.method == "wanda":
            raise ValueError("scope 'global' is for magnitude: inputs of different layers do not compare")
        return self

    @property
    def groups(self) -> tuple[int, int]:
        """N and M of the pattern."""
        match = re.fullmatch(r"(\d+):(\d+)", self.pattern or "")
        if match is None:
            raise ValueError(f"pattern {self.pattern!r}: expected N:M, such as 2:4")
        return int(match[1]), int(match[2])
