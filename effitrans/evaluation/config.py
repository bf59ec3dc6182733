"""What `evaluate` measures beside quality."""

from typing import Annotated, ClassVar

import pydantic

from effitrans.config import Config, Count, Size, Threads
from effitrans.evaluation.record import Length
from effitrans.evaluation.timing import Effort


class Cost(Config):
    """What is measured, at which shapes and for how long.

    >>> Cost(batches=(1, 8), lengths=("data", 128, 512), min_seconds=1.0).threads
    2
    """

    verb: ClassVar[str] = "evaluate"

    batches: tuple[Size, ...] = (1, 32)
    """Batch sizes; each is timed at each length."""
    lengths: tuple[Length, ...] = ("data", 128)
    """Tokens an example; "data": real examples of the task, each batch padded to its own longest."""
    threads: Threads = 2
    """CPU threads, at most as many as this process may use."""
    warmup: Count = 2
    """Rounds before the clock counts; compilation happens in the first."""
    min_repeats: Annotated[Count, pydantic.Field(ge=2)] = 10
    """Rounds at the least; a round times every model on every batch of a shape."""
    min_seconds: float = pydantic.Field(default=2.0, ge=0)
    """Seconds a shape at the least."""
    max_seconds: float = pydantic.Field(default=60.0, gt=0)
    """Seconds after which a shape ends even with fewer rounds."""
    settle_ms: float = pydantic.Field(default=0.0, ge=0)
    """For models with thread pools of their own, whose idle threads spin for a while and would slow down whatever is
    timed next: above 0, models take turns by whole rounds instead of by batches, with a pause of so long between."""
    data_examples: Count = 256
    """Real examples per round at length "data", as 8 to 64 batches."""
    contexts: tuple[Length, ...] = ("data",)
    """Tokens of the prompts that language models and translators generate from; none: generation is not timed."""
    new_tokens: Annotated[Count, pydantic.Field(ge=2)] = 16
    """Tokens that are generated after a prompt."""
    prompts_a_round: Count = 8
    """Batches of prompts a round at context "data", at most."""
    memory: bool = True
    """Load saved models in a fresh process for load time and peak memory, and time them there."""
    flops: bool = True
    """Count operations."""
    optimize_baseline: bool = False
    """Beside a model that is timed compiled, time its baseline compiled as well as eager ("baseline, compiled" in the
    record)."""
    max_deviation: float = pydantic.Field(default=0.1, gt=0)
    """Largest relative L2 difference between compiled and eager outputs of a shape; above it there is no speed."""

    @pydantic.field_validator("lengths", "contexts")
    @classmethod
    def _check_lengths(cls, lengths: tuple[Length, ...]) -> tuple[Length, ...]:
        if any(isinstance(length, int) and not 1 <= length <= 2**20 for length in lengths):
            raise ValueError('a length is a number of tokens, from 1 to 2^20, or "data"')
        return lengths

    @property
    def effort(self) -> Effort:
        """The part that says how long to time."""
        return Effort(self.warmup, self.min_repeats, self.min_seconds, self.max_seconds, self.settle_ms / 1000)

    def batches_a_round(self, batch: int) -> int:
        """Batches per round at length "data"."""
        return min(64, max(8, self.data_examples // batch))
