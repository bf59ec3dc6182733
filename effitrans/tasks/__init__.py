"""Tasks: what is to be done, on which data, and how it is measured."""

from effitrans.tasks.batching import collator, data_loader, encode
from effitrans.tasks.calibration import calibration_batches
from effitrans.tasks.kinds import KINDS
from effitrans.tasks.metrics import METRICS, metric, metrics_of
from effitrans.tasks.predict import predict
from effitrans.tasks.predictions import Predictions
from effitrans.tasks.processors import build_processor
from effitrans.tasks.sources import HubSource
from effitrans.tasks.task import Task, TokenizerSpec, builtin_tasks, load_task, names_task

__all__ = [
    "KINDS",
    "METRICS",
    "HubSource",
    "Predictions",
    "Task",
    "TokenizerSpec",
    "build_processor",
    "builtin_tasks",
    "calibration_batches",
    "collator",
    "data_loader",
    "encode",
    "load_task",
    "metric",
    "metrics_of",
    "names_task",
    "predict",
]
