"""`prune_vocabulary`: tokens that a corpus does not use leave the tokenizer and the model together.

The rows of tokens that go are cut out of the embedding, of output layers (tied ones stay tied) and of everything
else that has an entry a token; the rest keeps its order and is numbered anew, in the configs too. Tokens that the
tokenizer, its chat template or a config names stay. For texts whose tokens all stay,
every output of the model is what it was. Ushio et al. 2023 (arXiv:2305.15020) call it vocabulary trimming.

Which tensors have an entry a token is not guessed: two empty models are built on the meta device, one with the
old and one with the new vocabulary, and what differs in shape is cut.
"""

import copy
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.checkpoint.accepting import takes_models
from effitrans.checkpoint.manifest import skeleton
from effitrans.config import as_config
from effitrans.errors import UsageError
from effitrans.pruning.accepting import refuse_unprunable
from effitrans.pruning.units.vocabulary.config import VocabularyPruning
from effitrans.pruning.units.vocabulary.token_ids import configs, named_ids, parts, translated
from effitrans.pruning.units.vocabulary.tokenizer import prune_tokenizer, require_fast
from effitrans.tasks import Task, encode, load_task, names_task

logger = logging.getLogger(__name__)

_CHECKED_ROWS = 256


class PrunedVocabulary(NamedTuple):
    """What `pruned_vocabulary` gives back."""

    model: PreTrainedModel
    tokenizer: Any
    kept_ids: list[int]
    """Old ids of the tokens that stay, in the order of the new ids."""


def prune_vocabulary(
    model: PreTrainedModel,
    tokenizer: Any,
    data: str | Path | Mapping[str, Any] | Task | Sequence[str],
    config: VocabularyPruning | None = None,
    *,
    inplace: bool = False,
) -> PreTrainedModel:
    """Remove the tokens that a corpus does not use from a model and its tokenizer.

    Args:
        model: a floating-point model with token embeddings, of any architecture, or its folder.
        tokenizer: its fast tokenizer (WordPiece, WordLevel, BPE or Unigram). None: the one in the model's folder.
        data: a task, of which `config.splits` are read, or texts.
        config: which tokens stay.
        inplace: change `model` and `tokenizer` themselves. Otherwise both are left as they are, and the tokenizer of
            the new model comes from `pruned_vocabulary`, which takes the same arguments.

    Returns:
        The model.

    Raises:
        UsageError: integer weights, no fast tokenizer, a tokenizer of another model, or nothing to remove. Model and
            tokenizer are then untouched.

    >>> from effitrans.pruning import prune_vocabulary
    >>> small = prune_vocabulary(model, tokenizer, "sst2", inplace=True)                      # doctest: +SKIP
    >>> small.save_pretrained("runs/small"); tokenizer.save_pretrained("runs/small")          # doctest: +SKIP
    """
    pruned = pruned_vocabulary(model, tokenizer, data, config, inplace=inplace)
    if inplace and tokenizer is not None:
        vars(tokenizer).clear()
        vars(tokenizer).update(vars(pruned.tokenizer))
    return pruned.model


@takes_models("model")
def pruned_vocabulary(
    model: PreTrainedModel,
    processor: Any,
    data: str | Path | Mapping[str, Any] | Task | Sequence[str],
    config: VocabularyPruning | None = None,
    *,
    inplace: bool = False,
) -> PrunedVocabulary:
    """As `prune_vocabulary`, with the new tokenizer and the old ids beside the model.

    `processor` is the tokenizer, which is left as it is; `inplace` changes the model alone.
    """
    tokenizer = processor
    config = as_config(
        config, "prune_vocabulary", VocabularyPruning, "VocabularyPruning(min_count=2)", default=VocabularyPruning()
    )
    refuse_unprunable(model)
    rows = _embedding_rows(model)
    if tokenizer is None:
        raise UsageError("vocabulary pruning needs the tokenizer of the model: pass it, or save it beside the model")
    require_fast(tokenizer)
    counts = _count(data, config, tokenizer, model)
    wanted = {token for token, count in counts.items() if count >= config.min_count} | _named_ids(model, rows)
    if wanted and max(wanted) >= rows:
        raise UsageError(f"the tokenizer gives token {max(wanted)} and the model has {rows}: pass the model's own")
    smaller, kept = prune_tokenizer(tokenizer, wanted, config.characters)
    kept = [token for token in kept if token < rows]
    if len(kept) == rows:
        raise UsageError(f"all {rows} tokens are used or needed: raise min_count, or leave the vocabulary as it is")
    new_id = {old: new for new, old in enumerate(kept)}
    _check_positions(model, new_id, rows)
    plan = _plan(model, new_id, rows)
    _check_tokenizer(data, config, tokenizer, smaller, model, new_id)
    target = model if inplace else copy.deepcopy(model)
    before = target.num_parameters()
    _cut(target, plan, kept)
    for part in configs(target, rows):
        if unknown := {name for name, value in vars(part).items() if named_ids({name: value}) - new_id.keys()}:
            logger.warning("%s: what is no token of the tokenizer is left out", ", ".join(sorted(unknown)))
        _renumber(part, new_id)
    checkpoint.record(
        target,
        "prune",
        {"vocab": _name(data), **config.model_dump(mode="json", exclude={"corpus"})},
        parameters_before=before,
        parameters_after=target.num_parameters(),
        tokens_before=rows,
        tokens_after=len(kept),
    )
    logger.info("pruned the vocabulary of %s: %d -> %d tokens", type(target).__name__, rows, len(kept))
    return PrunedVocabulary(target, smaller, kept)


def _embedding_rows(model: PreTrainedModel) -> int:
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    size = getattr(model.config.get_text_config(), "vocab_size", None)
    weight = getattr(embedding, "weight", None)
    if not isinstance(weight, Tensor) or size is None or weight.shape[0] != size:
        raise UsageError(
            f"{type(model).__name__} has no token embedding of config.vocab_size rows ({size}): "
            "it has no vocabulary to prune"
        )
    return size


def _check_positions(model: PreTrainedModel, new_id: Mapping[int, int], rows: int) -> None:
    """Refuse to move the padding token of a model that counts its positions from that token's id (RoBERTa)."""
    padding = getattr(model.config.get_text_config(), "pad_token_id", None)
    if padding is None or new_id.get(padding) == padding:
        return
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and module.padding_idx == padding and module.num_embeddings != rows:
            raise UsageError(
                f"{name} counts positions from the id of the padding token, which would move from {padding} to "
                f"{new_id.get(padding)}: only a tokenizer whose padding token stands in front can be pruned here"
            )


def _name(data: Any) -> str:
    if not names_task(data):
        return "texts"
    return str(data) if isinstance(data, str | Path) else load_task(data).name


def _count(data: Any, config: VocabularyPruning, tokenizer: Any, model: PreTrainedModel) -> Counter[int]:
    """How often each token occurs in the corpus, in what a model would read and, where these are tokens, write."""
    counts: Counter[int] = Counter()
    for rows in _encoded(data, config, tokenizer, model, None):
        for ids in rows:
            counts.update(ids)
    return counts


def _encoded(
    data: Any, config: VocabularyPruning, tokenizer: Any, model: PreTrainedModel, limit: int | None
) -> Iterable[list[list[int]]]:
    """Token ids of the corpus, one list of rows for each split and column."""
    if not names_task(data):
        texts = list(data)[:limit]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UsageError("the corpus holds no texts: give a task, or a list of strings")
        yield tokenizer(texts)["input_ids"]
        return
    task = load_task(data)
    for split in config.splits:
        encoded = encode(task, split, tokenizer, model, limit)
        if "input_ids" not in encoded.column_names:
            raise UsageError(f"task {task.name!r} ({task.kind}) has no texts: its vocabulary cannot be pruned")
        columns = ["input_ids"] + (
            ["labels"] if task.behaviour.labels_are_tokens and "labels" in encoded.column_names else []
        )
        for column in columns:
            yield [[token for token in ids if token >= 0] for ids in encoded[column]]


def _check_tokenizer(
    data: Any,
    config: VocabularyPruning,
    old: Any,
    new: Any,
    model: PreTrainedModel,
    new_id: Mapping[int, int],
) -> None:
    """Make sure on real texts that what consists of kept tokens is split as before."""
    before = _encoded(data, config, old, model, _CHECKED_ROWS)
    after = _encoded(data, config, new, model, _CHECKED_ROWS)
    for ours, theirs in zip(before, after, strict=True):
        for left, right in zip(ours, theirs, strict=True):
            if all(token in new_id for token in left) and [new_id[token] for token in left] != right:
                raise UsageError(
                    f"without the removed tokens this {type(old).__name__} splits a text of kept ones in another way "
                    f"({old.decode(left[:20])!r}...): leave its vocabulary as it is"
                )


def _named_ids(model: PreTrainedModel, rows: int) -> set[int]:
    """Tokens that the model's configs name, such as those that decoding starts with, ends with or never writes."""
    return {token for config in configs(model, rows) for token in named_ids(vars(config)) if token < rows}


def _renumber(config: Any, new_id: Mapping[int, int]) -> None:
    for name, value in translated(vars(config), new_id.get).items():
        setattr(config, name, value)
    if getattr(config, "vocab_size", None) is not None:
        config.vocab_size = len(new_id)


class _Change(NamedTuple):
    """A tensor to cut along a dimension, or an attribute to set."""

    path: str
    name: str
    dim: int | None
    value: Any = None


def _plan(model: PreTrainedModel, new_id: Mapping[int, int], rows: int) -> list[_Change]:
    """What differs between a model with the old and one with the new vocabulary.

    Raises:
        UsageError: a tensor in which more than one entry a token changes, or that the model holds otherwise.
    """
    config = copy.deepcopy(model.config)
    for part in parts(config, rows):
        _renumber(part, new_id)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        smaller = dict(type(model)(config).named_modules(remove_duplicate=False))
    changes: list[_Change] = []
    actual = dict(model.named_modules(remove_duplicate=False))
    for path, module in skeleton(model).named_modules(remove_duplicate=False):
        other = smaller.get(path)
        if path not in actual or other is None:
            continue
        tensors, others = ({**m._parameters, **m._buffers} for m in (module, other))
        for name, tensor in tensors.items():
            if tensor is None or others.get(name) is None or tensor.shape == others[name].shape:  # type: ignore[union-attr]
                continue
            dims = [d for d in range(tensor.dim()) if tensor.shape[d] != others[name].shape[d]]  # type: ignore[union-attr]
            mine = getattr(actual[path], name, None)
            if len(dims) != 1 or not isinstance(mine, Tensor) or mine.shape[dims[0]] != tensor.shape[dims[0]]:
                raise UsageError(f"{path}.{name} does not hold one entry a token: this vocabulary cannot be pruned")
            changes.append(_Change(path, name, dims[0]))
        for name, value in vars(module).items():
            if isinstance(value, int) and name in vars(other) and vars(other)[name] != value:
                changes.append(_Change(path, name, None, vars(other)[name]))
    return changes


@torch.no_grad()
def _cut(model: nn.Module, plan: Sequence[_Change], kept: Sequence[int]) -> None:
    """Carry the plan out; a tensor that several modules hold stays one."""
    index = torch.tensor(kept)
    made: dict[int, Tensor] = {}
    originals: list[Tensor] = []  # held, so that no id is given out twice
    for path, name, dim, value in plan:
        module = model.get_submodule(path)
        if dim is None:
            setattr(module, name, value)
            continue
        old = getattr(module, name)
        if id(old) not in made:
            originals.append(old)
            new = old.index_select(dim, index.to(old.device)).contiguous()
            made[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
        setattr(module, name, made[id(old)])
