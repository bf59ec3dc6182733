"""`effitrans eval`: score a model, alone or against a baseline."""

import os
from typing import Annotated

import typer

from effitrans.cli import options
from effitrans.cli.app import out, start
from effitrans.cli.prune import ModelArgument


def command(
    context: typer.Context,
    model: ModelArgument,
    task: options.TaskName,
    baseline: Annotated[
        str | None, typer.Option("--baseline", help="Compare with this model, paired and interleaved.")
    ] = None,
    split: options.Split = "test",
    limit: Annotated[int | None, typer.Option("--limit", help="Score at most this many examples.", min=1)] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="Examples per batch when scoring.", min=1)] = 32,
    cost: options.Measured = True,
    optimize: options.Optimize = None,
    seed: options.Seed = 0,
    gate: Annotated[
        list[str] | None,
        typer.Option("--gate", help='A condition such as "accuracy>=0.99*baseline"; exit code 3 when missed.'),
    ] = None,
    tracking: options.Tracking = "none",
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
) -> None:
    """Score a model: quality with 95 % intervals, fidelity, latency, memory, size.

    [bold]Examples[/]

      effitrans eval runs/student --task sst2 --baseline runs/teacher

      effitrans eval runs/student --task sst2 --baseline runs/teacher --gate "accuracy>=0.99*baseline"

      effitrans eval runs/student --task sst2 --json > record.json

      effitrans eval runs/student --task sst2 --tracking wandb

      torchrun --nproc-per-node 2 -m effitrans eval runs/student --task sst2
    """
    start()
    options.refuse_optimize(context)
    from effitrans.checkpoint import require_model
    from effitrans.evaluation import Cost, evaluate
    from effitrans.evaluation.gates import check_gates, require
    from effitrans.evaluation.tracking import check_tracker, track
    from effitrans.processes import is_main_process
    from effitrans.reporting import scorecard
    from effitrans.tasks import load_task

    check_tracker(tracking)
    check_gates(gate or [], load_task(task).metrics, compared=baseline is not None, measured=cost)
    record = evaluate(
        require_model(model),
        task,
        split=split,
        baseline=None if baseline is None else _resolve_baseline(baseline),
        cost=Cost() if cost else None,
        batch_size=batch_size,
        limit=limit,
        seed=seed,
        optimize=optimize,
        distributed="RANK" in os.environ,
    )
    if not is_main_process():
        return
    if as_json:
        out.print(record.to_json(samples=False), markup=False)
    else:
        out.print(scorecard([record]))
    track(record, tracking)
    require(record, gate or [])


def _resolve_baseline(name: str) -> str:
    from effitrans.checkpoint import require_model
    from effitrans.errors import UsageError

    try:
        return require_model(name)
    except UsageError as error:
        raise UsageError(f"baseline: {error}") from error
