"""What every pruning leaves in the history of its model, and in the log."""

import logging
from typing import Any

from transformers import PreTrainedModel

from effitrans import checkpoint

logger = logging.getLogger("effitrans.pruning")


def record(model: PreTrainedModel, config: Any, before: int, **summary: Any) -> PreTrainedModel:
    """Record a pruning that has been done.

    Args:
        model: the pruned model.
        config: what was asked for.
        before: the number of parameters before.
        summary: what else there is to tell.

    Returns:
        The model.
    """
    after = model.num_parameters()
    checkpoint.record(model, "prune", config, parameters_before=before, parameters_after=after, **summary)
    logger.info("pruned %s: %d -> %d parameters", type(model).__name__, before, after)
    return model
