"""`effitrans swap`: put another attention operator into a pretrained model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from effitrans.cli import options
from effitrans.cli.app import err, out, start
from effitrans.cli.prune import ModelArgument
from effitrans.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from effitrans.attention import OperatorConfig
    from effitrans.evaluation import LayerError


def command(
    context: typer.Context,
    model: ModelArgument,
    attention: Annotated[
        str, typer.Option("--attention", help="Name of the operator: local, linear, ...", show_default=False)
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Output folder.", show_default=False)] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Layers to swap: 0-3,5 or a path. Default: all.")
    ] = None,
    heal: Annotated[
        str | None,
        typer.Option(
            "--heal",
            metavar="TASK",
            help="Train on this task, as linearize does: attention transfer, then distillation.",
        ),
    ] = None,
    epochs: options.Epochs = 1.0,
    learning_rate: options.LearningRate = 1e-4,
    assignments: options.Assignments = None,
    split: options.Split = "test",
    cost: options.Measured = True,
    seed: options.Seed = 0,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Write nothing: show how far operators (a,b,...) are from softmax attention."),
    ] = False,
    task: Annotated[
        str | None, typer.Option("--task", "-t", help="With --dry-run: the task on whose data this is measured.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", help="With --dry-run: examples at most.", min=1)] = 64,
) -> None:
    """Swap the attention of a model, layer by layer or everywhere.

    [bold]Examples[/]

      effitrans swap runs/teacher --attention local --set window=128 --output runs/local

      effitrans swap runs/teacher --attention linear --layers 0-3 --heal sst2 --output runs/linear

      effitrans swap runs/teacher --attention local,linear --task sst2 --dry-run
    """
    start()
    training = ("epochs", "learning_rate", "split", "cost", "resume")
    options.refuse_idle(context, dry_run, "with --dry-run", *training, "overwrite")
    options.refuse_idle(context, not dry_run, "without --dry-run", "limit")
    options.refuse_idle(context, heal is None, "without --heal TASK", *training)
    if dry_run:
        if task is None or output is not None or heal is not None:
            raise UsageError("--dry-run writes nothing: it goes with --task, and without --output and --heal")
        _dry_run(model, attention, task, layers, assignments or [], limit, seed)
        return
    if task is not None:
        raise UsageError("--task goes with --dry-run; --heal TASK trains the swapped model")
    if output is None:
        raise UsageError("--output is missing: name the output folder, or pass --dry-run")
    from effitrans.tasks.loading import parse_assignment

    fields = {"attention": attention, **dict(parse_assignment(text) for text in assignments or [])}
    if layers is not None:
        fields["layers"] = layers
    if heal is not None:
        from effitrans.cli.one_pass import run_pass

        run_pass(
            [("linearize", {**fields, "epochs": epochs, "learning_rate": learning_rate, "seed": seed})],
            model=model,
            task=heal,
            output=output,
            overwrite=overwrite,
            resume=resume,
            seed=seed,
            split=split,
            cost=cost,
        )
        return
    from effitrans.cli.one_pass import run_unscored

    run_unscored("swap", fields, model=model, output=output, overwrite=overwrite, seed=seed)
    err.print(f"wrote {output}; --heal TASK lets the model get used to it")


def _dry_run(
    model: str, names: str, task: str, layers: str | None, assignments: list[str], limit: int, seed: int
) -> None:
    """Print the error of each operator in each layer."""
    from effitrans.evaluation import attention_error
    from effitrans.tasks import load_task
    from effitrans.tasks.loading import load_for_task, parse_assignment

    settings = dict(parse_assignment(text) for text in assignments)
    operators = [operator.seeded(seed) for operator in _operators(names, settings)]
    loaded_task = load_task(task)
    loaded = load_for_task(model, loaded_task, seed=seed, new_head=True)
    entries = attention_error(
        loaded.model, loaded_task, operators, layers=layers, processor=loaded.processor, limit=limit
    )
    out.print(_table(entries, operators))
    for reason in dict.fromkeys(f"{e.operator.name} is refused: {e.refused}" for e in entries if e.refused):
        out.print(reason, markup=False)
    err.print("relative L2 error of attention outputs, 0 is exact; nothing was written")


def _operators(names: str, settings: dict[str, Any]) -> "list[OperatorConfig]":
    """The operators, each with those of the settings that it has."""
    from effitrans.attention import OPERATORS, operator_config

    chosen = [name.strip() for name in names.split(",")]
    known = {field for name in chosen if name in OPERATORS for field in OPERATORS[name].model_fields}
    operators = [
        operator_config(name, {key: value for key, value in settings.items() if key in OPERATORS[name].model_fields})
        if name in OPERATORS
        else operator_config(name)
        for name in chosen
    ]
    for key in settings:
        if key not in known:
            raise unknown_name(f"setting of {names}", key, known)
    return operators


def _table(entries: "list[LayerError]", operators: "list[OperatorConfig]") -> Table:
    """Layers downwards, operators across, and their means."""
    table = Table(box=None, pad_edge=False)
    table.add_column("layer", justify="right")
    table.add_column("module")
    for operator in operators:
        table.add_column(operator.name, justify="right")
    width = len(operators)
    for start_of_row in range(0, len(entries), width):
        row = entries[start_of_row : start_of_row + width]
        number = "" if row[0].layer is None else str(row[0].layer)
        table.add_row(number, row[0].path, *(_cell(entry.error) for entry in row))
    columns = [[entry.error for entry in entries[column::width]] for column in range(width)]
    means = [[error for error in column if error is not None] for column in columns]
    table.add_row("", "mean", *(_cell(sum(column) / len(column) if column else None) for column in means))
    return table


def _cell(error: float | None) -> str:
    return "refused" if error is None else f"{error:.4f}"
