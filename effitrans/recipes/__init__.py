"""Recipes: a model, a task and a list of passes in YAML, run as one resumable job with a report at the end."""

from typing import TYPE_CHECKING

from effitrans.lazy import exports

if TYPE_CHECKING:
    from effitrans.recipes.check import check_recipe
    from effitrans.recipes.library import find_recipe, list_recipes
    from effitrans.recipes.runner import run
    from effitrans.recipes.schema import Recipe, Step, json_schema, load_recipe
    from effitrans.recipes.study import Study, check_study, load_study, run_study

__all__, __getattr__ = exports(
    __name__,
    {
        ".check": ("check_recipe",),
        ".library": ("find_recipe", "list_recipes"),
        ".runner": ("run",),
        ".schema": ("Recipe", "Step", "json_schema", "load_recipe"),
        ".study": ("Study", "check_study", "load_study", "run_study"),
    },
)
