"""`effitrans compare`: several models side by side, on one page."""

from pathlib import Path
from typing import Annotated

import typer

from effitrans.cli import options
from effitrans.cli.app import err, out, start

app = typer.Typer(no_args_is_help=True)


@app.command("recipes")
def recipes_command(
    context: typer.Context,
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
    options.refuse_idle(context, resume, "beside --resume", "overwrite")
    from effitrans.files import check_output_directory
    from effitrans.recipes import check_study, load_study, run_study
    from effitrans.reporting import scorecard

    if dry_run:
        loaded = load_study(study)
        check_study(loaded, check_output_directory(output, overwrite or resume))
        for one in loaded.runs(output):
            verbs = " -> ".join(f"{step.verb} {step.values}" for step in one.recipe.steps)
            out.print(f"{one.variant}, seed {one.seed}: {verbs}", markup=False, highlight=False)
        return
    out.print(scorecard(run_study(study, output, resume=resume, overwrite=overwrite)))
    err.print(f"report  {output / 'report.html'}")


@app.command("attention")
def attention_command(
    context: typer.Context,
    task: options.TaskName,
    output: options.Output,
    variants: Annotated[
        str, typer.Option("--variants", help="Operators, or LABEL=OPERATOR; the first is the baseline.")
    ] = "full,local,strided,block_sparse,linear,performer,linformer,nystrom,hybrid",
    model: Annotated[str, typer.Option("--model", help="What every variant starts from.")] = "base",
    seeds: Annotated[int, typer.Option("--seeds", help="Number of seeds, from 0.", min=1, max=1000)] = 3,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="VARIANT.FIELD=VALUE for an operator; several times."),
    ] = None,
    epochs: options.Epochs = 3.0,
    max_steps: options.MaxSteps = None,
    batch_size: options.BatchSize = 32,
    learning_rate: options.LearningRate = 1e-3,
    split: options.Split = "test",
    limit: Annotated[int | None, typer.Option("--limit", help="Score at most this many examples.", min=1)] = None,
    lengths: Annotated[
        str, typer.Option("--lengths", help="Lengths where time and memory are measured; or none.")
    ] = "256,512,1024,2048,4096,8192,16384",
    repeats: Annotated[int, typer.Option("--repeats", help="Rounds of the timing.", min=1)] = 3,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Train the same model with each attention operator, and measure what each costs by length.

    All variants of a seed share the initial weights and the order of the data.

    [bold]Examples[/]

      effitrans compare attention --task listops --output runs/attention-listops

      effitrans compare attention -t mqar --model base:form=decoder --variants full,local,linear,gated=linear
      --set gated.decay_gate=true --set local.window=16 --output runs/attention-mqar
    """
    start()
    options.refuse_idle(context, lengths == "none", "with --lengths none", "repeats")
    options.refuse_both_durations(context)
    options.refuse_idle(context, resume, "beside --resume", "overwrite")
    from effitrans.errors import UsageError
    from effitrans.recipes.attention import attention_study, compare_attention, parse_variants
    from effitrans.reporting import scorecard
    from effitrans.reporting.scaling import scaling_markdown
    from effitrans.tasks.loading import parse_assignment

    settings = dict(parse_assignment(text) for text in assignments or [])
    operators = parse_variants(variants.split(","), settings)
    asked = [] if lengths == "none" else lengths.split(",")
    if wrong := [length for length in asked if not length.strip().isdigit() or int(length) < 1]:
        raise UsageError(f"--lengths: expected whole numbers such as 256,1024 or none, received {wrong[0]!r}")
    training = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    if max_steps is not None:
        training["max_steps"] = max_steps
    study = attention_study(
        task, operators, model=model, seeds=range(seeds), training=training, split=split, limit=limit
    )
    records, cells = compare_attention(
        study,
        operators,
        output,
        lengths=[int(length) for length in asked],
        repeats=repeats,
        resume=resume,
        overwrite=overwrite,
    )
    out.print(scorecard(records))
    if cells:
        out.print(scaling_markdown(cells), markup=False, highlight=False)
    err.print(f"report  {output / 'report.html'}")


@app.command("models")
def models_command(
    context: typer.Context,
    models: Annotated[list[str], typer.Argument(help="Model folders or hub names; the first is the baseline.")],
    task: options.TaskName,
    output: options.Output,
    split: options.Split = "test",
    limit: Annotated[int | None, typer.Option("--limit", help="Score at most this many examples.", min=1)] = None,
    cost: Annotated[bool, typer.Option("--cost/--no-cost", help="Measure latency, memory and size too.")] = True,
    optimize: options.Optimize = None,
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
    options.refuse_idle(context, not cost, "with --no-cost", "optimize")
    options.refuse_idle(context, len(models) == 1, "with one model", "gate")
    from effitrans.checkpoint import require_model
    from effitrans.errors import UsageError
    from effitrans.evaluation import Cost, evaluate
    from effitrans.evaluation.gates import check_gates, require
    from effitrans.evaluation.harness import folder_name
    from effitrans.evaluation.tracking import check_tracker, track
    from effitrans.files import output_directory
    from effitrans.recipes.check import check_models
    from effitrans.reporting import report, scorecard
    from effitrans.tasks import load_task

    check_tracker(tracking)
    check_gates(gate or [], load_task(task).metrics, compared=True, measured=cost)
    names = [folder_name(Path(model)) for model in models]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"two models are called {', '.join(twice)}: give folders whose last names differ")
    sources = [require_model(model) for model in models]
    with output_directory(output, overwrite) as folder:
        check_models(load_task(task), models, split)
        records = []
        for number, (name, source) in enumerate(zip(names, sources, strict=True)):
            record = evaluate(
                source,
                task,
                split=split,
                baseline=sources[0] if number else None,
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
