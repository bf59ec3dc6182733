"""`effitrans quantize`: store and multiply integers."""

from typing import Annotated

import typer

from effitrans.cli import options
from effitrans.cli.app import err, start
from effitrans.cli.prune import ModelArgument


def command(
    model: ModelArgument,
    output: options.Output,
    scheme: Annotated[str, typer.Option("--scheme", help="int8-dynamic.")] = "int8-dynamic",
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Score the result on this task (built-in or YAML).")
    ] = None,
    assignments: options.Assignments = None,
    split: options.Split = "test",
    seed: options.Seed = 0,
    optimize: options.Optimize = True,
    overwrite: options.Overwrite = False,
) -> None:
    """Quantize a model after training.

    [bold]Examples[/]

      effitrans quantize runs/student --scheme int8-dynamic --output runs/int8

      effitrans quantize runs/student --task sst2 --output runs/int8
    """
    start()
    from effitrans.loading import parse_assignment

    fields = {"scheme": scheme, **dict(parse_assignment(text) for text in assignments or [])}
    if task is not None:
        from effitrans.cli.one_step import run_steps

        run_steps(
            [("quantize", fields)],
            model=model,
            task=task,
            output=output,
            overwrite=overwrite,
            seed=seed,
            split=split,
            optimize=optimize,
        )
        return
    from effitrans import checkpoint
    from effitrans.files import check_output_directory
    from effitrans.loading import load_as_saved
    from effitrans.quantization import quantize
    from effitrans.recipes.steps import VERBS

    check_output_directory(output, overwrite)
    config = VERBS["quantize"].parse(fields, "quantize")
    loaded = load_as_saved(model)
    result = quantize(loaded.model, config.options, inplace=True)  # type: ignore[attr-defined]
    checkpoint.save(result, output, loaded.processor, overwrite=overwrite)
    err.print(f"wrote {output} ({checkpoint.bytes_on_disk(output):,} bytes of weights); --task scores it")
