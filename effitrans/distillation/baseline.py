"""The baseline without a teacher: the same student, trained as long by the labels alone.

Only the comparison with it shows whether the teacher helped. Both models are compared by their best states on the
validation data. One run of each is no proof; a study with several seeds is (`effitrans compare recipes`).
"""

import logging
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from effitrans.distillation.config import Distillation
from effitrans.distillation.teacher import LABELS
from effitrans.errors import UsageError
from effitrans.training.config import Training
from effitrans.training.data import Data
from effitrans.training.loop import TrainResult, fit, summary

logger = logging.getLogger(__name__)


def check_baseline(data: Data) -> None:
    """Refuse data without the labels that the baseline needs.

    Raises:
        UsageError: no labels in the training or in the validation data, or no validation data.
    """
    for rows in (data.train, data.validation):
        first = None if rows is None or isinstance(rows, DataLoader) else data.collate([rows[0]])
        if first is None or not any(name in first for name in LABELS):
            raise UsageError(
                "no_teacher_baseline trains the student by labels and judges it on validation data with labels, and "
                "the data lacks one of them: leave it out, or add them"
            )


def compare_to_baseline(
    taught: TrainResult,
    student: PreTrainedModel,
    data: Data,
    config: Distillation,
    *,
    output_dir: Path | None,
    resume: bool,
) -> dict[str, Any]:
    """Train the baseline and compare.

    Args:
        taught: what the distillation gave.
        student: a copy of the student before its training; it is trained in place.
        data: with labels.
        config: of the distillation, whose settings of training hold for the baseline.
        output_dir, resume: as in `effitrans.train`.

    Returns:
        `no_teacher_baseline`, the summary of its training, and `warnings` where it ends better than the taught student.
    """
    settings = Training(**{name: getattr(config, name) for name in Training.model_fields})
    if config.augmentation is not None:
        settings = settings.model_copy(update={"max_steps": taught.steps})
    alone = fit(student, data, settings, output_dir=output_dir, resume=resume, description="no-teacher baseline")
    facts: dict[str, Any] = {"no_teacher_baseline": summary(alone)}
    if taught.best is None or alone.best is None:
        return facts
    mine, theirs, metric = taught.best["value"], alone.best["value"], taught.best["metric"]
    logger.info("%s of the student on validation data: %.4g, without the teacher: %.4g", metric, mine, theirs)
    if (theirs > mine) if data.selection.greater_is_better else (theirs < mine):
        facts["warnings"] = [
            f"distillation: the student ends worse than the same student without the teacher ({metric} {mine:.4g} and "
            f"{theirs:.4g} on validation data)"
        ]
        logger.warning("%s", facts["warnings"][0])
    return facts
