"""Recipes: a model, a task and a list of passes in YAML, run as one resumable job with a report at the end."""

from effitrans.recipes.check import check_recipe
from effitrans.recipes.library import find_recipe, list_recipes
from effitrans.recipes.runner import run
from effitrans.recipes.schema import Recipe, Step, json_schema, load_recipe
from effitrans.recipes.study import Study, check_study, load_study, run_study

__all__ = [
    "Recipe",
    "Step",
    "Study",
    "check_recipe",
    "check_study",
    "find_recipe",
    "json_schema",
    "list_recipes",
    "load_recipe",
    "load_study",
    "run",
    "run_study",
]
