"""From `Training` to `transformers.TrainingArguments`, with the settings that cannot be honoured refused."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from effitrans.errors import UsageError
from effitrans.evaluation.tracking import check_tracker
from effitrans.training.config import Training

_SCHEDULERS = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def check_environment(config: Training) -> None:
    """Refuse a precision or a tracker that this machine does not have.

    Raises:
        UsageError: fp16 without a GPU, bf16 on a GPU that lacks it, a tracking package that is not installed.
    """
    has_gpu = torch.accelerator.is_available()
    if config.precision == "fp16" and not has_gpu:
        raise UsageError("precision 'fp16' needs a GPU and none was found: use 'bf16' or 'fp32' on a CPU")
    if config.precision == "bf16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise UsageError("precision 'bf16' is not supported by this GPU: use 'fp16' or 'fp32'")
    check_tracker(config.tracking)


def training_arguments(
    config: Training, folder: Path, *, has_validation: bool, metric: str, greater_is_better: bool, resumable: bool
) -> TrainingArguments:
    """The Trainer's arguments.

    Args:
        config: the user's settings, already checked.
        folder: where checkpoints go.
        has_validation: whether there is data to evaluate on.
        metric: name of the evaluation figure that the best state is chosen by ("eval_loss").
        greater_is_better: whether more of it is better.
        resumable: whether checkpoints carry what a resumed run needs, or the weights alone.
    """
    keep_best = has_validation and config.keep_best
    interval = "epoch" if config.eval_every is None else "steps"
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": config.epochs,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": config.batch_size,
        "per_device_eval_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "warmup_steps": config.warmup_ratio,  # a value below 1 is a fraction of all steps
        "lr_scheduler_type": _SCHEDULERS[config.scheduler],
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.precision == "bf16",
        "fp16": config.precision == "fp16",
        "use_cpu": not torch.accelerator.is_available(),
        "eval_strategy": interval if has_validation else "no",
        "eval_steps": config.eval_every,
        "save_strategy": interval if resumable or keep_best else "no",
        "save_steps": config.eval_every or 500,
        "save_total_limit": 2,  # the second last stays until the last is complete
        "save_only_model": not resumable,
        "load_best_model_at_end": keep_best,
        "metric_for_best_model": metric if has_validation else None,
        "greater_is_better": greater_is_better if has_validation else None,
        "logging_strategy": "steps",
        "logging_steps": config.log_every,
        "logging_nan_inf_filter": False,
        "report_to": config.tracking,
        "seed": config.seed,
        "data_seed": config.seed,
        "remove_unused_columns": False,
        "disable_tqdm": True,
    }
    if config.gradient_checkpointing:
        fields = TrainingArguments.__dataclass_fields__
        name = "activation_checkpointing" if "activation_checkpointing" in fields else "gradient_checkpointing"
        values |= {name: True, f"{name}_kwargs": {"use_reentrant": False}}
    arguments = TrainingArguments(**values)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are for torchrun; nn.DataParallel is not supported
    return arguments
