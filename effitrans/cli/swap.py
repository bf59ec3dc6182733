"""`effitrans swap`: put another attention operator into a pretrained model."""

from typing import Annotated

import typer

from effitrans.cli import options
from effitrans.cli.app import err, start
from effitrans.cli.prune import ModelArgument


def command(
    model: ModelArgument,
    attention: Annotated[
        str, typer.Option("--attention", help="Name of the operator: local, linear, ...", show_default=False)
    ],
    output: options.Output,
    layers: Annotated[str | None, typer.Option("--layers", help="Layers to swap: 0-3 or 0,2,5. Default: all.")] = None,
    heal: Annotated[
        str | None,
        typer.Option("--heal", metavar="TASK", help="Distill from the original model on this task afterwards."),
    ] = None,
    epochs: options.Epochs = 1.0,
    learning_rate: options.LearningRate = 1e-4,
    assignments: options.Assignments = None,
    split: options.Split = "test",
    seed: options.Seed = 0,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Swap the attention of a model, layer by layer or everywhere.

    [bold]Examples[/]

      effitrans swap runs/teacher --attention local --set window=128 --output runs/local

      effitrans swap runs/teacher --attention linear --layers 0-3 --heal sst2 --output runs/linear
    """
    start()
    from effitrans.loading import load_as_saved, parse_assignment

    fields = {"attention": attention, **dict(parse_assignment(text) for text in assignments or [])}
    if layers is not None:
        fields["layers"] = layers
    if heal is not None:
        from effitrans.cli.one_step import run_steps

        steps = [("swap", fields), ("distill", {"epochs": epochs, "learning_rate": learning_rate, "seed": seed})]
        run_steps(
            steps,  # type: ignore[arg-type]
            model=model,
            task=heal,
            output=output,
            overwrite=overwrite,
            resume=resume,
            seed=seed,
            split=split,
        )
        return
    from effitrans import checkpoint
    from effitrans.attention import swap_attention
    from effitrans.files import check_output_directory
    from effitrans.recipes.steps import VERBS, parse_layers

    check_output_directory(output, overwrite)
    config = VERBS["swap"].parse(fields, "swap")
    loaded = load_as_saved(model)
    chosen = None if layers is None else parse_layers(layers)
    swapped = swap_attention(loaded.model, config.options, layers=chosen, inplace=True)  # type: ignore[attr-defined]
    checkpoint.save(swapped, output, loaded.processor, overwrite=overwrite)
    err.print(f"wrote {output}; --heal TASK lets the model get used to it")
