"""Options that several commands take, said once."""

from pathlib import Path
from typing import Annotated

import typer

from effitrans.cli.app import can_resume
from effitrans.errors import UsageError

Output = Annotated[Path, typer.Option("--output", "-o", help="Output folder.", show_default=False)]
TaskName = Annotated[str, typer.Option("--task", "-t", help="Built-in task or task YAML.", show_default=False)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder.")]
Resume = Annotated[
    bool, typer.Option("--resume", callback=can_resume, help="Resume an interrupted run of the same command.")
]
Seed = Annotated[int, typer.Option("--seed", help="Seed of weights, data order and sampling.")]
Split = Annotated[str, typer.Option("--split", help="Split that the result is scored on.")]
Optimize = Annotated[
    bool | None,
    typer.Option(
        "--optimize/--no-optimize",
        help="Time the model compiled by effitrans.optimize, or as it is. Default: compiled if it has integer layers.",
        show_default=False,
    ),
]
Measured = Annotated[bool, typer.Option("--cost/--no-cost", help="Measure latency, memory and size too.")]
Epochs = Annotated[float, typer.Option("--epochs", help="Passes over the training data.", min=0)]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", help="Stop after this many optimizer steps.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Examples per training batch.", min=1)]
LearningRate = Annotated[float, typer.Option("--learning-rate", "--lr", help="Peak learning rate.")]
Precision = Annotated[str, typer.Option("--precision", help="fp32, bf16 or fp16 (autocast).")]
Accumulation = Annotated[int, typer.Option("--gradient-accumulation", help="Batches per optimizer step.", min=1)]
Tracking = Annotated[str, typer.Option("--tracking", help="none, tensorboard, wandb or trackio.")]
EarlyStopping = Annotated[
    int | None, typer.Option("--early-stopping", help="Stop after this many evaluations without improvement.")
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="A setting key=value; may be given several times.")
]


def refuse_idle(context: typer.Context, is_idle: bool, why: str, *names: str) -> None:
    """Refuse options that stand on the command line and that nothing will read.

    Args:
        context: of the command.
        is_idle: whether the options have no effect beside the others.
        why: continues "no effect" ("without --task").
        names: of the command's parameters.
    """
    given = [
        (p.secondary_opts if p.secondary_opts and context.params[p.name or ""] is False else p.opts)[0]
        for p in context.command.params
        if p.name in names and (source := context.get_parameter_source(p.name)) and source.name == "COMMANDLINE"
    ]
    if is_idle and given:
        raise UsageError(f"{', '.join(given)}: no effect {why}, leave {'it' if len(given) == 1 else 'them'} out")


def refuse_optimize(context: typer.Context) -> None:
    """Refuse `--optimize` and `--no-optimize` where nothing is timed."""
    refuse_idle(context, not context.params["cost"], "with --no-cost", "optimize")


def refuse_both_durations(context: typer.Context) -> None:
    """Refuse `--epochs` beside `--max-steps`, which decides alone."""
    refuse_idle(context, context.params["max_steps"] is not None, "beside --max-steps", "epochs")
