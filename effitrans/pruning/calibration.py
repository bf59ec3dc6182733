"""The labelled examples on which a criterion measures."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from effitrans.errors import UsageError
from effitrans.pruning.config import Importance, Pruning
from effitrans.pruning.importance import IMPORTANCE
from effitrans.tasks import calibration_batches

Batches = Sequence[Mapping[str, Tensor]]


def criterion_batches(
    model: PreTrainedModel, config: Pruning | Importance, data: Any, processor: Any = None
) -> Batches:
    """Draw `config.calibration_examples` examples with `config.seed`; none if the method needs no data.

    Args:
        model: the model that will read them.
        config: names the method, the number of examples and the seed.
        data, processor: as `effitrans.tasks.calibration_batches` takes them.

    Raises:
        UsageError: the method needs data and there is none, or it does not fit the model.
    """
    criterion = IMPORTANCE[config.method]
    if not criterion.needs_data or (isinstance(config, Pruning) and not config.uses_scores):
        return []
    if data is None:
        without = [name for name, criterion in IMPORTANCE.items() if not criterion.needs_data]
        raise UsageError(
            f"method {config.method!r} measures on calibration data and got none: "
            f"give a task, a data set or a DataLoader, or use a method that needs no data ({', '.join(without)})"
        )
    batches = calibration_batches(
        data,
        model,
        processor,
        limit=config.calibration_examples,
        batch_size=config.batch_size,
        seed=config.seed,
        needs_labels=criterion.needs_labels,
    )
    return list(batches)
