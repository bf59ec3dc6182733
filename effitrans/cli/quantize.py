"""`effitrans quantize`: store and multiply integers."""

from typing import Annotated, Any

import typer

from effitrans.cli import options
from effitrans.cli.app import err, start
from effitrans.cli.prune import ModelArgument


def command(
    context: typer.Context,
    model: ModelArgument,
    output: options.Output,
    scheme: Annotated[
        str,
        typer.Option(
            "--scheme",
            help="int8-dynamic, int8-smooth, int8-static, int8-qat, rtn, gptq, awq, qat, nf4, fp4 or llm-int8.",
        ),
    ] = "int8-dynamic",
    task: Annotated[
        str | None,
        typer.Option(
            "--task", "-t", help="Calibrate (and train, with int8-qat and qat) on this task, and score the result."
        ),
    ] = None,
    bits: Annotated[
        int | None, typer.Option("--bits", help="Bits a weight (rtn, gptq, awq, qat): 2, 3, 4 or 8.")
    ] = None,
    group_size: Annotated[
        int | None, typer.Option("--group-size", help="Weights of rtn, gptq, awq and qat that share a scale.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", help="Points of the task's metric that may be lost; layers stay floating for it."),
    ] = None,
    max_error: Annotated[
        float | None, typer.Option("--max-error", help="Relative error of the output that is allowed, likewise.")
    ] = None,
    assignments: options.Assignments = None,
    split: options.Split = "test",
    cost: options.Measured = True,
    seed: options.Seed = 0,
    optimize: options.Optimize = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Quantize a model after training; with int8-qat and qat, while training.

    [bold]Examples[/]

      effitrans quantize runs/student --scheme int8-dynamic --output runs/int8

      effitrans quantize runs/student --scheme int8-smooth --task sst2 --max-drop 0.3 --output runs/int8

      effitrans quantize runs/student --scheme gptq --bits 3 --group-size 32 --task sst2 --output runs/gptq3

      effitrans quantize runs/student --scheme int8-qat --set epochs=1 --task sst2 --output runs/qat
    """
    start()
    options.refuse_optimize(context)
    options.refuse_idle(context, task is None, "without --task", "split", "seed", "cost", "optimize")
    from effitrans.tasks.loading import parse_assignment

    given = {"bits": bits, "group_size": group_size, "max_drop": max_drop, "max_error": max_error}
    fields: dict[str, Any] = {"scheme": scheme, **{name: value for name, value in given.items() if value is not None}}
    fields |= dict(parse_assignment(text) for text in assignments or [])
    if task is not None:
        from effitrans.cli.one_pass import run_pass

        run_pass(
            [("quantize", fields)],
            model=model,
            task=task,
            output=output,
            overwrite=overwrite,
            seed=seed,
            split=split,
            cost=cost,
            optimize=optimize,
        )
        return
    from effitrans.checkpoint import bytes_on_disk
    from effitrans.cli.one_pass import run_unscored

    run_unscored("quantize", fields, model=model, output=output, overwrite=overwrite)
    err.print(f"wrote {output} ({bytes_on_disk(output):,} bytes of weights); --task scores it")
