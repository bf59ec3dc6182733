"""The field `objective`: which objectives, with the settings of each.

objective: response
objective: response,feature
objective: {response: 1, feature: 0.5}
objective: {relation: {weight: 1, heads: 8}}
"""

from collections.abc import Mapping
from typing import Annotated, Any

import pydantic
from pydantic import BeforeValidator, SerializeAsAny

from effitrans.distillation.objectives import OBJECTIVES, ObjectiveConfig
from effitrans.errors import UsageError, unknown_name


def parse_objectives(value: Any) -> dict[str, ObjectiveConfig]:
    """Name -> settings, from any of the ways to write them.

    Args:
        value: names with a comma between or as a list, or name -> weight, settings as a mapping, or a config.

    Raises:
        UsageError: no or an unknown objective, one that is named twice, or settings that it does not take.

    >>> parse_objectives({"response": 1, "relation": {"heads": 8}})["relation"].heads
    8
    """
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if isinstance(value, list | tuple):
        names = [str(name) for name in value]
        if len(set(names)) != len(names):
            raise UsageError(f"received one objective twice: {', '.join(names)}")
        value = dict.fromkeys(names, 1.0)
    if not isinstance(value, Mapping):
        raise UsageError("expected a name, a list of names, or {name: weight or settings}")
    if not value:
        raise UsageError(f"received none, expected at least one of {', '.join(OBJECTIVES)}")
    return {str(name): _parse_settings(str(name), settings) for name, settings in value.items()}


def _parse_settings(name: str, value: Any) -> ObjectiveConfig:
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    config_class = OBJECTIVES[name].config_class
    if type(value) is config_class:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = {"weight": value}
    if not isinstance(value, Mapping):
        raise UsageError(f"{name}: expected a weight or a mapping of settings such as {{weight: 1}}")
    return config_class.parse(value, name)


class _Schema:
    """The JSON schema of the field, drawn from the registry when it is asked for."""

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: pydantic.GetJsonSchemaHandler) -> dict[str, Any]:
        weight = {"type": "number", "exclusiveMinimum": 0}
        settings = {
            name: {"anyOf": [weight, handler(objective.config_class.__pydantic_core_schema__)]}
            for name, objective in OBJECTIVES.items()
        }
        return {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"enum": sorted(OBJECTIVES)}},
                {"type": "object", "properties": settings, "additionalProperties": False},
            ]
        }


Objectives = Annotated[dict[str, SerializeAsAny[ObjectiveConfig]], BeforeValidator(parse_objectives), _Schema()]
"""Field of a config: objectives by name, in any of the ways of `parse_objectives`."""
