"""The recipe file: what it may hold, how it is read, `--set`, and its JSON schema for editors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from effitrans.config import Config, Count, Seed, Threads
from effitrans.errors import UsageError, unknown_name
from effitrans.evaluation import Cost
from effitrans.files import sha256_json
from effitrans.recipes.library import find_recipe
from effitrans.recipes.steps import VERBS, seed_of
from effitrans.tasks.loading import parse_assignment
from effitrans.yaml_files import dump_yaml, parse_yaml, read_yaml


class Evaluation(Config):
    """How every step of a recipe is scored."""

    split: str = "test"
    """Split of the task that the records report."""
    limit: Count | None = None
    """Score at most this many examples. Default: all."""
    optimize: bool | None = None
    """Time the models compiled by `effitrans.optimize`, or as they are. Default: those with integer layers compiled,
    as they are meant to run, others as they are."""
    cost: Cost | None = Cost()
    """What is timed, at which shapes and for how long; null measures quality alone."""


class RecipeFields(Config):
    """The top level of a recipe, its steps still as plain mappings."""

    name: str
    """Name of the recipe, used in the report."""
    description: str = ""
    """One or two sentences for `effitrans recipes list`."""
    task: str | dict[str, Any]
    """Name of a built-in task, a task YAML, or the task itself."""
    model: str | dict[str, Any]
    """What the recipe starts from: a folder, a hub name, `minilm`, or `{base: {...}}`."""
    seed: Seed = 0
    """Seed of every step that does not set its own, of the operators and schemes that steps name too."""
    threads: Threads | None = None
    """CPU threads of the whole run. Default: torch's."""
    steps: tuple[dict[str, Any], ...] = pydantic.Field(min_length=1)
    """One mapping per step: the verb, and the fields of its config (and `name`)."""
    evaluate: Evaluation = Evaluation()
    """How the steps are scored."""


@dataclass(frozen=True)
class Step:
    """One resolved step."""

    verb: str
    name: str
    values: dict[str, Any]
    config: Config
    where: str
    """What messages about it begin with."""

    @property
    def plain(self) -> dict[str, Any]:
        """The step as the resolved recipe holds it."""
        return {self.verb: {"name": self.name, **self.values}}


@dataclass(frozen=True)
class Recipe:
    """A recipe whose every key was checked."""

    fields: RecipeFields
    steps: tuple[Step, ...]

    @property
    def name(self) -> str:
        return self.fields.name

    def plain(self) -> dict[str, Any]:
        """The resolved recipe as JSON and YAML hold it: loading it again gives the same recipe."""
        return {**self.fields.model_dump(mode="json"), "steps": [step.plain for step in self.steps]}

    @property
    def sha256(self) -> str:
        """Fingerprint of the resolved recipe."""
        return sha256_json(self.plain())


def load_recipe(source: str | Path | Mapping[str, Any], assignments: Iterable[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        source: a file, the name of a recipe that comes with effitrans, or the mapping itself.
        assignments: `path=value` changes as `--set` takes them: `seed=1`, `evaluate.limit=100`,
            `distill.epochs=3` (a step by its name or verb) or `steps.1.distill.epochs=3`.

    Raises:
        UsageError: no such recipe, not YAML, an unknown key (with the nearest valid one) or a bad value.
    """
    values = _copy(source) if isinstance(source, Mapping) else read_file(find_recipe(source))
    for assignment in assignments:
        _assign(values, *parse_assignment(assignment))
    fields = RecipeFields.parse(values, "recipe")
    steps = _resolve_steps(fields)
    return Recipe(fields, steps)


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return parse_yaml(dump_yaml(dict(values)), "recipe")


def read_file(path: Path) -> dict[str, Any]:
    """The mapping that a recipe or study file holds.

    Raises:
        UsageError: as `effitrans.yaml_files.read_yaml`.
    """
    return read_yaml(path, str(path), "name, task, model and steps (a recipe) or variants (a study)")


def _resolve_steps(fields: RecipeFields) -> tuple[Step, ...]:
    steps: list[Step] = []
    for number, entry in enumerate(fields.steps, 1):
        if len(entry) != 1:
            raise UsageError(f"step {number}: expected one verb ({', '.join(VERBS)}), received the keys {list(entry)}")
        verb, values = next(iter(entry.items()))
        if verb not in VERBS:
            raise unknown_name(f"step {number}: verb", verb, VERBS)
        if values is not None and not isinstance(values, Mapping):
            raise UsageError(f"step {number} ({verb}): expected a mapping of its settings, received {values!r:.60}")
        values = dict(values or {})
        name = str(values.pop("name", verb))
        if not name.replace("-", "").replace("_", "").isalnum():
            raise UsageError(f"step {number}: a name holds letters, digits, '-' and '_', received {name!r}")
        where = f"step {number} ({verb})" if len(fields.steps) > 1 else verb
        config = VERBS[verb].parse(values, where).seeded(fields.seed)
        if (seed := seed_of(config)) is not None:
            values["seed"] = seed
        steps.append(Step(verb, name, values, config, where))
    return tuple(steps)


def _assign(values: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path, in which a step may go by its number, its name or its verb."""
    first, *rest = path.split(".")
    target: Any = values
    if first not in RecipeFields.model_fields:
        target, rest = _find_step(values, first), [*rest]
    else:
        rest = [first, *rest]
    if not rest:
        raise UsageError(f"--set {path}: names a step, not one of its fields: {path}.epochs=3")
    set_at(target, rest, path, value)


def set_at(target: Any, parts: Sequence[str], path: str, value: Any) -> None:
    """Set the value inside nested mappings and lists; mappings that are missing, null or `true` are made.

    Args:
        target: a mapping or list, changed in place.
        parts: keys, and numbers of list entries, from the outermost.
        path: what messages call the place.

    Raises:
        UsageError: a place inside a plain value, or an entry that a list does not have.

    >>> settings = {"cache": True}
    >>> set_at(settings, ["cache", "top_k"], "cache.top_k", 8)
    >>> settings
    {'cache': {'top_k': 8}}
    """
    *parents, last = parts
    for part in parents:
        target = _descend(target, part, path)
    if isinstance(target, list):
        target[_index(target, last, path)] = value
    elif isinstance(target, dict):
        target[last] = value
    else:
        raise UsageError(f"--set {path}: {last!r} is inside the plain value {target!r}: set that as a whole")


def _find_step(values: dict[str, Any], wanted: str) -> dict[str, Any]:
    entries = values.get("steps")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and len(entry) == 1 for entry in entries):
        raise UsageError(f"--set {wanted}: the recipe has no list of steps of one verb each")
    steps = [next(iter(entry.items())) for entry in entries]
    for index, (verb, step) in enumerate(steps):
        if step is None:
            values["steps"][index][verb] = step = {}
        steps[index] = (verb, step)
    names = [str(step.get("name", verb)) if isinstance(step, dict) else verb for verb, step in steps]
    found = [i for i, (verb, _) in enumerate(steps) if names[i] == wanted]
    found = found or [i for i, (verb, _) in enumerate(steps) if verb == wanted]
    if not found:
        raise unknown_name("recipe key", wanted, {*RecipeFields.model_fields, *names})
    if len(found) > 1:
        raise UsageError(f"--set {wanted}: {len(found)} steps are called so; name the one by number: steps.{found[0]}")
    return steps[found[0]][1]


def _descend(target: Any, part: str, path: str) -> Any:
    if isinstance(target, list):
        return target[_index(target, part, path)]
    if not isinstance(target, dict):
        raise UsageError(f"--set {path}: {part!r} is inside the plain value {target!r}: set that as a whole")
    if target.get(part) is None or target[part] is True:
        target[part] = {}
    return target[part]


def _index(target: list[Any], part: str, path: str) -> int:
    if not part.isdigit() or int(part) >= len(target):
        raise UsageError(f"--set {path}: expected a number from 0 to {len(target) - 1}, received {part!r}")
    return int(part)


def json_schema() -> dict[str, Any]:
    """JSON schema of recipe files, for editors (`effitrans recipes schema > recipe.schema.json`)."""
    schema = RecipeFields.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    options = []
    for verb, entry in VERBS.items():
        step = entry.schema()
        definitions.update(step.pop("$defs", {}))
        step.setdefault("properties", {})["name"] = {"type": "string", "description": "Name of the step."}
        definitions[f"step-{verb}"] = step
        reference = {"$ref": f"#/$defs/step-{verb}"}
        options.append(
            {
                "type": "object",
                "properties": {verb: {"anyOf": [reference, {"type": "null"}]}},
                "required": [verb],
                "additionalProperties": False,
            }
        )
    schema["properties"]["steps"]["items"] = {"oneOf": options}
    return {**schema, "$schema": "https://json-schema.org/draft/2020-12/schema", "title": "effitrans recipe"}
