"""`effitrans distill`: teach a smaller model what a larger one knows."""

from typing import Annotated, Any

import typer

from effitrans.cli import options
from effitrans.cli.app import start
from effitrans.errors import UsageError


def command(
    context: typer.Context,
    teacher: Annotated[
        str, typer.Option("--teacher", help="A fine-tuned model: folder or hub name.", show_default=False)
    ],
    student: Annotated[
        str,
        typer.Option(
            "--student",
            help="layers=N,hidden=N,heads=N,ffn=N (what is kept of the teacher; layers=0-2,5 for certain layers), "
            "base[:key=value,...], a folder or a hub name.",
            show_default=False,
        ),
    ],
    task: options.TaskName,
    output: options.Output,
    objective: Annotated[
        str,
        typer.Option(
            "--objective",
            help="response, logit_mse, dkd, embedding; feature, cosine, pkd, embeddings, feed_forward; attention, "
            "relation, rkd; several with a comma.",
        ),
    ] = "response,feature",
    teachers: Annotated[
        list[str] | None,
        typer.Option("--also", help="A further teacher, MODEL or MODEL=WEIGHT; may be given several times."),
    ] = None,
    temperature: Annotated[float, typer.Option("--temperature", help="Softens both distributions.")] = 2.0,
    cache: Annotated[
        bool,
        typer.Option("--cache/--no-cache", help="Run the teacher once and keep its outputs on disk."),
    ] = False,
    sequence_level: Annotated[
        bool, typer.Option("--sequence-level", help="Train on what the teacher writes (encoder-decoders).")
    ] = False,
    control: Annotated[
        bool,
        typer.Option("--control", help="Train it without the teacher too, and say so where that ends better."),
    ] = False,
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
    seed: options.Seed = 0,
    optimize: options.Optimize = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Distill a teacher into a student.

    [bold]Examples[/]

      effitrans distill --teacher runs/teacher --student layers=3 --task sst2 --output runs/student

      effitrans distill --teacher runs/teacher --student base:hidden_size=128 --task sst2 --output runs/small

      effitrans distill --teacher runs/teacher --student layers=3 --task sst2 --output runs/student --set alpha=0.9
      --set layer_mapping=last --set "objective={response: 1, feature: 0.5}"
    """
    start()
    options.refuse_both_durations(context)
    from effitrans.cli.one_pass import run_pass
    from effitrans.cli.train import options_to_fields
    from effitrans.distillation import OBJECTIVES

    fields = options_to_fields(
        assignments,
        student=student,
        objective=objective,
        teachers=dict(_weighted(text) for text in teachers) if teachers else None,
        temperature=temperature,
        sequence_level=sequence_level,
        control=control,
        cache=cache,
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
    asked: Any = fields["objective"]
    names = [name.strip() for name in asked.split(",")] if isinstance(asked, str) else list(asked)
    if fields["cache"] and any(name in OBJECTIVES and OBJECTIVES[name].reads_states for name in names):
        fields.setdefault("cache_hidden_states", True)
    run_pass(
        [("distill", fields)],
        model=teacher,
        task=task,
        output=output,
        overwrite=overwrite,
        resume=resume,
        seed=seed,
        split=split,
        optimize=optimize,
    )


def _weighted(text: str) -> tuple[str, float]:
    """MODEL and its weight, 1 where none is given."""
    name, separator, weight = text.rpartition("=")
    if not separator:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError as error:
        raise UsageError(f"--also: expected MODEL or MODEL=WEIGHT with a number, received {text!r}") from error
