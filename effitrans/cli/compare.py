"""`effitrans compare`: several models side by side, on one page."""

from pathlib import Path
from typing import Annotated

import typer

from effitrans.cli import options
from effitrans.cli.app import err, out, start

app = typer.Typer(no_args_is_help=True)


@app.command("recipes")
def recipes_command(
    study: Annotated[str, typer.Argument(help="A study: a YAML file, or the name of one that comes with effitrans.")],
    output: options.Output,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the study and list its runs, without running anything.")
    ] = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Run every variant of a study with every seed, and draw the page with intervals over the seeds.

    A study names a task, a model, steps that all variants share, and the steps of each variant.

    [bold]Examples[/]

      effitrans compare recipes distillation-sst2 --output runs/distillation

      effitrans compare recipes study.yaml --output runs/study --resume
    """
    start()
    from effitrans.recipes import load_study, run_study
    from effitrans.reporting import scorecard

    if dry_run:
        for one in load_study(study).runs(output):
            verbs = " -> ".join(f"{step.verb} {step.values}" for step in one.recipe.steps)
            out.print(f"{one.variant}, seed {one.seed}: {verbs}", markup=False, highlight=False)
        return
    out.print(scorecard(run_study(study, output, resume=resume, overwrite=overwrite)))
    err.print(f"report  {output / 'report.html'}")


@app.command("models")
def models_command(
    models: Annotated[list[str], typer.Argument(help="Model folders or hub names; the first is the baseline.")],
    task: options.TaskName,
    output: options.Output,
    split: options.Split = "test",
    limit: Annotated[int | None, typer.Option("--limit", help="Score at most this many examples.", min=1)] = None,
    cost: Annotated[bool, typer.Option("--cost/--no-cost", help="Measure latency, memory and size too.")] = True,
    optimize: options.Optimize = False,
    seed: options.Seed = 0,
    gate: Annotated[
        list[str] | None,
        typer.Option("--gate", help="A condition that every model but the first must meet; exit code 3 when missed."),
    ] = None,
    tracking: options.Tracking = "none",
    overwrite: options.Overwrite = False,
) -> None:
    """Score models on one task, each beside the first, and draw the page that compares them.

    [bold]Examples[/]

      effitrans compare models runs/teacher runs/student runs/small --task sst2 --output runs/compared

      effitrans compare models runs/teacher runs/small -t sst2 -o runs/compared --gate "accuracy>=0.99*baseline"
    """
    start()
    from effitrans.errors import UsageError
    from effitrans.evaluation import Cost, evaluate
    from effitrans.evaluation.gates import require
    from effitrans.evaluation.harness import folder_name
    from effitrans.evaluation.tracking import check_tracker, track
    from effitrans.files import output_directory
    from effitrans.loading import resolve_alias
    from effitrans.reporting import report, scorecard

    check_tracker(tracking)
    names = [folder_name(Path(model)) for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two models are called {', '.join(twice)}: give folders whose last names differ")
    with output_directory(output, overwrite) as folder:
        records = []
        for number, (name, model) in enumerate(zip(names, models, strict=True)):
            record = evaluate(
                resolve_alias(model),
                task,
                split=split,
                baseline=resolve_alias(models[0]) if number else None,
                cost=Cost() if cost else None,
                limit=limit,
                optimize=optimize,
                seed=seed,
                name=name,
            )
            record.save(folder / "records" / f"{number:02d}-{name.replace('/', '-')}.json")
            records.append(record)
        report(records, folder / "report.html")
    out.print(scorecard(records))
    err.print(f"report  {output / 'report.html'}")
    for record in records:
        track(record, tracking, output.with_name(f"{output.name}.tensorboard"))
    for record in records[1:]:
        require(record, gate or [])
