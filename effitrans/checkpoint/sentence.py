"""What a folder of sentence-transformers says beside its weights: how token vectors become the vector of a text.

`modules.json` lists the modules a text goes through, each with its folder: the Transformer itself, `1_Pooling` and
perhaps others. `config_sentence_transformers.json` holds the prompts, `sentence_bert_config.json` the longest input.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import cached_file

from effitrans.errors import CheckpointError

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
LENGTH = "sentence_bert_config.json"

_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How earlier versions wrote the poolings, in the order in which they are joined."""
_KNOWN = ("Transformer", "Pooling", "Normalize", "Dropout")
"""Modules that effitrans computes; dropout does nothing outside training."""


@dataclass(frozen=True)
class SentenceSettings:
    """How a text becomes a vector."""

    pooling: tuple[str, ...]
    """Names as in `effitrans.tasks.pooling`; several are joined."""
    prompt: str = ""
    """What is put before every text."""
    max_length: int | None = None
    """Tokens that a text is truncated to; None: what tokenizer and model take."""
    normalize: bool = False
    """Vectors are divided by their length."""
    lower_case: bool = False
    """Texts are put in lower case first."""


@dataclass(frozen=True)
class SentenceModule:
    """An entry of `modules.json`."""

    kind: str
    """The name of the class."""
    folder: str
    """Its folder, relative to that of the model; empty for the model itself."""


def sentence_settings(config: PreTrainedConfig) -> SentenceSettings | None:
    """What the folder or hub repository that a model was loaded from says; None where it says nothing.

    Raises:
        CheckpointError: the files are damaged, or name a module that changes the vectors and is not known here.
    """
    name = str(getattr(config, "_name_or_path", "") or "")
    modules = Path(name) / MODULES
    if not name or (Path(name).is_dir() and not modules.is_file()):
        return None
    changed = modules.stat().st_mtime_ns if modules.is_file() else None
    return _read_settings(name, getattr(config, "_commit_hash", None), changed)


@lru_cache
def _read_settings(name: str, revision: str | None, changed: int | None) -> SentenceSettings | None:
    """`changed` tells a folder that was written again."""
    file = beside(name, MODULES, revision)
    if file is None:
        return None
    modules = sentence_modules(file)
    for module in modules:
        if module.kind not in _KNOWN:
            raise CheckpointError(
                f"{file} names {module.kind} ({module.folder or 'no folder'}), which effitrans does not compute: name "
                "the pooling in the task (`options: {pooling: mean}`) to score the vectors before it"
            )
    poolings = [module for module in modules if module.kind == "Pooling"]
    if len(poolings) != 1:
        raise CheckpointError(f"{file} names {len(poolings)} Pooling modules, expected one: its vectors are unknown")
    prompts = _read(beside(name, PROMPTS, revision))
    chosen, texts = prompts.get("default_prompt_name"), prompts.get("prompts")
    prompt = texts.get(str(chosen)) if isinstance(texts, dict) and chosen is not None else None
    if chosen is not None and not isinstance(prompt, str):
        raise CheckpointError(f"{file.with_name(PROMPTS)} has no prompt {chosen!r}: save or download the model again")
    pooling, includes_prompt = _pooling(beside(name, f"{poolings[0].folder}/config.json", revision), file)
    if prompt and not includes_prompt:
        raise CheckpointError(
            f"{file}: the Pooling leaves out the prompt ({prompt!r}), which effitrans does not: name the pooling in "
            "the task (`options: {pooling: mean}`) to score without a prompt"
        )
    lengths = _read(beside(name, LENGTH, revision))
    length = lengths.get("max_seq_length")
    return SentenceSettings(
        pooling=pooling,
        prompt=prompt or "",
        max_length=length if isinstance(length, int) else None,
        normalize=any(module.kind == "Normalize" for module in modules),
        lower_case=bool(lengths.get("do_lower_case")),
    )


def _pooling(file: Path | None, modules: Path) -> tuple[tuple[str, ...], bool]:
    if file is None:
        raise CheckpointError(f"{modules} names a Pooling whose config.json is missing: save or download it again")
    config = _read(file)
    names = config.get("pooling_mode") or [name for flag, name in _FLAGS.items() if config.get(flag)] or ["mean"]
    names = names if isinstance(names, list) else [names]
    for name in names:
        if name not in _FLAGS.values():
            raise CheckpointError(f"{file}: unknown pooling {name!r}; known: {', '.join(_FLAGS.values())}")
    return tuple(names), config.get("include_prompt", True) is not False


def beside(name: str, file: str, revision: str | None = None) -> Path | None:
    """A file of a folder, or of a hub repository or its cache; None where there is none."""
    try:
        found = cached_file(
            name,
            file,
            revision=revision if not Path(name).is_dir() else None,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:  # a folder that is gone, whose name is no repository's
        return None
    return None if found is None else Path(found)


def sentence_modules(file: Path) -> list[SentenceModule]:
    """The entries of a `modules.json`.

    Raises:
        CheckpointError: the file is damaged, or names a folder outside its own.
    """
    entries = _read(file, list)
    modules = []
    for entry in entries:
        kind, folder = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(folder, str) or not _is_inside(folder):
            raise CheckpointError(
                f"{file}: expected entries with a type and a path inside the folder, received {entry}"
            )
        modules.append(SentenceModule(kind.rpartition(".")[2], folder))
    return modules


def _is_inside(folder: str) -> bool:
    return not PurePosixPath(folder).is_absolute() and ".." not in PurePosixPath(folder).parts


def _read(file: Path | None, expected: type = dict) -> Any:
    if file is None:
        return expected()
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}): save or download the model again") from error
    if not isinstance(content, expected):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, expected a {expected.__name__}")
    return content
