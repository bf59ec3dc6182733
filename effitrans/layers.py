"""Which layers are meant, written one way everywhere: `0-3,5`, a number, a list of these, or globs over module paths.

Numbers count from 0; what they count (the self-attention layers of a model, the layers of each stack) is said where
they are asked for.
"""

import re
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import BeforeValidator

from effitrans.errors import UsageError

MOST = 9_999
"""The largest number that a layer can have; it bounds the memory that a span takes."""

_SPAN = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")
_PATH = re.compile(r"[\w.*?!\[\]-]+")


def parse_layers(given: Any, what: str = "") -> tuple[int | str, ...]:
    """The numbers and path patterns that a setting names, in its order; `what` names the setting in messages.

    >>> parse_layers("0-3,5"), parse_layers([2, "decoder.layers.*.encoder_attn"])
    ((0, 1, 2, 3, 5), (2, 'decoder.layers.*.encoder_attn'))

    Raises:
        UsageError: nothing, something twice, a span that runs backwards, or what is neither a number nor a path.
    """
    named: list[int | str] = []
    for item in given if isinstance(given, list | tuple | range) else [given]:
        if type(item) is int and 0 <= item <= MOST:
            named.append(item)
        elif isinstance(item, str) and item.strip():
            for part in item.split(","):
                named.extend(_part(part, what, item))
        else:
            raise _misread(what, item)
    if not named:
        raise _error(what, "received an empty list, expected at least one layer; leave it out for all")
    twice = [item for item, count in Counter(named).items() if count > 1]
    if twice:
        raise _error(what, f"{given!r} names {twice[0]!r} twice: name each layer once")
    return tuple(named)


def layer_numbers(given: Any, what: str = "") -> tuple[int, ...]:
    """As `parse_layers`, of numbers alone.

    Raises:
        UsageError: also where a path is named.
    """
    named = parse_layers(given, what)
    numbers = tuple(item for item in named if isinstance(item, int))
    if len(numbers) < len(named):
        raise _misread(what, given, "numbers from 0 such as 0-3,5")
    return numbers


def _kept(given: Any) -> int | tuple[int, ...]:
    if type(given) is int and given < 1:
        raise UsageError(
            f"received {given}, expected a number of layers from 1, or which: text or a list such as 0-3,5"
        )
    return given if type(given) is int else layer_numbers(given)


def _part(part: str, what: str, item: str) -> Sequence[int | str]:
    span = _SPAN.fullmatch(part)
    if span is not None:
        first, last = int(span[1][:9]), int((span[2] or span[1])[:9])
        if last > MOST:
            raise _error(what, f"{item!r} names layer {last}; layers have numbers up to {MOST}")
        if last < first:
            raise _error(what, f"the span {part.strip()!r} runs backwards: write {last}-{first}")
        return range(first, last + 1)
    path = part.strip()
    if _PATH.fullmatch(path) and not re.fullmatch(r"[\d-]+", path):
        return [path]
    raise _misread(what, item)


def _misread(what: str, given: Any, expected: str = "numbers from 0 such as 0-3,5, or module paths") -> UsageError:
    return _error(what, f"received {given!r}, expected {expected}")


def _error(what: str, message: str) -> UsageError:
    return UsageError(f"{what}: {message}" if what else message)


def check_numbers(numbers: Sequence[int], total: int, whose: str, what: str = "layer") -> None:
    """Refuse numbers that no layer has; `whose` and `what` are for the message.

    Raises:
        UsageError: with the numbers that there are.
    """
    if wrong := [number for number in numbers if not 0 <= number < total]:
        raise UsageError(f"{whose} has no {what} {wrong[0]}: it has {total}, numbered from 0 to {total - 1}")


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern names this module or one that holds it: a full path, or one dotted part of it; `*` and `?`.

    >>> matches("classifier", "classifier.dense"), matches("encoder.layer.0", "encoder.layer.01.output")
    (True, False)
    """
    parts = path.split(".")
    parents = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
    return any(fnmatchcase(part, pattern) for part in parts) or any(fnmatchcase(parent, pattern) for parent in parents)


Named = int | str | list[int | str]
"""How the fields below are written."""

Layers = Annotated[
    tuple[int | str, ...], BeforeValidator(lambda given: parse_layers(given), json_schema_input_type=Named)
]
"""Field of a config: layers by number or path."""

Kept = Annotated[int | tuple[int, ...], BeforeValidator(_kept, json_schema_input_type=Named)]
"""Field of a config: how many layers (a number), or which (text, a list)."""
