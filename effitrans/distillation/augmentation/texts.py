"""Further texts without labels: those of a file, and random parts of the training texts.

A part is a run of neighbouring words, as in the phrases that the Stanford Sentiment Treebank labels one by one
(Socher et al. 2013). What a part says is not what the whole says, so the loss is the teacher's alone, as for texts
that never had a label.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from effitrans.distillation.augmentation.config import Augmentation
from effitrans.distillation.data import check_cuts
from effitrans.errors import UsageError, unknown_name
from effitrans.tasks import KINDS, Task
from effitrans.tasks.sources import load_file
from effitrans.training.config import Training
from effitrans.training.data import Data

SHORTEST = 3
"""Words of the shortest part of a text."""


def with_texts(
    data: Data,
    added: Augmentation,
    config: Training,
    processor: Any,
    models: Sequence[PreTrainedModel],
    apart: bool = False,
) -> Data:
    """The data with `added.crops` parts of every training text and the texts of the file `added.unlabeled` behind
    the training examples, with labels that are not used.

    Args:
        data: of a task with one answer per text.
        added: the number of parts, the file, or both.
        config: its seed draws the parts.
        processor: the tokenizer of all models.
        models: the student and its teachers, whose inputs are made.
        apart: whether the models have tokenizers of their own, which is refused.

    Raises:
        UsageError: other data, no such file or column, a file without a row, no text that has parts, or one that
            the models would cut at different places.
    """
    task = data.task
    if task is None or not task.behaviour.answers_whole_text or apart:
        kinds = ", ".join(name for name, kind in KINDS.items() if kind.answers_whole_text)
        raise UsageError(
            f"augmentation: {'crops' if added.crops else 'unlabeled'} adds texts to a task with one answer per text "
            f"({kinds}), read by models of one tokenizer: leave it out, or pass encoded rows without labels"
        )
    if added.crops:
        texts = task.rows("train", config.max_train_examples).select_columns(list(task.input_columns))
        parts = list(_parts(texts, added.crops, config.seed))
        if not parts:
            raise UsageError(f"crops: no training text has more than {SHORTEST} words: leave it out")
        data = _behind(data, parts, task, processor, models)
    if added.unlabeled is not None:
        data = _behind(data, _read(added.unlabeled, task), task, processor, models)
    return data


def _behind(
    data: Data, texts: Sequence[Mapping[str, str]], task: Task, processor: Any, models: Sequence[PreTrainedModel]
) -> Data:
    from datasets import Dataset, concatenate_datasets

    columns: dict[str, Any] = {name: [text[name] for text in texts] for name in task.input_columns}
    columns[task.target_column] = [task.rows("train", 1)[0][task.target_column]] * len(texts)  # type: ignore[call-overload]
    rows: Any = data.train
    encoded: dict[str, Any] = {}
    for model in models:
        mine = task.behaviour.encode_rows(task, columns, len(rows), processor, model)
        check_cuts(mine["length"], encoded.get("length", mine["length"]))
        encoded = {**mine, **encoded}
    further = Dataset.from_dict({name: encoded[name] for name in rows.column_names}, features=rows.features)
    return replace(data, train=concatenate_datasets([rows, further]))


def _parts(texts: Any, times: int, seed: int) -> Iterator[dict[str, str]]:
    """Parts of all texts, several times over; texts too short to lose a word are left out."""
    generator = random.Random(seed)
    for _ in range(times):
        for text in texts:
            part = {name: crop(words, generator) for name, words in text.items()}
            if part != text:
                yield part


def crop(text: str, generator: random.Random) -> str:
    """A random run of the text's words, of three at least and never all; a text without such a run stays as it is.

    >>> crop("a warm and funny film", random.Random(0))
    'warm and funny film'
    >>> crop("a funny film", random.Random(0))
    'a funny film'
    """
    words = text.split()
    if len(words) <= SHORTEST:
        return text
    length = generator.randint(SHORTEST, len(words) - 1)
    start = generator.randint(0, len(words) - length)
    return " ".join(words[start : start + length])


def _read(file: str, task: Task) -> Any:
    texts = load_file(file, "unlabeled")
    for column in task.input_columns:
        if column not in texts.column_names:
            raise unknown_name(f"column ({file})", column, texts.column_names)
    if not len(texts):
        raise UsageError(f"{file} is empty: expected at least one row")
    return texts
