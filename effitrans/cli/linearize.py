"""`effitrans linearize`: convert the softmax attention of a trained model."""

from typing import Annotated

import typer

from effitrans.cli import options
from effitrans.cli.app import start
from effitrans.cli.prune import ModelArgument


def command(
    context: typer.Context,
    model: ModelArgument,
    task: options.TaskName,
    output: options.Output,
    attention: Annotated[str, typer.Option("--attention", help="Attention operator: linear, hybrid, ...")] = "linear",
    layers: Annotated[
        str | None, typer.Option("--layers", help="Layers to convert: 0-3, 0,2,5, best:4 or error:0.2.")
    ] = None,
    transfer_epochs: Annotated[
        float,
        typer.Option("--transfer-epochs", help="Epochs in which operators learn the outputs of softmax attention."),
    ] = 1.0,
    transfer_learning_rate: Annotated[
        float, typer.Option("--transfer-learning-rate", help="Peak learning rate of these epochs.")
    ] = 1e-3,
    objective: Annotated[
        str, typer.Option("--objective", help="What is learned from the original model afterwards; see distill.")
    ] = "response,feature",
    lora_rank: Annotated[
        int | None,
        typer.Option("--lora-rank", help="Learn updates of this rank instead of all weights (needs peft).", min=1),
    ] = None,
    epochs: options.Epochs = 1.0,
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
    optimize: options.Optimize = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Convert softmax attention to another operator: attention transfer, then distillation from the original model.

    [bold]Examples[/]

      effitrans linearize runs/teacher --task sst2 --attention hybrid --set window=16 --output runs/hybrid

      effitrans linearize runs/teacher --task sst2 --set feature_map=hedgehog --lora-rank 8 --output runs/linear
    """
    start()
    options.refuse_optimize(context)
    options.refuse_both_durations(context)
    from effitrans.cli.distill import objectives_of
    from effitrans.cli.one_pass import run_pass
    from effitrans.cli.train import options_to_fields

    fields = options_to_fields(
        assignments,
        attention=attention,
        layers=layers,
        transfer={"epochs": transfer_epochs, "learning_rate": transfer_learning_rate},
        objective=objectives_of(objective),
        lora_rank=lora_rank,
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
        [("linearize", fields)],
        model=model,
        task=task,
        output=output,
        overwrite=overwrite,
        resume=resume,
        seed=seed,
        split=split,
        cost=cost,
        optimize=optimize,
    )
