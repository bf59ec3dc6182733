"""`effitrans inspect`: structure, history and sizes of a model folder."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from effitrans.cli import options
from effitrans.cli.app import err, out, start
from effitrans.cli.prune import ModelArgument


def command(
    context: typer.Context,
    model: ModelArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    attention: Annotated[
        str | None, typer.Option("--attention", help="Draw what each head attends to in this text.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture of --attention: png, svg or pdf.")] = Path(
        "attention.png"
    ),
) -> None:
    """Print the structure, the history and the sizes of a model, or draw its attention.

    [bold]Examples[/]

      effitrans inspect runs/quickstart/model

      effitrans inspect runs/student --attention "a film of rare beauty" --output attention.png
    """
    start()
    options.refuse_idle(context, attention is None, "without --attention", "output")
    options.refuse_idle(context, attention is not None, "with --attention", "as_json")
    if attention is not None:
        _draw_attention(model, attention, output)
        return
    from effitrans import checkpoint
    from effitrans.checkpoint import require_model
    from effitrans.evaluation import size

    path = require_model(model)
    loaded = checkpoint.load_model(path, None)
    facts: dict[str, Any] = {
        "model_type": loaded.config.model_type,
        "parameters": size.parameters(loaded),
        "nonzero_parameters": size.nonzero_parameters(loaded),
        "bits_per_weight": size.bits_per_weight(loaded),
        "bytes_on_disk": checkpoint.bytes_on_disk(path) if Path(path).is_dir() else None,
        "structure": size.structure(loaded).model_dump(mode="json"),
        "history": checkpoint.history(loaded),
    }
    if as_json:
        import json

        out.print(json.dumps(facts, indent=2), markup=False)
    else:
        _print(facts)


def _draw_attention(model: str, text: str, output: Path) -> None:
    from effitrans import checkpoint
    from effitrans.attention.maps import attention_maps
    from effitrans.checkpoint import require_model
    from effitrans.errors import UsageError
    from effitrans.reporting.attention import draw_attention

    if output.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--output {output}: the picture is a .png, .svg or .pdf file")
    path = require_model(model)
    tokenizer: Any = checkpoint.load_processor(path)
    if not hasattr(tokenizer, "convert_ids_to_tokens"):
        raise UsageError(f"{model} has no tokenizer: --attention needs a model of texts")
    loaded = checkpoint.load_model(path, None)
    inputs = tokenizer(text, return_tensors="pt")
    if loaded.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    draw_attention(attention_maps(loaded, inputs), tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]), output)
    err.print(f"wrote {output}")


def _print(facts: dict[str, Any]) -> None:
    structure = facts["structure"]
    out.print(f"[bold]{structure['architecture']}[/] ({facts['model_type']})")
    sizes = [f"{facts['parameters']:,} weights", f"{facts['bits_per_weight']:.2f} bits per weight"]
    if facts["nonzero_parameters"] < facts["parameters"]:
        sizes.append(f"{facts['nonzero_parameters']:,} not zero")
    if facts["bytes_on_disk"] is not None:
        sizes.append(f"{facts['bytes_on_disk'] / 1e6:.2f} MB on disk")
    out.print(", ".join(sizes))
    if structure["layers"]:
        out.print(_table(structure["layers"]))
    if facts["history"]:
        out.print("\n[bold]history[/]")
        for number, entry in enumerate(facts["history"], 1):
            settings = ", ".join(f"{key}={value}" for key, value in entry["config"].items() if value not in (None, {}))
            out.print(f"{number}. {entry['verb']}: {settings}", markup=False)
    else:
        out.print("no passes recorded: the model is as its architecture builds it")


def _table(layers: list[dict[str, Any]]) -> Table:
    columns = {
        "layer": "name",
        "attention": "operator",
        "heads": "heads",
        "kv heads": "kv_heads",
        "head dim": "head_dim",
        "ffn": "ffn",
        "bits": "bits",
    }
    table = Table(box=None, pad_edge=False)
    for title in columns:
        table.add_column(title, justify="left" if title in ("layer", "attention") else "right")
    for layer in layers:
        table.add_row(*("" if layer[key] is None else str(layer[key]) for key in columns.values()))
    return table
