"""What a model answered on a split: the one thing that quality and fidelity are computed from."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Predictions:
    """One entry an example, in the order of the data. N examples, C classes.

    An example is a row of the split; for the language models, whose text is cut into blocks, it is a block.
    """

    predictions: list[Any] | None
    """Class ids (int), values (float), texts (str) or lists of tag names; None for language models."""
    references: list[Any] | None
    """The targets in the same form; for extractive answers a tuple of the acceptable texts."""
    scores: np.ndarray | None = None
    """float32 [N, C] logits of a classification, [N, 1] of a regression; None elsewhere."""
    losses: np.ndarray | None = None
    """float64 [N]: summed negative log-likelihood in nats; squared error for regressions and embeddings."""
    weights: np.ndarray | None = None
    """float64 [N]: how many predictions a loss sums over (tokens; 2 a window for extractive answers; else 1)."""
    bytes: np.ndarray | None = None
    """int64 [N]: UTF-8 bytes of the predicted text (causal language models only)."""

    def __len__(self) -> int:
        for values in (self.predictions, self.losses):
            if values is not None:
                return len(values)
        return 0
