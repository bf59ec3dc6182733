"""Taking tokens out of a fast tokenizer, so that texts made of the tokens that stay are split as before.

Why that holds, for a text whose tokens all stay:

- WordPiece takes the longest token that fits. The longest of all is still there, and no longer one came in.
- BPE applies the merge of lowest rank that fits. Merges that build a token that stays all stay, in their order,
  and no new one came in, so every step finds the merge that it found before.
- Unigram takes the split of highest probability. That split is still there, and none came in that could beat it;
  the least likely token stays as well, since the penalty of unknown characters is measured from it.
"""

import copy
import json
import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from effitrans.errors import UsageError
from effitrans.pruning.units.vocabulary.token_ids import translated

MODELS = ("WordPiece", "WordLevel", "BPE", "Unigram")
"""Kinds of tokenizer that can lose tokens."""

_TAG = re.compile(r"\{[{%#].*?[}%#]\}", re.DOTALL)
_QUOTED = re.compile(r"(?<=')[^'\"]+(?=')|(?<=\")[^'\"]+(?=\")")
"""Tags of a chat template, and texts in quotation marks within them (and between them, which does no harm)."""
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def prune_tokenizer(tokenizer: Any, wanted: Collection[int], characters: bool = True) -> tuple[Any, list[int]]:
    """A tokenizer with fewer tokens.

    Args:
        tokenizer: a fast tokenizer of transformers. It is left as it is.
        wanted: ids of the tokens that must stay. What they are built from, every added and special token, and what
            chat templates write stays as well.
        characters: keep all tokens of one character or byte, so that words outside of the corpus can be spelled.

    Returns:
        The new tokenizer, and the old ids in the order of the new ones.

    Raises:
        UsageError: not a fast tokenizer, a kind that is not in `MODELS`, or one that does not come out as meant.
    """
    require_fast(tokenizer)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    if model["type"] not in MODELS:
        raise UsageError(
            f"the tokenizer splits text by {model['type']}, which cannot lose tokens here: expected {', '.join(MODELS)}"
        )
    ids = _vocabulary(model)
    added = {entry["content"]: entry["id"] for entry in state["added_tokens"]}
    every = {**ids, **added}
    templates = _template_ids(tokenizer)
    kept = {token for token, number in every.items() if number in wanted or number in templates}
    kept |= added.keys() | {token for token in tokenizer.all_special_tokens if token in every}
    kept |= {model["unk_token"]} & every.keys() if model.get("unk_token") else set()
    if characters:
        prefix = model.get("continuing_subword_prefix") or ""
        kept |= {token for token in ids if len(token.removeprefix(prefix)) <= 1 or _BYTE.fullmatch(token)}
    if model["type"] == "BPE":
        _keep_parts(model, kept)
    if model["type"] == "Unigram":
        kept.add(min(model["vocab"], key=lambda entry: entry[1])[0])
        if model.get("unk_id") is not None:
            kept.add(model["vocab"][model["unk_id"]][0])
    order = sorted(every[token] for token in kept)
    new_id = {old: new for new, old in enumerate(order)}
    _rewrite(state, ids, kept, new_id)
    return _rebuilt(tokenizer, state, {token: new_id[every[token]] for token in kept}, new_id), order


def _template_ids(tokenizer: Any) -> set[int]:
    """Tokens of the texts that the chat templates put around messages."""
    templates = getattr(tokenizer, "chat_template", None) or {}
    texts: set[str] = set()
    for template in templates.values() if isinstance(templates, Mapping) else [templates]:
        tags = _TAG.findall(template)
        texts.update(_TAG.split(template), *(_QUOTED.findall(tag) for tag in tags))
    texts = {text.replace("\\n", "\n") for text in texts}
    return {token for text in texts for token in tokenizer(text, add_special_tokens=False)["input_ids"]}


def require_fast(tokenizer: Any) -> None:
    """Refuse what is no fast tokenizer.

    Raises:
        UsageError: with its class named.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise UsageError(
            f"{type(tokenizer).__name__} is not a fast tokenizer, and only those can lose tokens: load it with "
            "AutoTokenizer.from_pretrained(..., use_fast=True), or leave the vocabulary as it is"
        )


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    if model["type"] == "Unigram":
        return {token: number for number, (token, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges, which tokenizer files hold as pairs or as text with a space between."""
    return [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]  # type: ignore[misc]


def _product(model: Mapping[str, Any], left: str, right: str) -> str:
    return left + right[len(model.get("continuing_subword_prefix") or "") :]


def _keep_parts(model: dict[str, Any], kept: set[str]) -> None:
    """Add what the kept tokens are merged from, and drop the merges that make none of them; both in place."""
    sources: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for left, right in _pairs(model):
        sources[_product(model, left, right)].append((left, right))
    waiting = list(kept)
    while waiting:
        for part in {part for pair in sources.get(waiting.pop(), []) for part in pair} - kept:
            kept.add(part)
            waiting.append(part)
    model["merges"] = [
        [left, right]
        for left, right in _pairs(model)
        if left in kept and right in kept and _product(model, left, right) in kept
    ]


def _rewrite(state: dict[str, Any], ids: Mapping[str, int], kept: set[str], new_id: Mapping[int, int]) -> None:
    """Put the new ids wherever the tokenizer's file holds ids."""
    model = state["model"]
    if model["type"] == "Unigram":
        if model.get("unk_id") is not None:
            model["unk_id"] = new_id[model["unk_id"]]
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] in kept]
    else:
        model["vocab"] = {token: new_id[number] for token, number in ids.items() if token in kept}
    for entry in state["added_tokens"]:
        entry["id"] = new_id[entry["id"]]
    if state.get("padding"):
        state["padding"]["pad_id"] = new_id.get(state["padding"]["pad_id"], 0)
    if state.get("post_processor"):
        _rewrite_processor(state["post_processor"], new_id)


def _rewrite_processor(processor: dict[str, Any], new_id: Mapping[int, int]) -> None:
    for entry in processor.get("special_tokens", {}).values():
        entry["ids"] = [new_id[number] for number in entry["ids"]]
    for name in ("sep", "cls"):
        if name in processor:
            token, number = processor[name]
            processor[name] = [token, new_id[number]]
    for part in processor.get("processors", []):
        _rewrite_processor(part, new_id)


def _rebuilt(tokenizer: Any, state: dict[str, Any], expected: Mapping[str, int], new_id: Mapping[int, int]) -> Any:
    from tokenizers import Tokenizer

    built = copy.deepcopy(tokenizer)
    built._tokenizer = Tokenizer.from_str(json.dumps(state))
    vars(built).update(translated(vars(built), new_id.get))
    wrong = [token for token, number in expected.items() if built.convert_tokens_to_ids(token) != number]
    if wrong or len(built) != len(expected):
        raise UsageError(
            f"the vocabulary of this {type(tokenizer).__name__} cannot be renumbered"
            + (f" (token {wrong[0]!r})" if wrong else "")
            + ": leave it as it is"
        )
    return built
