"""`effitrans train`: fine-tune a model, or train a base Transformer from scratch."""

from typing import Annotated

import typer

from effitrans.cli import options
from effitrans.cli.app import start


def command(
    context: typer.Context,
    model: Annotated[str, typer.Option("--model", "-m", help="Folder, hub name, minilm, or base.", show_default=False)],
    task: options.TaskName,
    output: options.Output,
    epochs: options.Epochs = 3.0,
    max_steps: options.MaxSteps = None,
    batch_size: options.BatchSize = 32,
    learning_rate: options.LearningRate = 1e-4,
    precision: options.Precision = "fp32",
    gradient_accumulation: options.Accumulation = 1,
    early_stopping: options.EarlyStopping = None,
    tracking: options.Tracking = "none",
    assignments: options.Assignments = None,
    split: options.Split = "test",
    cost: options.Measured = True,
    seed: options.Seed = 0,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Train a model on a task.

    [bold]Examples[/]

      effitrans train --model base --task digits --output runs/digits --set hidden_size=64

      effitrans train --model minilm --task sst2 --output runs/teacher --epochs 3

      torchrun --nproc-per-node 2 -m effitrans train --model minilm --task sst2 --output runs/teacher
    """
    start()
    options.refuse_both_durations(context)
    from effitrans.cli.one_pass import run_pass

    fields = options_to_fields(
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        precision=precision,
        gradient_accumulation=gradient_accumulation,
        early_stopping=early_stopping,
        tracking=tracking,
        seed=seed,
    )
    run_pass(
        [("train", fields)],
        model=model,
        task=task,
        output=output,
        overwrite=overwrite,
        resume=resume,
        seed=seed,
        split=split,
        cost=cost,
        assignments=assignments,
    )


def options_to_fields(assignments: list[str] | None = None, /, **values: object) -> dict[str, object]:
    """The options that were given, as config fields; what `--set` assigns stands in place of an option.

    >>> options_to_fields(["cache.top_k=8"], cache=True, epochs=None)
    {'cache': {'top_k': 8}}
    """
    from effitrans.recipes.schema import set_at
    from effitrans.tasks.loading import parse_assignment

    fields = {name: value for name, value in values.items() if value is not None}
    for text in assignments or ():
        path, value = parse_assignment(text)
        set_at(fields, path.split("."), path, value)
    return fields
