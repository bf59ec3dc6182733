"""Options that several commands take, said once."""

from pathlib import Path
from typing import Annotated

import typer

from effitrans.cli.app import can_resume

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to be made.", show_default=False)]
TaskName = Annotated[str, typer.Option("--task", "-t", help="Built-in task or task YAML.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder.")]
Resume = Annotated[
    bool, typer.Option("--resume", callback=can_resume, help="Go on where a killed run of the same command was.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of weights, data order and sampling.")]
Split = Annotated[str, typer.Option("--split", help="Split that the result is scored on.")]
Optimize = Annotated[
    bool, typer.Option("--optimize/--no-optimize", help="Time the model compiled by effitrans.optimize.")
]
Epochs = Annotated[float, typer.Option("--epochs", help="Passes over the training data.", min=0)]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", help="Stop after this many optimizer steps.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Examples a training batch.", min=1)]
LearningRate = Annotated[float, typer.Option("--learning-rate", "--lr", help="Peak learning rate.")]
Precision = Annotated[str, typer.Option("--precision", help="fp32, bf16 or fp16 (autocast).")]
Accumulation = Annotated[int, typer.Option("--gradient-accumulation", help="Batches an optimizer step.", min=1)]
Tracking = Annotated[str, typer.Option("--tracking", help="none, tensorboard, wandb or trackio.")]
EarlyStopping = Annotated[
    int | None, typer.Option("--early-stopping", help="Stop after this many evaluations without improvement.")
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="A setting key=value; may be given several times.")
]
