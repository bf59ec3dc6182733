"""Sequence-level distillation: the student is trained on the teacher's outputs (Kim and Rush 2016, section 3.2).

The targets of the training data are replaced by the teacher's answers, found greedily or by a beam search, before
training; the loss is that of any targets, so it combines with every objective, which then compares the models along
the teacher's answers. Validation data keeps its references. Time: one generation per training example; with
`cache` the answers are kept on disk and read by later runs.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from effitrans.config import Config, Count
from effitrans.distillation.cache import fingerprint
from effitrans.distillation.cache.config import TeacherCache
from effitrans.distillation.cache.store import Store
from effitrans.distillation.teacher import in_evaluation
from effitrans.errors import UsageError
from effitrans.files import sha256_json
from effitrans.processes import process_place, wait_for_everyone
from effitrans.tasks.encoding import model_limit
from effitrans.training.data import Data, lengths_of
from effitrans.training.trainer import accepted_inputs

if TYPE_CHECKING:
    from effitrans.distillation.config import Distillation

logger = logging.getLogger(__name__)

_PART = 512
"""Examples per file of answers."""

_LONGEST = 128
"""Greatest number of new tokens per answer, if the task sets none."""


class SequenceLevel(Config):
    """How the teacher generates the targets."""

    num_beams: Count = 1
    """Beams of the search (default 1: greedy; the paper takes 5)."""


def with_answers(data: Data, student: PreTrainedModel, teacher: PreTrainedModel, config: "Distillation") -> Data:
    """The data with the teacher's answers as targets of the training examples, no longer than both models can take.

    Raises:
        UsageError: a teacher that is no encoder-decoder, or data whose inputs are not known one by one.
    """
    rows: Any = data.train
    if not teacher.config.is_encoder_decoder or isinstance(rows, DataLoader) or "input_ids" not in rows.column_names:
        raise UsageError(
            f"sequence_level takes the answers of an encoder-decoder to texts, and this is a {type(teacher).__name__} "
            "or data without token ids (a DataLoader): leave it out"
        )
    longest = getattr(getattr(data.task, "options", None), "max_new_tokens", _LONGEST)
    known = (model_limit(teacher), model_limit(student), longest + 1)
    limits = [limit - 1 for limit in known if limit is not None]
    assert config.sequence_level is not None  # the caller asks for answers
    settings = {"num_beams": config.sequence_level.num_beams, "do_sample": False, "max_new_tokens": min(limits)}
    with in_evaluation(teacher):
        if config.cache is None:
            answers = _all(data, teacher, config, settings)
        else:
            answers = _stored(data, teacher, config, config.cache, settings)
    kept = rows.remove_columns([name for name in ("labels", "decoder_input_ids") if name in rows.column_names])
    return replace(data, train=kept.add_column("labels", answers))


def _stored(
    data: Data, teacher: PreTrainedModel, config: "Distillation", cache: TeacherCache, settings: dict[str, Any]
) -> list[list[int]]:
    """The answers from disk; those that are missing or damaged are made first, and each process makes its share."""
    rows: Any = data.train
    defaults = {} if teacher.generation_config is None else teacher.generation_config.to_dict()
    key = [fingerprint.of_model(teacher), fingerprint.of_rows(rows), defaults, settings, config.batch_size, _PART]
    store = Store(cache.root / f"answers-{sha256_json(key)[:32]}")
    parts = _parts(len(rows))
    rank, processes = process_place()
    for part in range(rank, len(parts), processes):
        if not store.is_complete(part):
            found = _answers(data, teacher, config, settings, parts[part])
            ends = torch.tensor([0, *map(len, found)]).cumsum(0)
            store.write(part, {"tokens": torch.tensor([token for ids in found for token in ids]), "ends": ends})
    wait_for_everyone()
    stored = map(store.read, range(len(parts)))
    return [ids.tolist() for part in stored for ids in part["tokens"].tensor_split(part["ends"][1:-1])]


def _all(data: Data, teacher: PreTrainedModel, config: "Distillation", settings: dict[str, Any]) -> list[list[int]]:
    """The answers, of which each process makes its share."""
    parts = _parts(len(data.train))  # type: ignore[arg-type]
    rank, processes = process_place()
    own = [_answers(data, teacher, config, settings, part) for part in parts[rank::processes]]
    if processes == 1:
        return [ids for found in own for ids in found]
    from accelerate.utils import gather_object

    shares = gather_object([own])
    return [ids for part in range(len(parts)) for ids in shares[part % processes][part // processes]]


def _parts(count: int) -> list[range]:
    return [range(start, min(start + _PART, count)) for start in range(0, count, _PART)]


def _answers(
    data: Data, teacher: PreTrainedModel, config: "Distillation", settings: dict[str, Any], numbers: range
) -> list[list[int]]:
    """Token ids of the teacher's answers to these examples, in their order, each with its end token."""
    rows: Any = data.train
    logger.info("the teacher answers examples %d to %d of %d", numbers.start + 1, numbers.stop, len(rows))
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else teacher.device
    teacher.to(device)  # type: ignore[arg-type]
    lengths = lengths_of(rows)
    order = sorted(numbers, key=lambda i: lengths[i]) if lengths is not None else list(numbers)
    answers: dict[int, list[int]] = {}
    for chunk in _chunks(order, config.batch_size):
        batch = data.collate([rows[i] for i in chunk])
        inputs = {name: tensor.to(device) for name, tensor in accepted_inputs(teacher, batch).items()}
        for name in ("labels", "decoder_input_ids", "decoder_attention_mask"):
            inputs.pop(name, None)
        with torch.no_grad():
            written = teacher.generate(**inputs, **settings, use_cache=True)  # type: ignore[operator]
        answers |= {i: _until_end(ids, teacher) for i, ids in zip(chunk, written, strict=True)}
    return [answers[i] for i in numbers]


def _until_end(ids: Tensor, teacher: PreTrainedModel) -> list[int]:
    """An answer without the token it starts from, up to its end token; never empty."""
    tokens = ids.tolist()[1:]
    end = teacher.generation_config.eos_token_id if teacher.generation_config is not None else None
    ends = set(end) if isinstance(end, list) else {end}
    for position, token in enumerate(tokens):
        if token in ends:
            return tokens[: position + 1]
    return tokens


def _chunks(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]
