"""Recipes: a model, a task and a list of passes in YAML, run as one resumable job with a report at the end."""

from effitrans.recipes.library import find_recipe, list_recipes
from effitrans.recipes.runner import run
from effitrans.recipes.schema import Recipe, Step, json_schema, load_recipe
from effitrans.recipes.study import Study, load_study, run_study

__all__ = [
    "Recipe",
    "Step",
    "Study",
    "find_recipe",
    "json_schema",
    "list_recipes",
    "load_recipe",
    "load_study",
    "run",
    "run_study",
]
