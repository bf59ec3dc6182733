"""Recipes: a model, a task and a list of passes in YAML, run as one resumable job with a report at the end."""

from effitrans.recipes.library import find_recipe, list_recipes
from effitrans.recipes.runner import run
from effitrans.recipes.schema import Recipe, Step, json_schema, load_recipe

__all__ = ["Recipe", "Step", "find_recipe", "json_schema", "list_recipes", "load_recipe", "run"]
