"""A command that is one pass: a recipe of its steps, of which the last model is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from effitrans.cli.app import err, out
from effitrans.errors import UsageError

Steps = Sequence[tuple[str, Mapping[str, Any]]]
"""Verbs and their fields, as a recipe holds them."""


def run_pass(
    steps: Steps,
    *,
    model: str,
    task: str,
    output: Path,
    overwrite: bool = False,
    resume: bool = False,
    seed: int = 0,
    split: str = "test",
    optimize: bool | None = None,
    cost: bool = True,
    assignments: list[str] | None = None,
) -> None:
    """Run steps one after the other on one model, compare the result with what it was, and print the score.

    Args:
        steps: the steps.
        model: the model to work on, as `load_for_task` takes it.
        task: the task that it is trained and scored on.
        output: the output folder, see `effitrans.recipes.runner.run_for_model`.
        seed: of new weights and of every step that gives none.
        assignments: `key=value` changes to the base Transformer (`--model base`).
    """
    from effitrans.processes import is_main_process
    from effitrans.recipes import load_recipe
    from effitrans.recipes.runner import run_for_model
    from effitrans.reporting import scorecard

    recipe = load_recipe(
        {
            "name": output.name,
            "task": task,
            "model": _with_assignments(model, assignments),
            "seed": seed,
            "steps": [{verb: dict(fields)} for verb, fields in steps],
            "evaluate": {"split": split, "optimize": optimize, "cost": {} if cost else None},
        }
    )
    record = run_for_model(recipe, output, resume=resume, overwrite=overwrite)
    if is_main_process():
        out.print(scorecard([record]))
        err.print(f"wrote {output}")


def _with_assignments(model: str, assignments: list[str] | None) -> str | dict[str, Any]:
    from effitrans.tasks.loading import base_overrides, parse_assignment

    if not assignments:
        return model
    if (overrides := base_overrides(model)) is None:
        raise UsageError("--set gives settings of the base Transformer; it goes with --model base")
    return {"base": {**overrides, **dict(parse_assignment(text) for text in assignments)}}


def run_unscored(
    verb: str, fields: Mapping[str, Any], *, model: str, output: Path, overwrite: bool, seed: int = 0
) -> None:
    """Run one step that needs no data on a model with the head that it was saved with, and save the result."""
    from effitrans import checkpoint
    from effitrans.files import claimed
    from effitrans.recipes.steps import VERBS, Context, seed_of
    from effitrans.tasks.loading import load_as_saved

    with claimed(output, overwrite) as output:
        config = VERBS[verb].parse(fields, verb).seeded(seed)
        if seed and seed_of(config) is None:
            raise UsageError("--seed: no effect, nothing is drawn at random here: leave it out")
        loaded = load_as_saved(model)
        context = Context(None, loaded, lambda: loaded, seed, output)  # type: ignore[arg-type]
        result = VERBS[verb].run(config, context)
        checkpoint.save(result.model, output, result.processor, overwrite=overwrite)
