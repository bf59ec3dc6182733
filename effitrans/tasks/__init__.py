"""Tasks: what is to be done, on which data, and how it is measured."""

from effitrans.tasks.batching import as_batches, collator, data_loader, encode
from effitrans.tasks.kinds import KINDS
from effitrans.tasks.metrics import METRIC_NAMES
from effitrans.tasks.predict import predict
from effitrans.tasks.predictions import Predictions
from effitrans.tasks.processors import build_processor
from effitrans.tasks.sources import HubSource
from effitrans.tasks.task import Task, TokenizerSpec, builtin_tasks, load_task

__all__ = [
    "KINDS",
    "METRIC_NAMES",
    "HubSource",
    "Predictions",
    "Task",
    "TokenizerSpec",
    "as_batches",
    "build_processor",
    "builtin_tasks",
    "collator",
    "data_loader",
    "encode",
    "load_task",
    "predict",
]
