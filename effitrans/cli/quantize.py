"""`effitrans quantize`: store weights in few bits."""

from typing import Annotated, Any

import typer

from effitrans.cli import options
from effitrans.cli.app import err, start
from effitrans.cli.prune import ModelArgument
from effitrans.cli.registered import command_class


def _facts() -> dict[str, str]:
    from effitrans.quantization import SCHEMES

    def names(*fields: str, trains: bool = False) -> str:
        return ", ".join(
            name
            for name, scheme in SCHEMES.items()
            if scheme.model_fields.keys() >= set(fields) and (scheme.uses_data_for == "training" or not trains)
        )

    return {
        "schemes": names(),
        "training": names(trains=True),
        "bits": names("bits"),
        "group_size": names("group_size"),
    }


Command = command_class(_facts)


def command(
    context: typer.Context,
    model: ModelArgument,
    output: options.Output,
    scheme: Annotated[str, typer.Option("--scheme", help="Quantization scheme: {schemes}.")] = "int8-dynamic",
    task: Annotated[
        str | None,
        typer.Option(
            "--task", "-t", help="Calibrate (and, with {training}, train) on this task, and score the result."
        ),
    ] = None,
    bits: Annotated[int | None, typer.Option("--bits", help="Bits per weight: 2, 3, 4 or 8 ({bits}).")] = None,
    group_size: Annotated[
        int | None, typer.Option("--group-size", help="Neighbouring weights that share a scale ({group_size}).")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop",
            help="Largest loss of the task's first metric, in points. The most sensitive layers are kept in floating "
            "point to hold it.",
        ),
    ] = None,
    max_error: Annotated[
        float | None,
        typer.Option("--max-error", help="Largest relative error of the model's output, held in the same way."),
    ] = None,
    assignments: options.Assignments = None,
    split: options.Split = "test",
    cost: options.Measured = True,
    seed: options.Seed = 0,
    optimize: options.Optimize = None,
    overwrite: options.Overwrite = False,
) -> None:
    """Quantize a model: store its weights in few bits.

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
