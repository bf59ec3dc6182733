"""`effitrans prune`: remove heads, FFN neurons and layers for real."""

from typing import Annotated

import typer

from effitrans.cli import options
from effitrans.cli.app import start

ModelArgument = Annotated[str, typer.Argument(help="Folder or hub name.", show_default=False)]


def command(
    model: ModelArgument,
    task: options.TaskName,
    output: options.Output,
    heads: Annotated[float, typer.Option("--heads", help="Fraction of attention heads removed.")] = 0.0,
    ffn: Annotated[float, typer.Option("--ffn", help="Fraction of FFN neurons removed.")] = 0.0,
    layers: Annotated[int | None, typer.Option("--layers", help="Number of layers kept.")] = None,
    method: Annotated[str, typer.Option("--method", help="Importance: magnitude or taylor.")] = "magnitude",
    scope: Annotated[
        str, typer.Option("--scope", help="layer: the same fraction of each layer; global: ranked over all layers.")
    ] = "layer",
    recover: Annotated[
        float, typer.Option("--recover", help="Epochs of distillation from the unpruned model afterwards.", min=0)
    ] = 0.0,
    learning_rate: options.LearningRate = 1e-4,
    split: options.Split = "test",
    seed: options.Seed = 0,
    optimize: options.Optimize = False,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Prune a model and, on request, let it recover under the unpruned one.

    [bold]Examples[/]

      effitrans prune runs/teacher --task sst2 --heads 0.5 --ffn 0.5 --method taylor --recover 1 --output runs/pruned

      effitrans prune runs/teacher --task sst2 --layers 3 --output runs/shallow
    """
    start()
    from effitrans.cli.one_step import run_steps

    fields: dict[str, object] = {"heads": heads, "ffn": ffn, "method": method, "scope": scope, "seed": seed}
    if layers is not None:
        fields["layers"] = layers
    steps: list[tuple[str, dict[str, object]]] = [("prune", fields)]
    if recover:
        steps.append(("distill", {"epochs": recover, "learning_rate": learning_rate, "seed": seed}))
    run_steps(
        steps,  # type: ignore[arg-type]
        model=model,
        task=task,
        output=output,
        overwrite=overwrite,
        resume=resume,
        seed=seed,
        split=split,
        optimize=optimize,
    )
