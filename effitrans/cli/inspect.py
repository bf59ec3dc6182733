"""`effitrans inspect`: structure, history and sizes of a model folder."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from effitrans.cli.app import out, start
from effitrans.cli.prune import ModelArgument


def command(
    model: ModelArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Print the structure, the history and the sizes of a model.

    [bold]Example[/]

      effitrans inspect runs/quickstart/model
    """
    start()
    from effitrans import checkpoint
    from effitrans.architectures.describe import describe
    from effitrans.loading import resolve_alias

    path = resolve_alias(model)
    loaded = checkpoint.load_model(path, None)
    on_disk = checkpoint.bytes_on_disk(path) if Path(path).is_dir() else None
    facts = describe(loaded, on_disk)
    if as_json:
        import json

        out.print(json.dumps(facts, indent=2), markup=False)
        return
    _print(facts)


def _print(facts: dict[str, Any]) -> None:
    out.print(f"[bold]{facts['architecture']}[/] ({facts['model_type']})")
    sizes = [f"{facts['parameters']:,} parameters", *(f"{n:,} {dtype}" for dtype, n in facts["dtypes"].items())]
    if facts["bytes_on_disk"] is not None:
        sizes.append(f"{facts['bytes_on_disk'] / 1e6:.2f} MB of weights on disk")
    out.print(", ".join(sizes))
    if facts["layers"]:
        out.print(_table(facts["layers"], ("layer", "attention", "heads", "kv_heads", "head_dim", "ffn", "weights")))
    if facts["history"]:
        out.print("\n[bold]history[/]")
        for number, entry in enumerate(facts["history"], 1):
            settings = ", ".join(f"{key}={value}" for key, value in entry["config"].items() if value not in (None, {}))
            out.print(f"{number}. [bold]{entry['verb']}[/] {settings}", style="default")
    else:
        out.print("no passes recorded: the model is as its architecture builds it")


def _table(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("layer", "attention", "weights") else "right")
    for row in rows:
        table.add_row(*("" if row.get(column) is None else str(row[column]) for column in columns))
    return table
