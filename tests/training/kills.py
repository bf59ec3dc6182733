"""Ways for a run to end before its end: `python -m tests.training.kills OUTPUT RUN WHEN` kills itself with SIGKILL."""

import os
import signal
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from effitrans import Distillation, Training, distill, load_task, make_student, train
from effitrans.tasks import build_processor
from effitrans.training import callbacks
from effitrans.training.callbacks import Interrupts
from tests.training.helpers import SIZES, bert, splits

SETTINGS = {"epochs": 3, "batch_size": 8, "learning_rate": 2e-3, "save_every": 5, "log_every": 4}


def run_training(output, resume=False):
    """BERT with dropout on sentences of mixed length: 12 steps an epoch, an evaluation each, checkpoints in between."""
    return train(bert(), splits(), Training(**SETTINGS), output_dir=output, resume=resume)


def run_distillation(output, resume=False):
    """A narrow student, so that there are projections, with dropout, under a deeper teacher."""
    teacher = bert(seed=7, num_hidden_layers=3, hidden_size=48).eval()
    config = Distillation(**SETTINGS, objective="response,feature")
    return distill(bert(), teacher, splits(), config, output_dir=output, resume=resume)


def run_shallow_copy(output, resume=False):
    """A student of the teacher's width, whose objectives have nothing to learn."""
    teacher = bert(seed=7, num_hidden_layers=3).eval()
    return distill(make_student(teacher, "layers=2"), teacher, splits(), Distillation(**SETTINGS), output_dir=output,
                   resume=resume)  # fmt: skip


def run_masked(output, resume=False):
    """Masked language modelling, whose collator draws other masks every time."""
    torch.manual_seed(0)
    text = [" ".join(str((i * j) % 17) for j in range(6)) for i in range(120)]
    files = {}
    for split, lines in (("train", text), ("validation", text[:20])):
        files[split] = Path(output).parent / f"{split}.txt"
        files[split].write_text("\n".join(lines))
    task = load_task(
        {
            "name": "numbers",
            "kind": "masked-lm",
            "data": {split: str(file) for split, file in files.items()},
            "inputs": "text",
            "max_length": 10,
            "tokenizer": {"method": "words", "vocab_size": 40},
        }
    )
    tokenizer = build_processor(task)
    config = AutoConfig.for_model("effitrans", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SIZES)
    model = AutoModelForMaskedLM.from_config(config)
    return train(model, task, Training(**SETTINGS, max_train_examples=96), processor=tokenizer, output_dir=output,
                 resume=resume)  # fmt: skip


RUNS = {"train": run_training, "distill": run_distillation, "copy": run_shallow_copy, "masked": run_masked}


def at_step(step, action):
    """Do something after an optimizer step, before a checkpoint of it could be written."""
    original = Interrupts.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            action()
        original(self, args, state, control, **kwargs)

    Interrupts.on_step_end = on_step_end  # type: ignore[method-assign]
    return lambda: setattr(Interrupts, "on_step_end", original)


def in_save(step, action):
    """Do something while a checkpoint is written: its files are there, and one of them is cut short."""
    original = callbacks.mark_complete

    def mark_complete(checkpoint: Path):
        if checkpoint.name == f"checkpoint-{step}":
            (checkpoint / "optimizer.pt").write_bytes(b"half")
            action()
        original(checkpoint)

    callbacks.mark_complete = mark_complete
    return lambda: setattr(callbacks, "mark_complete", original)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    folder, run, when, number = sys.argv[1:]
    {"step": at_step, "save": in_save}[when](int(number), kill)
    RUNS[run](folder)
