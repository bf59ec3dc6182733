"""`effitrans export`: write a model for another engine."""

from typing import Annotated

import typer

from effitrans.cli import options
from effitrans.cli.app import err, start
from effitrans.cli.prune import ModelArgument


def command(
    context: typer.Context,
    model: ModelArgument,
    output: options.Output,
    format: Annotated[str, typer.Option("--format", "-f", help="onnx or openvino.")] = "onnx",
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="Compare on examples of this task too, not only generated ones.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="Examples of the task at most.", min=1)] = 64,
    tolerance: Annotated[
        float, typer.Option("--tolerance", help="Relative error of the outputs that is accepted in any case.", min=0)
    ] = 1e-4,
    overwrite: options.Overwrite = False,
) -> None:
    """Write a float32 or int8 model for ONNX Runtime or OpenVINO, and compare it there with PyTorch.

    Nothing is written where the engine computes something else.

    [bold]Examples[/]

      effitrans export runs/int8 --format onnx --output runs/onnx

      effitrans export runs/student --format openvino --task sst2 --output runs/openvino
    """
    start()
    options.refuse_idle(context, task is None, "without --task", "limit")
    from effitrans.exporting import export
    from effitrans.files import claimed
    from effitrans.tasks.loading import load_as_saved

    with claimed(output, overwrite):
        loaded = load_as_saved(model)
        exported = export(
            loaded.model,
            output,
            format=format,
            processor=loaded.processor,
            data=task,
            examples=limit,
            tolerance=tolerance,
            overwrite=overwrite,
        )
    parity = exported.parity
    err.print(
        f"wrote {output}: relative error {parity.error:.2g} on {parity.examples} examples, {parity.predictions} "
        f"predictions the same but for {parity.ties} ties"
    )
