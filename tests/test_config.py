"""Settings of all configs: numbers are finite and bounded, seeds are ones that every generator takes."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest

import effitrans.recipes.study  # noqa: F401
from effitrans import Pruning, Training, UsageError
from effitrans.config import Config


def configs(base: type[Config] = Config) -> Iterator[type[Config]]:
    for config in base.__subclasses__():
        if config.__module__.startswith("effitrans."):
            yield config
        yield from configs(config)


OUTSIDE = ("Site", "LengthCost", "Trained")
"""What the program writes itself, and the base of some schemes."""

CONFIGS = sorted(
    {config for config in configs() if config.__name__ not in OUTSIDE}, key=lambda config: config.__qualname__
)


def numbers(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, schema) of every whole number in a JSON schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "integer":
            yield path, schema
        for name, part in schema.items():
            yield from numbers(part, f"{path}.{name}")
    elif isinstance(schema, list):
        for part in schema:
            yield from numbers(part, path)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__qualname__)
def test_whole_numbers_are_bounded(config):
    found = numbers(config.model_json_schema())
    bounded = {"maximum", "exclusiveMaximum", "enum", "const"}
    unbounded = [path for path, schema in found if not bounded & set(schema)]
    layers = (
        "layers",
        "keep_layers",
        "keep_attention_layers",
        "keep_ffn_layers",
        "keep",
        "layer_mapping",
        "layout",
        "skip",
        "crossover",
        "version",
        "lengths",
        "contexts",
    )
    assert [path for path in unbounded if not set(layers) & set(path.split("."))] == []


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__qualname__)
def test_numbers_are_finite(config):
    for name, field in config.model_fields.items():
        for value in (math.nan, math.inf, -math.inf) if "float" in str(field.annotation) else ():
            with pytest.raises(UsageError, match=name):
                config.parse({name: value})


ODD = (
    None,
    True,
    3.5,
    -1,
    10**30,
    "",
    "x",
    "1-",
    "a,b",
    [],
    [[]],
    [None],
    {},
    {"a": 1},
    {1: "a"},
    {"a": {"b": []}},
    b"x",
)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__qualname__)
def test_values_of_any_type_are_taken_or_refused(config):
    complete = {"name": "a", "kind": "regression", "data": "a.csv", "inputs": "b", "target": "c"}
    given = complete if config.__name__ == "Task" else {}
    for name in config.model_fields:
        for value in ODD:
            with contextlib.suppress(UsageError):
                config.parse({**given, name: value})


@pytest.mark.parametrize(
    "config", [config for config in CONFIGS if "seed" in config.model_fields], ids=lambda config: config.__qualname__
)
def test_seeds(config):
    for seed in (-1, 2**32, "many", 0.5):
        with pytest.raises(UsageError, match="seed"):
            config.parse({"seed": seed})


def test_absurd_settings():
    for values in (
        {"max_steps": 10**9},
        {"epochs": -1},
        {"epochs": 10**9},
        {"learning_rate": 0},
        {"batch_size": 10**12},
    ):
        with pytest.raises(UsageError, match=next(iter(values))):
            Training.parse(values)


@pytest.mark.parametrize("values", [{"head": 0.5}, {"heads": 2}, {"heads": 0.5, "multiple_of": "many"}])
def test_a_config_that_is_constructed_says_what_one_that_is_parsed_says(values):
    with pytest.raises(UsageError) as parsed:
        Pruning.parse(values)
    with pytest.raises(UsageError) as constructed:
        Pruning(**values)
    assert str(constructed.value) == str(parsed.value)
