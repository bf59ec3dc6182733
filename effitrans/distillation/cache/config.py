"""The settings of a cache of the teacher's outputs."""

from pathlib import Path
from typing import Literal

from effitrans.config import Config, Count
from effitrans.distillation.cache.store import default_folder


class TeacherCache(Config):
    """How the teacher's outputs are stored. Stored is what the objectives compare: predictions; for those that compare
    hidden states, width x (layers + 1) numbers per token; for `relation`, the queries, keys and values of one layer.
    """

    dtype: Literal["fp32", "bf16", "fp16"] = "fp16"
    """Precision of what is stored (default fp16); fp32 gives what the teacher gives."""
    top_k: Count | None = None
    """Store the k largest logits of each prediction only, which keep their probabilities at the temperature of the
    objective; the other classes share what is left evenly (default: all logits)."""
    folder: str | None = None
    """Folder of all caches (default: `teachers` in `$EFFITRANS_CACHE`, else in `~/.cache/effitrans`)."""

    @property
    def root(self) -> Path:
        """The folder of all caches."""
        return Path(self.folder) if self.folder else default_folder()
