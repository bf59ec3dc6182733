"""Copies of the training examples with words replaced by a masked language model
(TinyBERT, Jiao et al. 2020, section 4.2 and algorithm 1).

In every copy each word of one token is chosen with a probability, and replaced by one of the K tokens that a masked
language model finds most likely in its place, all with the same chance. Words of several pieces, special tokens and
padding stay. What a copy says may have changed, so its label no longer holds: the loss is the teacher's alone.

Deviations: TinyBERT masks one word at a time, and takes neighbours in a space of word vectors for words of several
pieces; here all chosen words of a copy are masked together, which takes one forward pass per copy and example instead
of one per word.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.distillation.augmentation.config import WordReplacement
from effitrans.distillation.student import differing_tokens
from effitrans.errors import UsageError
from effitrans.training.config import Training
from effitrans.training.data import Data
from effitrans.training.trainer import accepted_inputs

if TYPE_CHECKING:
    from datasets import Dataset


def with_copies(data: Data, processor: Any, replacement: WordReplacement, config: Training) -> Data:
    """The data with changed copies of every training example behind the examples.

    Args:
        data: encoded rows with `input_ids`.
        processor: the tokenizer that made them.
        replacement: the number of copies, the masked language model, and how much is replaced.
        config: its seed draws the words; the model sees batches of its size.

    Raises:
        UsageError: data without token ids, or of pairs or more texts that are compared (embeddings); a tokenizer
            without a mask token, or whose whole words cannot be told; a model that is no masked language model of this
            tokenizer; more candidates than there are words.
    """
    from datasets import concatenate_datasets

    rows: Any = data.train
    is_compared = data.task is not None and data.task.behaviour.compares
    if isinstance(rows, DataLoader) or "input_ids" not in rows.column_names or _span_labels(rows) or is_compared:
        raise UsageError(
            "word_replacement changes tokens of texts that have one answer, and this data has no token ids, an answer "
            "per token, or texts that are compared (embedding): leave it out"
        )
    if getattr(processor, "mask_token_id", None) is None:
        raise UsageError("word_replacement needs a tokenizer with a mask token (pass processor), and this one has none")
    model = _masked_lm(replacement.model, processor)
    words = int((~(_unusable(processor, len(processor)) | _continuations(processor, len(processor)))).sum())
    if replacement.candidates > words:
        raise UsageError(
            f"word_replacement: candidates {replacement.candidates}, and the tokenizer has {words} whole words: "
            f"set candidates to {words} at most"
        )
    generator = torch.Generator().manual_seed(config.seed)
    copies = []
    for _ in range(replacement.copies):
        changed = list(_changed(rows, data, model, processor, replacement, config.batch_size, generator))
        copy = rows.remove_columns("input_ids").add_column("input_ids", changed, feature=rows.features["input_ids"])
        copies.append(copy.select_columns(rows.column_names))
    return replace(data, train=concatenate_datasets([rows, *copies]))


def _span_labels(rows: "Dataset") -> bool:
    first: Any = rows[0]
    return isinstance(first.get("labels"), list) or "start_positions" in first


def _masked_lm(name: str, processor: Any) -> PreTrainedModel:
    model = checkpoint.load_model(name, None)
    if not type(model).__name__.endswith(("ForMaskedLM", "ForPreTraining")):
        raise UsageError(
            f"word_replacement: model {name} is a {type(model).__name__}, which predicts no masked tokens: name a "
            "masked language model (ForMaskedLM) with the student's tokenizer"
        )
    if model.config.vocab_size < len(processor):
        raise UsageError(
            f"word_replacement: model {name} has {model.config.vocab_size} tokens and the student's tokenizer "
            f"{len(processor)}: name a masked language model with the student's tokenizer"
        )
    if different := differing_tokens(processor, checkpoint.load_processor(name)):
        raise UsageError(
            f"word_replacement: model {name} has another tokenizer than the student ({len(different)} tokens differ, "
            f"such as {different[0]!r}): name a masked language model with the student's tokenizer"
        )
    return model.eval()


@torch.no_grad()
def _changed(
    rows: "Dataset",
    data: Data,
    model: PreTrainedModel,
    processor: Any,
    replacement: WordReplacement,
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[list[int]]:
    """The token ids of one copy of every example, in their order."""
    fixed = _unusable(processor, model.config.vocab_size)
    continues = _continuations(processor, model.config.vocab_size)
    for start in range(0, len(rows), batch_size):
        examples: list[Any] = [rows[i] for i in range(start, min(start + batch_size, len(rows)))]
        batch = data.collate(examples)
        ids = batch["input_ids"].clone()
        chosen = replaceable(ids, batch["attention_mask"].bool(), fixed, continues)
        chosen &= torch.rand(ids.shape, generator=generator) < replacement.probability
        masked = ids.masked_fill(chosen, processor.mask_token_id)
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        outputs = model(**accepted_inputs(model, {**inputs, "input_ids": masked}))
        logits = outputs["prediction_logits"] if "prediction_logits" in outputs else outputs["logits"]
        candidates = logits[chosen].masked_fill(fixed | continues, -torch.inf).topk(replacement.candidates).indices
        picks = torch.randint(replacement.candidates, (len(candidates), 1), generator=generator)
        ids[chosen] = candidates.gather(1, picks).squeeze(1)
        for example, changed in zip(examples, ids.tolist(), strict=True):
            yield changed[: len(example["input_ids"])]


def replaceable(ids_BL: Tensor, attended_BL: Tensor, fixed_V: Tensor, continues_V: Tensor) -> Tensor:
    """Boolean [B, L]: the tokens that are a whole word.

    >>> fixed, continues = torch.tensor([1, 0, 0, 0]).bool(), torch.tensor([0, 0, 0, 1]).bool()
    >>> replaceable(torch.tensor([[0, 1, 2, 3]]), torch.ones(1, 4, dtype=torch.bool), fixed, continues).int().tolist()
    [[0, 1, 0, 0]]
    """
    continued = torch.zeros_like(attended_BL)
    continued[:, :-1] = continues_V[ids_BL[:, 1:]]
    return attended_BL & ~fixed_V[ids_BL] & ~continues_V[ids_BL] & ~continued


def _unusable(processor: Any, size: int) -> Tensor:
    """Boolean [V]: special tokens, and rows of the model's table that no token has."""
    fixed = torch.zeros(size, dtype=torch.bool)
    fixed[list(processor.all_special_ids)] = True
    fixed[len(processor) :] = True
    return fixed


def _continuations(processor: Any, size: int) -> Tensor:
    """Boolean [V]: pieces that continue a word.

    Raises:
        UsageError: a tokenizer that does not mark them.
    """
    pieces: Any = getattr(getattr(processor, "backend_tokenizer", None), "model", None)
    kind, continues = type(pieces).__name__, torch.zeros(size, dtype=torch.bool)
    if kind not in ("WordPiece", "WordLevel"):
        raise UsageError(
            f"word_replacement changes whole words, and only WordPiece and word-level tokenizers say which tokens "
            f"are: this is a {type(processor).__name__}. Leave it out"
        )
    if kind == "WordPiece":
        marker = pieces.continuing_subword_prefix
        continues[[i for token, i in processor.get_vocab().items() if token.startswith(marker) and i < size]] = True
    return continues
