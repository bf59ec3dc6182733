"""The check before the first step: everything of a recipe that can be known to fail is refused before anything runs.

It takes configs, tokenizers and the rows of the task, but no weights: the steps are gone through on skeletons.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from effitrans.config import Config
from effitrans.errors import UsageError
from effitrans.files import cache_directory, check_writable, existing_place
from effitrans.recipes.rehearsal import Rehearsal
from effitrans.recipes.schema import Recipe
from effitrans.recipes.steps import VERBS
from effitrans.skeleton import duplicate
from effitrans.tasks import Task, load_task
from effitrans.tasks.loading import Loaded, skeleton_for_task
from effitrans.tasks.metrics import check_metrics

Spec = str | Path | Mapping[str, Any]
Named = tuple[str, str, Config]
"""A step: what begins messages about it, its verb and its config."""


def check_recipe(recipe: Recipe, output: Path | None = None) -> None:
    """Refuse a recipe that cannot come to its end.

    Args:
        recipe: the recipe.
        output: the folder that it will fill; None leaves the space on the disk unchecked.

    Raises:
        UsageError: metrics that do not fit the labels; a split, model or teacher that is not there; a step that the
            model so far cannot take; a package that is missing; a folder that cannot be written; too little space.
    """
    fields = recipe.fields
    check_steps(load_task(fields.task), fields.model, steps_of(recipe), split=fields.evaluate.split, output=output)


def steps_of(recipe: Recipe) -> list[Named]:
    """The steps of a recipe, with what messages call them."""
    return [(f"{step.where}: ", step.verb, step.config) for step in recipe.steps]


def check_steps(
    task: Task,
    model: Spec | Loaded | None,
    steps: Sequence[Named],
    *,
    split: str,
    output: Path | None = None,
) -> Loaded | None:
    """As `check_recipe`, of steps that may stand in no recipe.

    Args:
        task: what is to be done.
        model: what the first step starts from, or a skeleton of it; None where that cannot be known.
        steps: the steps.
        split: what the results are scored on.
        output: as for `check_recipe`.

    Returns:
        A skeleton of the result; None where it cannot be known.
    """
    check_metrics(task)
    task.rows(split)
    check_writable(cache_directory("predictions"), "the cache", "set EFFITRANS_CACHE to another folder")
    start = model if model is None or isinstance(model, Loaded) else skeleton_for_task(model, task)
    if output is not None and start is not None:
        _check_space(output, start, steps)
    on = Rehearsal(task, _copy(start), None)
    first = next((number for number, step in enumerate(steps) if step[1] == "train"), None)
    if first is None:
        on.teacher = _copy(start)
    for number, (where, verb, config) in enumerate(steps):
        try:
            with _silence():
                on.current = VERBS[verb].rehearse(config, on)
        except UsageError as error:
            raise UsageError(f"{where}{error}") from error
        if number == first:
            on.teacher = _copy(on.current)
    return on.current


def check_models(task: Task, models: Sequence[str], split: str) -> None:
    """Refuse what cannot be scored on a task, before anything is.

    Raises:
        UsageError: as `check_recipe`.
    """
    for model in models:
        check_steps(task, model, [], split=split)


@contextmanager
def _silence() -> Iterator[None]:
    """Verbs say what they did, and nothing is done here."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def _copy(loaded: Loaded | None) -> Loaded | None:
    return None if loaded is None else Loaded(duplicate(loaded.model), loaded.processor)


def _check_space(output: Path, start: Loaded, steps: Sequence[Named]) -> None:
    """Each step leaves a model; what trains holds checkpoints meanwhile, with two moments for each weight."""
    size = sum(p.numel() * p.element_size() for p in start.model.parameters())
    trains = any(verb in ("train", "distill", "linearize") for _, verb, _ in steps)
    needed, place = size * (len(steps) + 1 + 9 * trains), existing_place(output)
    free = shutil.disk_usage(place).free
    if size and needed > free:
        raise UsageError(
            f"{output}: the models and checkpoints of these steps take up to {needed / 1e9:.1f} GB and {place} has "
            f"{free / 1e9:.1f} GB free: free some space, or choose another folder"
        )
