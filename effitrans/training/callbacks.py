"""What happens between the steps: progress, logging at checkpoints, early stopping, Ctrl-C, completeness."""

import logging
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from effitrans.errors import TrainingDiverged
from effitrans.training.checkpoints import complete_checkpoints, mark_complete

logger = logging.getLogger(__name__)


class HasEpoch(Protocol):
    """A sampler or collator whose output depends on the epoch."""

    def set_epoch(self, epoch: int) -> None: ...


class Epochs(TrainerCallback):
    """Tells samplers and collators which epoch begins, also in a run that resumes in the middle of one."""

    def __init__(self, *listeners: HasEpoch) -> None:
        self.listeners = listeners

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for listener in self.listeners:
            listener.set_epoch(int(state.epoch or 0))


class Progress(TrainerCallback):
    """A bar on stderr where that is a terminal, log lines otherwise. Evaluations are always logged."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.bar: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        from tqdm.auto import tqdm

        if state.is_world_process_zero and sys.stderr.isatty():
            self.bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self.description, file=sys.stderr, leave=False
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs:
            return
        evaluated = {name: value for name, value in logs.items() if name.startswith("eval_") and not is_timing(name)}
        if evaluated:
            figures = ", ".join(f"{name.removeprefix('eval_')} {value:.4g}" for name, value in evaluated.items())
            logger.info("step %d of %d: validation %s", state.global_step, state.max_steps, figures)
        elif "loss" in logs and self.bar is not None:
            self.bar.set_postfix(loss=f"{logs['loss']:.4g}")
        elif "loss" in logs:
            logger.info("step %d of %d: loss %.4g", state.global_step, state.max_steps, logs["loss"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar; also after an error."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def is_timing(name: str) -> bool:
    """Whether a logged value measures time, and so differs between equal runs."""
    return name.endswith(("_runtime", "_per_second", "_jit_compilation_time"))


class Checkpoints(TrainerCallback):
    """Extra checkpoints every `save_every` steps, no checkpoint of broken weights, and a mark on complete ones.

    The training loss is logged just before each checkpoint, so that a resumed run has lost no part of a mean.
    """

    def __init__(self, save_every: int | None) -> None:
        self.save_every = save_every

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        due = self.save_every is not None and state.global_step % self.save_every == 0
        if due and not saves_at_epoch_end(args, state):
            control.should_save = True
        if state.global_step >= state.max_steps:
            control.should_log = True
        self._before_save(args, state, control, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._before_save(args, state, control, kwargs["model"])

    def _before_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: torch.nn.Module
    ) -> None:
        if not control.should_save:
            return
        control.should_log = True
        if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
            raise diverged(
                f"the weights became NaN or infinite at step {state.global_step}", Path(str(args.output_dir))
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # every process has written its random state
        if state.is_world_process_zero:
            mark_complete(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")


def _at_epoch_end(state: TrainerState) -> bool:
    return float(state.epoch or 0).is_integer()


def saves_at_epoch_end(args: TrainingArguments, state: TrainerState) -> bool:
    """Whether this step is the last of its epoch and its checkpoint comes after the evaluation that ends it.

    One written before would let a resumed run skip that evaluation.
    """
    return args.save_strategy == "epoch" and _at_epoch_end(state)


def diverged(what: str, folder: Path) -> TrainingDiverged:
    """The error for a run whose numbers broke, with the checkpoint to go back to."""
    kept = complete_checkpoints(folder)
    where = f"The last good checkpoint is {kept[-1]}." if kept else "No checkpoint had been written yet."
    return TrainingDiverged(
        f"training diverged: {what}. {where} Lower the learning rate, use precision 'fp32' or 'bf16', "
        "or look for broken examples in the data."
    )


def evaluations_since_best(history: Iterable[Mapping[str, Any]], metric: str, greater_is_better: bool) -> int:
    """How many evaluations in a Trainer's log came after the best one.

    >>> log = [{"eval_loss": 2.0}, {"eval_loss": 1.0}, {"loss": 9.0}, {"eval_loss": 1.0}]
    >>> evaluations_since_best(log, "eval_loss", greater_is_better=False)
    1
    """
    values = [entry[metric] for entry in history if metric in entry]
    best = (max if greater_is_better else min)(values, default=None)
    return len(values) - 1 - values.index(best) if values else 0


class EarlyStopping(TrainerCallback):
    """Stops after `patience` evaluations without a better one.

    It looks at the log, which checkpoints carry, and keeps no state: a resumed run stops where the first would.
    """

    def __init__(self, patience: int, metric: str, greater_is_better: bool) -> None:
        self.patience, self.metric, self.greater_is_better = patience, metric, greater_is_better

    def is_over(self, state: TrainerState) -> bool:
        """Whether the run that led to this state has stopped."""
        return evaluations_since_best(state.log_history, self.metric, self.greater_is_better) >= self.patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.is_over(state):
            control.should_training_stop = True


class Interrupts(TrainerCallback):
    """Ctrl-C finishes the step, writes a checkpoint and stops; a second one stops at once."""

    def __init__(self, resumable: bool) -> None:
        self.resumable = resumable
        self.received = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Handle SIGINT inside the block; at its end raise KeyboardInterrupt if one came.

        Left alone: threads other than the main one, and runs of several processes, whose steps must stay
        together; there the last regular checkpoint is what a resumed run starts from.
        """
        several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        if threading.current_thread() is not threading.main_thread() or several:
            yield
            return
        previous = signal.signal(signal.SIGINT, self._receive)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)
        if self.received:
            raise KeyboardInterrupt

    def _receive(self, signum: int, frame: Any) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        ending = "writing a checkpoint after this step" if self.resumable else "ending after this step"
        logger.warning("interrupted: %s (Ctrl-C again stops at once)", ending)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.received:
            control.should_training_stop = True
            if self.resumable and not saves_at_epoch_end(args, state):
                control.should_save = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.received and not _at_epoch_end(state):
            control.should_evaluate = False  # Trainer ends the epoch early; the resumed run will end it
            control.should_save = False
