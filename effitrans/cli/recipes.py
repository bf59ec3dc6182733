"""`effitrans recipes`: what comes with effitrans, and whether a file is right."""

import json
from typing import Annotated

import typer

from effitrans.cli.app import out, start

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="A recipe YAML, or the name of one that comes with effitrans.")]


@app.command("list")
def list_command() -> None:
    """The recipes that come with effitrans."""
    from rich.table import Table

    from effitrans.recipes.library import list_recipes, outline

    table = Table(box=None, pad_edge=False)
    for column in ("name", "task", "steps", "description"):
        table.add_column(column)
    for name, path in list_recipes().items():
        table.add_row(name, *outline(path))
    out.print(table)


@app.command("show")
def show_command(recipe: Name) -> None:
    """Print a recipe file."""
    from effitrans.recipes.library import find_recipe

    out.print(find_recipe(recipe).read_text(encoding="utf-8"), markup=False, end="")


@app.command("validate")
def validate_command(recipes: Annotated[list[str], typer.Argument(help="Recipe files or names.")]) -> None:
    """Check recipes: every key, every value, the task."""
    start()
    from effitrans.recipes import load_recipe
    from effitrans.tasks import load_task

    for recipe in recipes:
        loaded = load_recipe(recipe)
        load_task(loaded.fields.task)
        out.print(f"{recipe}: ok ({len(loaded.steps)} steps)", markup=False)


@app.command("schema")
def schema_command() -> None:
    """Print the JSON schema of recipes, for editors."""
    start()
    from effitrans.recipes import json_schema

    out.print(json.dumps(json_schema(), indent=2), markup=False)
