"""`effitrans run`: a recipe from its first step to the report."""

from pathlib import Path
from typing import Annotated

import typer

from effitrans.cli import options
from effitrans.cli.app import err, out, start
from effitrans.cli.options import Assignments, Overwrite, Resume, Tracking
from effitrans.errors import UsageError


def command(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="A recipe YAML, or the name of one that comes with effitrans.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Output folder.")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    rescore: Annotated[
        bool, typer.Option("--rescore", help="Score the finished steps of a run again, then report.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved plan and stop.")] = False,
    tracking: Tracking = "none",
    assignments: Assignments = None,
) -> None:
    """Run a recipe: train, distill, prune, quantize, evaluate, report.

    [bold]Examples[/]

      effitrans run quickstart --output runs/quickstart

      effitrans run recipes/sst2-minilm.yaml --output runs/sst2 --set distill.epochs=6

      effitrans run quickstart --dry-run
    """
    start()
    options.refuse_idle(context, resume or rescore, "beside --resume and --rescore", "overwrite")
    from effitrans.evaluation.tracking import check_tracker, track
    from effitrans.recipes import load_recipe
    from effitrans.recipes import run as run_recipe

    check_tracker(tracking)
    loaded = load_recipe(recipe, assignments or [])
    if dry_run:
        from effitrans.files import check_output_directory
        from effitrans.recipes import check_recipe
        from effitrans.yaml_files import dump_yaml

        check_recipe(loaded, None if output is None else check_output_directory(output, overwrite or resume or rescore))
        out.print(dump_yaml(loaded.plain()), markup=False, end="")
        return
    if output is None:
        raise UsageError("--output DIR is required (or --dry-run)")
    outcome = run_recipe(loaded, output, resume=resume, overwrite=overwrite, rescore=rescore)
    from effitrans.reporting import scorecard

    out.print(scorecard(outcome.records))
    for record in outcome.records:
        track(record, tracking, output.with_name(f"{output.name}.tensorboard"))
    err.print(f"model   {output / 'model'}\nreport  {output / 'report.html'}")
