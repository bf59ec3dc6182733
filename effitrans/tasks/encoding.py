"""Tokenization: what a model can take, and texts to token ids."""

import inspect
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from effitrans.errors import UsageError

if TYPE_CHECKING:
    from effitrans.tasks.task import Task

logger = logging.getLogger(__name__)

UNLIMITED = 1_000_000
"""Tokenizers that know no limit say a very large number; above this it is none."""


def forward_arguments(model: Any) -> frozenset[str] | None:
    """The names of the inputs that a model takes; None if that cannot be told (a wrapper with `**kwargs` alone)."""
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, nn.Module):
        return None
    parameters = inspect.signature(model.forward).parameters.values()
    names = frozenset(p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    return names or None


def accepted_inputs(model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a batch that the forward method of the model names; all of them if it names none."""
    names = forward_arguments(model)
    return {name: value for name, value in inputs.items() if names is None or name in names}


def model_limit(model: Any) -> int | None:
    """The longest input in tokens that a model's positions allow; None if they set no limit."""
    config = getattr(model, "config", None)
    limit = getattr(config, "max_position_embeddings", None)
    # The base Transformer's other positions have no table that could end.
    kind, position = getattr(config, "model_type", ""), getattr(config, "position", "")
    unlimited = kind == "effitrans" and position not in ("learned", "sinusoidal")
    if not isinstance(limit, int) or limit < 1 or unlimited:
        return None
    # RoBERTa and its like number positions from the padding index on, and lose that many of their table.
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return limit - module.padding_idx - 1
    return limit


def max_length(task: "Task", processor: Any, model: Any) -> int | None:
    """The length that inputs are truncated to: the task's, else the most that model and tokenizer take.

    Raises:
        UsageError: the task asks for more than the model can take.
    """
    limit = within_limit(task, "max_length", task.max_length, model)
    if task.max_length is not None:
        return limit
    known = getattr(processor, "model_max_length", None)
    limits = [value for value in (limit, known) if value is not None and value < UNLIMITED]
    return min(limits) if limits else None


def within_limit(task: "Task", name: str, asked: int | None, model: Any) -> int | None:
    """The length that the setting `name` asks for; the model's own limit if it asks for none.

    Raises:
        UsageError: it asks for more than the model can take.
    """
    limit = model_limit(model) if model is not None else None
    if asked is not None and limit is not None and asked > limit:
        raise UsageError(
            f"task {task.name!r} has {name} {asked} and the model takes {limit} tokens: "
            f"lower it to {limit}, or leave it out"
        )
    return asked if asked is not None else limit


def need_tokenizer(task: "Task", processor: Any) -> Any:
    """The tokenizer, if it is one.

    Raises:
        UsageError: there is none.
    """
    if processor is None or not hasattr(processor, "convert_tokens_to_ids"):
        raise UsageError(
            f"task {task.name!r} ({task.kind}) reads text and needs a tokenizer: pass the one the model came with, "
            "or make one with build_processor(task)"
        )
    return processor


def pad_token_id(processor: Any, model: Any = None) -> int:
    """What token ids are padded with: the padding token, else the end token (attention masks hide it), else 0.

    Tokens that the model has no embedding for are passed over.
    """
    config = getattr(model, "config", None)
    size = getattr(config, "vocab_size", None) or UNLIMITED
    for owner, name in ((processor, "pad"), (config, "pad"), (processor, "eos"), (config, "eos")):
        value = getattr(owner, f"{name}_token_id", None)
        if isinstance(value, int) and 0 <= value < size:
            return value
    return 0


def fill_id(tokenizer: Any) -> int:
    """The token that stands for an empty text: every sequence holds at least one."""
    for name in ("eos", "bos", "cls", "pad"):
        value = getattr(tokenizer, f"{name}_token_id", None)
        if value is not None:
            return value
    return 0


def encode_texts(
    task: "Task",
    first: list[str],
    second: list[str] | None,
    tokenizer: Any,
    model: Any,
    most: int | None = None,
) -> dict[str, list[list[int]]]:
    """Token ids, attention masks and, where the model takes them, token types of texts or pairs of texts.

    Longer ones are truncated to `max_length`, of a pair the longer text first; to `most`, if that is less and the task
    says nothing.
    """
    tokenizer = need_tokenizer(task, tokenizer)
    accepted = forward_arguments(model) if model is not None else None
    limit = max_length(task, tokenizer, model)
    if most is not None and task.max_length is None:
        limit = min(limit or most, most)
    encoded = tokenizer(
        first, second, truncation=limit is not None, max_length=limit, padding=False, return_attention_mask=True
    )
    columns: dict[str, list[list[int]]] = {
        name: list(values) for name, values in encoded.items() if accepted is None or name in accepted
    }
    columns.setdefault("attention_mask", list(encoded["attention_mask"]))
    mend_empty(columns, tokenizer)
    cut = sum(len(ids) >= limit for ids in columns["input_ids"]) if limit else 0
    if cut:
        logger.info("task %s: %d of %d texts fill or exceed %d tokens", task.name, cut, len(first), limit)
    return columns


def mend_empty(columns: dict[str, list[list[int]]], tokenizer: Any) -> None:
    """A text without tokens becomes one token, since no model takes a sequence of none."""
    for row, ids in enumerate(columns["input_ids"]):
        if not ids:
            for name, values in columns.items():
                values[row] = [{"input_ids": fill_id(tokenizer), "attention_mask": 1}.get(name, 0)]


def encode_words(
    task: "Task", words: list[list[str]], tokenizer: Any, model: Any
) -> tuple[dict[str, list[list[int]]], list[list[int | None]]]:
    """Token ids and attention masks of sentences given as words, and the word that each token belongs to.

    Words are tokenized one by one, with the space that separates them, which every tokenizer can do.

    Returns:
        The model inputs, and for each token the number of its word in the sentence (None for special tokens).
    """
    tokenizer = need_tokenizer(task, tokenizer)
    accepted = forward_arguments(model) if model is not None else None
    limit = max_length(task, tokenizer, model)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": []}
    all_word_ids: list[list[int | None]] = []
    types = "token_type_ids" in tokenizer.model_input_names and (accepted is None or "token_type_ids" in accepted)
    prefix, suffix = special_tokens(tokenizer)
    room = limit - len(prefix) - len(suffix) if limit else None
    for sentence in words:
        pieces = _tokens_of_words(sentence, tokenizer)
        ids = [token for piece in pieces for token in piece][:room]
        numbers = [number for number, piece in enumerate(pieces) for _ in piece][:room]
        columns["input_ids"].append([*prefix, *ids, *suffix] or [fill_id(tokenizer)])
        row_words: list[int | None] = [*[None] * len(prefix), *numbers, *[None] * len(suffix)]
        all_word_ids.append(row_words or [None])
    columns["attention_mask"] = [[1] * len(ids) for ids in columns["input_ids"]]
    if types:
        columns["token_type_ids"] = [[0] * len(ids) for ids in columns["input_ids"]]
    return columns, all_word_ids


def _tokens_of_words(words: list[str], tokenizer: Any) -> list[list[int]]:
    """The tokens of each word. A word the tokenizer has nothing for gets the unknown token, so that it is tagged."""
    if not words:
        return []
    spaced = [word if number == 0 else " " + word for number, word in enumerate(words)]
    encoded = tokenizer(spaced, add_special_tokens=False, verbose=False)["input_ids"]
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id is not None else fill_id(tokenizer)
    return [ids or [unknown] for ids in encoded]


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that a tokenizer puts before and after a single text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a", add_special_tokens=True)["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return list(full[:start]), list(full[start + len(bare) :])
    return [], []
