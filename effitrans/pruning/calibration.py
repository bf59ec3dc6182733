"""The labelled examples on which a criterion measures."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.errors import UsageError
from effitrans.pruning.config import Importance, Pruning
from effitrans.pruning.importance import IMPORTANCE

Batches = Sequence[Mapping[str, Tensor]]


def calibration_batches(
    model: PreTrainedModel, config: Pruning | Importance, data: Any, processor: Any = None
) -> Batches:
    """Draw `config.calibration_examples` examples with `config.seed`; none if the method needs no data.

    Args:
        model: the model that will read them.
        config: names the method, the number of examples and the seed.
        data: a task or its name (its train split), a `datasets.Dataset` or list of encoded examples, or a
            DataLoader of batches, whose own order is kept.
        processor: tokenizer or image processor of a task; default: the one beside the model's weights.

    Raises:
        UsageError: the method needs data and there is none, or it does not fit the model.
    """
    if not IMPORTANCE[config.method].needs_data or (isinstance(config, Pruning) and not config.uses_scores):
        return []
    if data is None:
        without = [name for name, criterion in IMPORTANCE.items() if not criterion.needs_data]
        raise UsageError(
            f"method {config.method!r} measures on calibration data and got none: "
            f"give a task, a data set or a DataLoader, or use a method that needs no data ({', '.join(without)})"
        )
    from effitrans.tasks import as_batches

    batches = as_batches(
        _shuffled(model, config, data, processor),
        model=model,
        processor=processor,
        batch_size=config.batch_size,
        limit=config.calibration_examples,
    )
    return list(batches)


def _shuffled(model: PreTrainedModel, config: Pruning | Importance, data: Any, processor: Any) -> Any:
    from datasets import Dataset

    from effitrans.tasks import Task, data_loader, load_task

    if isinstance(data, str | Path | Task):
        task = load_task(data)
        split = "train" if "train" in task.splits else task.splits[0]
        if processor is None and model.config._name_or_path:
            processor = checkpoint.load_processor(model.config._name_or_path)
        return data_loader(task, split, processor, batch_size=config.batch_size, model=model, shuffle_seed=config.seed)
    if isinstance(data, Dataset):
        return data.shuffle(seed=config.seed)
    if isinstance(data, list):
        return random.Random(config.seed).sample(data, len(data))
    return data
