"""Token ids in configs and tokenizers: which fields hold them and in which form, and how they are numbered anew.

A field is known by its name. What is no field of ids (`stop_strings`, `max_new_tokens`, labels) is not touched.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

Translate = Callable[[int], int | None]
"""Old id -> new id; None for a token that is not there any more."""


def translated(fields: Mapping[str, Any], translate: Translate) -> dict[str, Any]:
    """The fields that hold ids, with each id translated; what consists of a token that is gone is left out.

    >>> fields = {"eos_token_id": [2, 9], "bad_words_ids": [[3], [4, 9]], "max_new_tokens": 3}
    >>> translated(fields, {2: 0, 3: 1, 4: 2}.get)
    {'eos_token_id': [0], 'bad_words_ids': [[1]]}
    """
    found = {}
    for name, value in fields.items():
        form = next((form for pattern, form in _FORMS.items() if re.fullmatch(pattern, name)), None)
        if value is None or name.startswith("_"):
            continue
        if form is not None:
            found[name] = form(value, translate)
        elif isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            inner = translated(value, translate)  # settings by task
            if inner:
                found[name] = {**value, **inner}
    return found


def named_ids(fields: Mapping[str, Any]) -> set[int]:
    """All ids that the fields hold."""
    found: set[int] = set()

    def note(token: int) -> int:
        found.add(token)
        return token

    translated(fields, note)
    return found


def configs(model: nn.Module, rows: int) -> list[Any]:
    """Every config and generation config that a model, its modules and their configs hold, each once.

    A config with another `vocab_size` than `rows` speaks of another vocabulary and is left out.
    """
    found = [part for module in model.modules() for part in _parts(getattr(module, "config", None))]
    found += [getattr(module, "generation_config", None) for module in model.modules()]
    sized = [part for part in found if part is not None and getattr(part, "vocab_size", None) in (None, rows)]
    return list({id(part): part for part in sized}.values())


def parts(config: PreTrainedConfig, rows: int) -> list[PreTrainedConfig]:
    """As `configs`, of one config and those that it holds."""
    return [part for part in _parts(config) if getattr(part, "vocab_size", None) in (None, rows)]


def _parts(config: Any) -> Iterator[Any]:
    if isinstance(config, PreTrainedConfig):
        yield config
        for value in vars(config).values():
            yield from _parts(value)


def _one(value: Any, translate: Translate) -> Any:
    """An id; what is none (a negative number, None) stays."""
    return translate(value) if type(value) is int and value >= 0 else value


def _ids(value: Any, translate: Translate) -> Any:
    """An id, or a list of ids that do not depend on one another."""
    if not isinstance(value, list | tuple):
        return _one(value, translate)
    return [new for new in (_one(token, translate) for token in value) if new is not None]


def _sequence(value: list[Any], translate: Translate) -> list[Any] | None:
    """Ids that follow each other, or lists of such; None where nothing is left."""
    if any(isinstance(part, list | tuple) for part in value):
        return [left for part in value if (left := _sequence(part, translate))] or None
    new = [_one(token, translate) for token in value]
    return None if None in new else new


def _by_position(value: list[Any], translate: Translate) -> list[Any]:
    """Pairs of a position and the id that is forced there, or None."""
    return [
        [place, _one(token, translate)] for place, token in value if token is None or _one(token, translate) is not None
    ]


def _biased(value: Any, translate: Translate) -> Any:
    """Sequences of ids with a number: a mapping, or a list of pairs."""
    pairs = value.items() if isinstance(value, Mapping) else value
    left = [(new, bias) for tokens, bias in pairs if (new := _sequence(list(tokens), translate))]
    return (
        {tuple(new): bias for new, bias in left} if isinstance(value, Mapping) else [[new, bias] for new, bias in left]
    )


def _by_name(value: Any, translate: Translate) -> Any:
    """Names with their ids."""
    if not isinstance(value, Mapping):
        return value
    new = {name: _one(token, translate) for name, token in value.items()}
    return {name: token for name, token in new.items() if token is not None}


def _by_id(value: Any, translate: Translate) -> Any:
    """Ids with their names."""
    new = {_one(token, translate): name for token, name in value.items()}
    return {token: name for token, name in new.items() if token is not None}


_FORMS: dict[str, Callable[[Any, Translate], Any]] = {
    r".*_token_(ids?|index)|(bos|eos|pad|unk|mask|sep|cls)_index": _ids,
    r"(begin_)?suppress_tokens|(prefix|suffix)_tokens|cur_lang_(code|id)": _ids,
    r"bad_words_ids|force_words_ids": _sequence,
    r"forced_decoder_ids": _by_position,
    r"sequence_bias": _biased,
    r".*_to_ids?": _by_name,
    r".*_ids_to_tokens|id_to_lang_code": _by_id,
}
"""Name of a field (a pattern for all of it) -> how its value holds ids."""
