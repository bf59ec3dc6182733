"""`train`: fine-tune or pretrain a model on a task; and `fit`, the run that distillation shares with it."""

import json
import logging
import os
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainerState

from effitrans import checkpoint
from effitrans.checkpoint.accepting import broken_weights, takes_models
from effitrans.config import as_config
from effitrans.errors import UsageError
from effitrans.files import write_text
from effitrans.training.arguments import check_environment, training_arguments
from effitrans.training.callbacks import Checkpoints, EarlyStopping, Epochs, Interrupts, Progress, diverged, is_timing
from effitrans.training.checkpoints import complete_checkpoints, remove_incomplete
from effitrans.training.config import Training
from effitrans.training.data import Data, SeededRows, lengths_of, resolve
from effitrans.training.identity import identity
from effitrans.training.sampler import EpochSampler
from effitrans.training.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What `train`, `distill` and `linearize` return."""

    model: PreTrainedModel
    """The trained model, in evaluation mode: the one that was passed to `train`, the student that was passed to
    `distill`, or the converted copy that `linearize` made."""
    steps: int
    """Optimizer steps done."""
    loss: float | None
    """Mean training loss between the last two log entries."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Logged values in order: `{"step", "epoch", "loss", ...}` and `{"step", "epoch", "eval_loss", ...}`."""
    best: dict[str, Any] | None = None
    """`{"metric", "value", "step"}` of the best evaluation; None where nothing was evaluated."""
    checkpoints: Path | None = None
    """Folder of the run's checkpoints, to be deleted once the result is saved; None without `output_dir`."""


@takes_models("model")
def train(
    model: PreTrainedModel,
    data: Any,
    config: Training | None = None,
    *,
    processor: Any = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a model in place on a task.

    Args:
        model: a transformers model, or its folder, with the head for the task, pruned or not, but with no integer
            weights.
        data: examples with labels, in any form of `effitrans.tasks.forms` but a stream.
        config: settings; default `Training()`.
        processor: tokenizer or image processor of a task or of texts. Default: the one beside the model's weights.
        output_dir: checkpoints go to `output_dir/checkpoints`. None keeps none, and nothing can be resumed.
        resume: go on from the last complete checkpoint in `output_dir`, if there is one. On one machine with one
            number of threads the result is the one the undisturbed run would have given.

    Returns:
        The model, which is the one passed in, in its best state (see `Training.keep_best`), and the history.

    Raises:
        UsageError: integer, frozen or broken weights, empty data, settings this machine cannot honour, training that
            changes no weight, an `output_dir` that holds another run, or a resumed run with other settings, other data
            or a model of another structure.
        TrainingDiverged: the loss or the weights became NaN or infinite; names the step and the last checkpoint.
        KeyboardInterrupt: after Ctrl-C, when the checkpoint is written.

    >>> import datasets, torch
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1,
    ...     num_attention_heads=2, intermediate_size=8))
    >>> rows = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3, 4]], "labels": [0, 1]})
    >>> train(model, rows, Training(max_steps=2, batch_size=2)).steps
    2
    """
    config = as_config(config, "train", Training, "Training(epochs=3)", default=Training())
    check_trainable(model)
    check_environment(config)
    found = resolve(data, model, processor, config)
    result = fit(model, found, config, output_dir=output_dir, resume=resume, description="train")
    checkpoint.record(model, "train", config, **summary(result))
    return result


def check_trainable(model: nn.Module) -> None:
    """Refuse a model with integer weights, and one whose parameters are all frozen.

    Raises:
        UsageError: with the remedy.
    """
    if getattr(model, "is_quantized", False):
        raise UsageError(
            f"this {type(model).__name__} is quantized: integer weights have no gradients. "
            "Train, distill and prune first, and quantize last."
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError(
            f"all parameters of this {type(model).__name__} are frozen (requires_grad is False), so training would "
            "change nothing: call model.requires_grad_(True), on the whole model or on the part that is to learn"
        )


def summary(result: TrainResult) -> dict[str, Any]:
    """What the model's history says about a run; the same for a run that was resumed."""
    return {"steps": result.steps, "loss": result.loss, "best": result.best}


def fit(
    model: PreTrainedModel,
    data: Data,
    config: Training,
    *,
    output_dir: str | Path | None,
    resume: bool,
    description: str,
    trainer_class: type[Trainer] = Trainer,
    others: Mapping[str, nn.Module] | None = None,
    **extras: Any,
) -> TrainResult:
    """Run the Trainer on resolved data. Arguments and errors as in `train`.

    `others` are further models that the result depends on, by name; a resumed run must have the same. `extras` go to
    `trainer_class`.
    """
    untrained = _checksums(model)
    with ExitStack() as stack:
        folder = stack.enter_context(_checkpoint_folder(output_dir, resume))
        stack.enter_context(_caller_state(model, config))
        trainer, early = _build(model, data, config, folder, output_dir is not None, description, trainer_class, extras)
        last = None
        if output_dir is not None:
            last = _prepare_folder(trainer, config, folder, resume, partial(identity, model, data, others or {}))
        if last is None or not _is_finished(last, early):
            _run(trainer, last)
        else:
            trainer.state = TrainerState.load_from_json(str(last / "trainer_state.json"))
            best = folder / f"checkpoint-{trainer.state.best_global_step}"
            trainer.restore(best if trainer.args.load_best_model_at_end and best.is_dir() else last)
        state = trainer.state
        if broken := broken_weights(model):
            raise diverged(f"the trained model has {broken}", folder)
        if last is None:
            _check_changed(model, untrained, state.global_step, config)
    return TrainResult(
        model=model,
        steps=state.global_step,
        loss=next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None),
        history=_history(state),
        best=_best(state, trainer.args.metric_for_best_model),
        checkpoints=folder if output_dir is not None else None,
    )


_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def _checksums(model: nn.Module) -> list[Tensor]:
    """A sum over the bits of every parameter that learns: another one, where any value is another."""
    learning = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return [parameter.detach().view(_BITS[parameter.element_size()]).sum() for parameter in learning]


def _check_changed(model: nn.Module, before: list[Tensor], steps: int, config: Training) -> None:
    """Refuse a result that is what the model was before."""
    if all(torch.equal(old.cpu(), new.cpu()) for old, new in zip(before, _checksums(model), strict=True)):
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        raise UsageError(
            f"{steps} steps of training changed no weight: at learning_rate {config.learning_rate:g} the updates are "
            f"lost in the precision of weights in {dtype}, or no gradient reaches them. Load the model in float32 "
            "(precision 'bf16' computes in 16 bits all the same), or raise learning_rate or max_steps"
        )


def _build(
    model: PreTrainedModel,
    data: Data,
    config: Training,
    folder: Path,
    resumable: bool,
    description: str,
    trainer_class: type[Trainer],
    extras: dict[str, Any],
) -> tuple[Trainer, EarlyStopping | None]:
    arguments = training_arguments(
        config,
        folder,
        has_validation=data.validation is not None,
        metric=data.selection.name,
        greater_is_better=data.selection.greater_is_better,
        resumable=resumable,
    )
    if arguments.world_size > 1 and not resumable:
        raise UsageError("a run of several processes needs an output folder that all of them reach: pass output_dir")
    if config.tracking == "tensorboard" and not resumable and "TENSORBOARD_LOGGING_DIR" not in os.environ:
        raise UsageError("tracking 'tensorboard' writes files: pass output_dir, or set TENSORBOARD_LOGGING_DIR")
    if config.early_stopping is not None and data.validation is None:
        raise UsageError("early_stopping needs validation data, and there is none: leave it out, or add a split")
    loader, rows, sampler = None, None, None
    if isinstance(data.train, DataLoader):
        loader = data.train
    else:
        rows = SeededRows(data.train, data.renew, config.seed)
        lengths = lengths_of(data.train) if config.group_by_length else None
        group = config.batch_size * config.gradient_accumulation * arguments.world_size
        sampler = EpochSampler(len(rows), config.seed, lengths, group)
    early = None
    if config.early_stopping is not None:
        early = EarlyStopping(config.early_stopping, data.selection.name, data.selection.greater_is_better)
    callbacks = [
        Epochs(*(listener for listener in (sampler, rows) if listener is not None)),
        Interrupts(resumable),
        Checkpoints(config.save_every if resumable else None),
        Progress(description),
        *([early] if early is not None else []),
    ]
    trainer = trainer_class(
        model=model,
        args=arguments,
        data_collator=data.collate,
        train_dataset=rows,
        eval_dataset=None if data.validation is None else SeededRows(data.validation),
        compute_metrics=data.selection.compute,
        preprocess_logits_for_metrics=_first_output,
        callbacks=callbacks,
        sampler=sampler,
        loader=loader,
        loss=data.loss,
        **extras,
    )
    _drop_printers(trainer)
    return trainer, early


def _first_output(outputs: Any, labels: Any) -> Any:
    """The logits alone: models may give hidden states after them, which would fill the memory."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def _drop_printers(trainer: Trainer) -> None:
    """Trainer's own progress callbacks write to stdout, which belongs to data."""
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)


def _run(trainer: Trainer, last: Path | None) -> None:
    callbacks = trainer.callback_handler.callbacks
    interrupts = next(callback for callback in callbacks if isinstance(callback, Interrupts))
    progress = next(callback for callback in callbacks if isinstance(callback, Progress))
    try:
        with interrupts.watch():
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
    finally:
        progress.close()


@contextmanager
def _checkpoint_folder(output_dir: str | Path | None, resume: bool) -> Iterator[Path]:
    if output_dir is not None:
        yield Path(output_dir).resolve() / "checkpoints"
    elif resume:
        raise UsageError("resume needs the output_dir of the run to go on with")
    else:
        with tempfile.TemporaryDirectory(prefix="effitrans-") as folder:
            yield Path(folder)


@contextmanager
def _caller_state(model: PreTrainedModel, config: Training) -> Iterator[None]:
    """Give back what Trainer changes on the side: the global random state, the settings of the model's config."""
    use_cache = getattr(model.config, "use_cache", None)
    states = random.getstate(), np.random.get_state()
    own_forward = vars(model).get("forward")
    checkpointing = [
        (module, name, getattr(module, name))
        for module in model.modules()
        for name in ("gradient_checkpointing", "_gradient_checkpointing_func")
        if hasattr(module, name)
    ]
    with _quiet_transformers(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            model.eval()
            for module, name, value in checkpointing:
                setattr(module, name, value)
            # Autocast wraps model.forward. Accelerate's own way back goes too far: it takes decorators off too.
            vars(model).pop("_original_forward", None)
            vars(model).pop("forward", None)
            if own_forward is not None:
                model.forward = own_forward  # type: ignore[method-assign]
            random.setstate(states[0])
            np.random.set_state(states[1])
            if use_cache is None:
                vars(model.config).pop("use_cache", None)
            else:
                model.config.use_cache = use_cache


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bar for each checkpoint that is saved, no note on how their age is told; both are restored."""
    had_bars = transformers.utils.logging.is_progress_bar_enabled()
    rotation = logging.getLogger("transformers.trainer_utils")
    level = rotation.level
    transformers.utils.logging.disable_progress_bar()
    rotation.setLevel(logging.ERROR)
    try:
        yield
    finally:
        rotation.setLevel(level)
        if had_bars:
            transformers.utils.logging.enable_progress_bar()


def _prepare_folder(
    trainer: Trainer, config: Training, folder: Path, resume: bool, identify: Callable[[], dict[str, str | None]]
) -> Path | None:
    """The checkpoint to go on from, after clearing away what is incomplete; None for a run from the start."""
    if trainer.is_world_process_zero():
        settings = {
            "processes": trainer.args.world_size,
            "config": config.model_dump(mode="json"),
            "identity": identify(),
        }
        _check_settings(folder, settings, resume)
        remove_incomplete(folder)
        write_text(folder / "settings.json", json.dumps(settings, indent=1))
    trainer.accelerator.wait_for_everyone()
    kept = complete_checkpoints(folder)
    if kept:
        logger.info("resuming from %s", kept[-1])
    elif resume:
        logger.info("nothing to resume in %s: starting at the first step", folder)
    return kept[-1] if kept else None


def _check_settings(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    file = folder / "settings.json"
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"{folder} holds the checkpoints of another run: pass resume=True (--resume) to go on with it, "
            "or delete the folder"
        )
    if not file.is_file():
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UsageError(f"{file} is damaged ({error}): delete {folder} and start again") from error
    old, new = ({"processes": s["processes"], **s["config"]} for s in (before, settings))
    if changed := sorted(name for name in {*old, *new} if old.get(name) != new.get(name)):
        name = changed[0]
        raise UsageError(
            f"cannot resume with other settings: {name} was {old.get(name)!r} and is now {new.get(name)!r}. "
            f"Use the same settings, or delete {folder} and start again."
        )
    old, new = before.get("identity", {}), settings["identity"]
    if changed := [name for name in new if old.get(name) != new[name]]:
        raise UsageError(
            f"cannot resume with another {changed[0]} than the run in {folder} was started with. "
            "Pass the same, or delete the folder and start again."
        )


def _is_finished(last: Path, early: EarlyStopping | None) -> bool:
    """Whether the run that wrote this checkpoint had come to its end."""
    state = TrainerState.load_from_json(str(last / "trainer_state.json"))
    return state.global_step >= state.max_steps or (early is not None and early.is_over(state))


def _history(state: TrainerState) -> list[dict[str, float]]:
    kept = (entry for entry in state.log_history if "train_runtime" not in entry)
    return [{name: value for name, value in entry.items() if not is_timing(name)} for entry in kept]


def _best(state: TrainerState, metric: str | None) -> dict[str, Any] | None:
    if state.best_metric is None or metric is None:
        return None
    return {"metric": metric.removeprefix("eval_"), "value": state.best_metric, "step": state.best_global_step}
