"""`effitrans distill`: train a smaller model under a larger one."""

from typing import Annotated, Any

import typer

from effitrans.cli import options
from effitrans.cli.app import start
from effitrans.errors import UsageError


def command(
    context: typer.Context,
    teacher: Annotated[
        str, typer.Option("--teacher", help="Fine-tuned model: folder or hub name.", show_default=False)
    ],
    student: Annotated[
        str,
        typer.Option(
            "--student",
            help="layers=N,hidden=N,heads=N,ffn=N (what is kept of the teacher; layers=0-2,5 keeps these layers), "
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
            help="Objectives, separated by commas: response, feature, relation, ... (`effitrans recipes schema` "
            "lists all with their settings).",
        ),
    ] = "response,feature",
    teachers: Annotated[
        list[str] | None,
        typer.Option("--also", help="Further teacher, MODEL or MODEL=WEIGHT; can be repeated."),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="Temperature of response and dkd. Default: 2.", show_default=False),
    ] = None,
    cache: Annotated[
        bool,
        typer.Option("--cache/--no-cache", help="Run the teacher once and store its outputs on disk."),
    ] = False,
    sequence_level: Annotated[
        bool,
        typer.Option(
            "--sequence-level", help="Train on the teacher's outputs instead of the targets (encoder-decoders)."
        ),
    ] = False,
    no_teacher_baseline: Annotated[
        bool,
        typer.Option(
            "--no-teacher-baseline", help="Also train the student without the teacher, and warn if it ends better."
        ),
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
    cost: options.Measured = True,
    seed: options.Seed = 0,
    optimize: options.Optimize = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Train a student under a teacher.

    [bold]Examples[/]

      effitrans distill --teacher runs/teacher --student layers=3 --task sst2 --output runs/student

      effitrans distill --teacher runs/teacher --student base:hidden_size=128 --task sst2 --output runs/small

      effitrans distill --teacher runs/teacher --student layers=3 --task sst2 --output runs/student --set alpha=0.9
      --set objective.feature.layer_mapping=last --set objective.feature.weight=0.5
    """
    start()
    options.refuse_optimize(context)
    options.refuse_both_durations(context)
    from effitrans.cli.one_pass import run_pass
    from effitrans.cli.train import options_to_fields

    fields = options_to_fields(
        assignments,
        student=student,
        objective=objectives_of(objective),
        teachers=dict(_weighted(text) for text in teachers) if teachers else None,
        sequence_level=sequence_level or None,
        no_teacher_baseline=no_teacher_baseline or None,
        cache=cache or None,
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
    if temperature is not None:
        fields["objective"] = _softened(fields["objective"], temperature)
    run_pass(
        [("distill", fields)],
        model=teacher,
        task=task,
        output=output,
        overwrite=overwrite,
        resume=resume,
        seed=seed,
        split=split,
        cost=cost,
        optimize=optimize,
    )


def objectives_of(value: Any) -> dict[str, dict[str, Any]]:
    """Objective -> the settings that were given, in which `--set objective.NAME.SETTING` finds its place."""
    from effitrans.distillation.objectives.settings import parse_objectives

    return {name: config.model_dump(exclude_unset=True) for name, config in parse_objectives(value).items()}


def _softened(objective: Any, temperature: float) -> dict[str, dict[str, Any]]:
    """The objectives with this temperature, unless `--set` gives them another."""
    from effitrans.distillation.objectives import OBJECTIVES

    asked = objectives_of(objective)
    softened = [name for name in asked if "temperature" in OBJECTIVES[name].config_class.model_fields]
    if not softened:
        raise UsageError("--temperature: no effect without objective response or dkd, leave it out")
    return {**asked, **{name: {"temperature": temperature, **asked[name]} for name in softened}}


def _weighted(text: str) -> tuple[str, float]:
    """MODEL and its weight, 1 where none is given."""
    name, separator, weight = text.rpartition("=")
    if not separator:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError as error:
        raise UsageError(f"--also: expected MODEL or MODEL=WEIGHT with a number, received {text!r}") from error
