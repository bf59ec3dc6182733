"""Extractive question answering: the answer to a question is a span of its context (SQuAD, Rajpurkar et al. 2016).

`inputs` is the columns of the question and of the context, `target` a column as SQuAD has it:
`{"text": [...], "answer_start": [...]}`, acceptable texts and where each starts in the context, in characters.
A context that does not fit is read in windows that overlap by `stride` tokens. The answer is the span with the
highest sum of start and end logits, over all windows, of at most `max_answer_length` tokens. With
`no_answer: true` (SQuAD 2) a question may have no answer: then both lists are empty, and the model says so by
pointing at its first token. Needs a tokenizer that knows character positions. Models:
`AutoModelForQuestionAnswering`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from effitrans.config import Config, Size
from effitrans.errors import UsageError
from effitrans.tasks.encoding import forward_arguments, max_length, need_tokenizer
from effitrans.tasks.kinds.base import Answer, Columns, Kind, row_name, texts, without_labels
from effitrans.tasks.predictions import Predictions

if TYPE_CHECKING:
    from datasets import Dataset

    from effitrans.tasks.task import Task

OUTSIDE = (-1, -1)
"""The offsets of a token that is not of the context, and so can be no part of an answer."""
CANDIDATES = 20
"""Starts, and ends, of highest logit that are combined into spans."""


class QuestionAnsweringOptions(Config):
    """Settings of an extractive question answering task."""

    stride: Size = 128
    """Tokens by which two windows of a long context overlap."""
    max_answer_length: Size = 30
    """Tokens of the longest answer."""
    no_answer: bool = False
    """Whether a question may have no answer."""


class QuestionAnswering(Kind):
    """A question and a context to a span of the context."""

    name: ClassVar[str] = "question-answering"
    auto_class: ClassVar[str] = "AutoModelForQuestionAnswering"
    hub_task: ClassVar[str] = "question-answering"
    answer: ClassVar[Answer] = "span"
    default_metrics: ClassVar[tuple[str, ...]] = ("f1_span", "exact_match")
    Options: ClassVar[type[Config]] = QuestionAnsweringOptions
    input_counts: ClassVar[tuple[int, ...]] = (2,)
    entry_per_row: ClassVar[bool] = False

    def check_task(self, task: "Task") -> None:
        super().check_task(task)
        if task.tokenizer is not None and task.tokenizer.method == "bytes":
            raise UsageError(f"a {self.name} task needs a tokenizer that knows positions: make its method bpe or words")

    def check_rows(self, task: "Task", rows: "Dataset", folder: Path) -> None:
        super().check_rows(task, rows, folder)
        columns = {name: list(rows[name]) for name in task.columns}
        for number in range(len(rows)):
            self._answers(task, columns, number, 0)

    def encode_rows(self, task: "Task", rows: Columns, first: int, processor: Any, model: nn.Module | None) -> Columns:
        question, context = task.input_columns
        tokenizer = need_tokenizer(task, processor)
        if not tokenizer.is_fast:
            raise UsageError(
                f"task {task.name!r} needs a tokenizer that knows positions (a fast one), and "
                f"{type(tokenizer).__name__} does not: use another model, or build_processor(task)"
            )
        questions, contexts = texts(task, rows, question, first), texts(task, rows, context, first)
        answers = [self._answers(task, rows, offset, first) for offset in range(len(questions))]
        limit = max_length(task, tokenizer, model)
        encoded = self._windows(task, tokenizer, questions, contexts, limit)
        sources = encoded["overflow_to_sample_mapping"] if limit else list(range(len(questions)))
        accepted = forward_arguments(model) if model is not None else None
        columns: Columns = {
            name: list(values)
            for name, values in encoded.items()
            if name in tokenizer.model_input_names and (accepted is None or name in accepted)
        }
        columns |= {"start_positions": [], "end_positions": [], "offsets": []}
        for window, source in enumerate(sources):
            is_context = [part == 1 for part in encoded.sequence_ids(window)]
            offsets = [
                tuple(span) if inside else OUTSIDE
                for span, inside in zip(encoded["offset_mapping"][window], is_context, strict=True)
            ]
            start, end = _positions(offsets, answers[source])
            columns["start_positions"].append(start)
            columns["end_positions"].append(end)
            columns["offsets"].append([list(span) for span in offsets])
        columns["length"] = [len(ids) for ids in columns["input_ids"]]
        columns["index"] = [first + source for source in sources]
        return columns

    def _windows(
        self, task: "Task", tokenizer: Any, questions: list[str], contexts: list[str], limit: int | None
    ) -> Any:
        if limit is None:
            return tokenizer(questions, contexts, return_offsets_mapping=True, verbose=False)
        special = tokenizer.num_special_tokens_to_add(pair=True)
        room = (
            limit - special - max(map(len, tokenizer(questions, add_special_tokens=False, verbose=False)["input_ids"]))
        )
        if room <= task.options.stride:
            raise UsageError(
                f"task {task.name!r}: the longest question leaves {room} of {limit} tokens to the context, which must "
                f"be more than the stride of {task.options.stride}: lower options.stride, or raise max_length"
            )
        return tokenizer(
            questions,
            contexts,
            truncation="only_second",
            max_length=limit,
            stride=task.options.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            verbose=False,
        )

    def _answers(self, task: "Task", rows: Columns, offset: int, first: int) -> list[tuple[str, int]]:
        where, answer = row_name(task, first + offset), rows[task.target_column][offset]
        found = _spans(answer)
        if found is None:
            raise UsageError(
                f"{where} has {answer!r} in {task.target!r}: expected {{'text': [...], 'answer_start': [...]}}, as "
                "many texts as whole numbers"
            )
        if not found and not task.options.no_answer:
            raise UsageError(f"{where} has no answer: set `options: {{no_answer: true}}` if questions may have none")
        context = rows[task.input_columns[1]][offset]
        for text, start in found:
            if start < 0 or not text or context[start : start + len(text)] != text:
                raise UsageError(f"{where}: the answer {text!r} does not start at character {start} of the context")
        return found

    def predict_batch(
        self, task: "Task", model: nn.Module, batch: dict[str, Tensor], processor: Any, generation: dict[str, Any]
    ) -> Columns:
        _, start, end = self._run(model, batch)
        losses = _window_losses(start, end, batch).double().tolist()
        return {"start": list(start.cpu().numpy()), "end": list(end.cpu().numpy()), "losses": losses}

    def loss(self, task: "Task", model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Any]:
        output, start, end = self._run(model, batch)
        return _window_losses(start, end, batch).mean() / 2, output

    def _run(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Any, Tensor, Tensor]:
        """Output, and start and end logits [B, L]. Padding can be no answer, so that the loss does not depend on it."""
        output = model(**without_labels(batch, "start_positions", "end_positions"))
        padding = batch["attention_mask"] == 0
        start, end = (
            logits.float().masked_fill(padding, -torch.inf) for logits in (output.start_logits, output.end_logits)
        )
        return output, start, end

    def gather(
        self, task: "Task", rows: "Dataset", encoded: "Dataset", outputs: Columns, processor: Any
    ) -> Predictions:
        count = len(rows)
        best: list[tuple[float, str]] = [(-np.inf, "")] * count
        nothing = np.full(count, np.inf)
        losses, weights = np.zeros(count), np.zeros(count)
        contexts: Any = rows[task.input_columns[1]]
        for window, (index, offsets) in enumerate(zip(encoded["index"], encoded["offsets"], strict=True)):
            start, end = outputs["start"][window][: len(offsets)], outputs["end"][window][: len(offsets)]
            score, span = best_span(start, end, offsets, task.options.max_answer_length)
            if span is not None and score > best[index][0]:
                best[index] = (score, contexts[index][span[0] : span[1]])
            nothing[index] = min(nothing[index], float(start[0] + end[0]))
            losses[index] += outputs["losses"][window]
            weights[index] += 2
        answers = [
            "" if task.options.no_answer and none > score else text
            for (score, text), none in zip(best, nothing, strict=True)
        ]
        return Predictions(
            predictions=answers,
            references=[tuple(answer["text"]) or ("",) for answer in rows[task.target_column]],
            losses=losses,
            weights=weights,
        )


def _spans(answer: Any) -> list[tuple[str, int]] | None:
    """The texts and starts of an answer; None if it is none."""
    texts, starts = (answer.get(name) if isinstance(answer, dict) else None for name in ("text", "answer_start"))
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        return None
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(start, int) for start in starts):
        return None
    return list(zip(texts, starts, strict=True))


def _window_losses(start: Tensor, end: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Negative log-likelihood [B] of the start plus that of the end, of logits [B, L]."""
    cross_entropy = torch.nn.functional.cross_entropy
    return cross_entropy(start, batch["start_positions"], reduction="none") + cross_entropy(
        end, batch["end_positions"], reduction="none"
    )


def _positions(offsets: Sequence[tuple[int, ...]], answers: list[tuple[str, int]]) -> tuple[int, int]:
    """The first and last token of the first answer, or (0, 0) if it is not wholly in this window."""
    if not answers:
        return 0, 0
    text, begin = answers[0]
    end = begin + len(text)
    inside = [n for n, span in enumerate(offsets) if span != OUTSIDE and span[0] < end and span[1] > begin]
    if not inside or offsets[inside[0]][0] > begin or offsets[inside[-1]][1] < end:
        return 0, 0
    return inside[0], inside[-1]


def best_span(
    start: np.ndarray, end: np.ndarray, offsets: list[Any], max_answer_length: int
) -> tuple[float, tuple[int, int] | None]:
    """The best span of a window.

    Args:
        start, end: float [L]: logits of being an answer's first and last token.
        offsets: for each token where it begins and ends in the context, or `OUTSIDE`.
        max_answer_length: tokens of the longest span.

    Returns:
        The sum of the two logits, and the characters where the answer begins and ends; None if there is no context.
    """
    inside = np.array([span[0] >= 0 for span in offsets])
    if not inside.any():
        return -np.inf, None
    starts = np.argsort(np.where(inside, -start, np.inf), kind="stable")[:CANDIDATES]
    ends = np.argsort(np.where(inside, -end, np.inf), kind="stable")[:CANDIDATES]
    spans = [
        (float(start[i] + end[j]), (offsets[i][0], offsets[j][1]))
        for i in starts
        for j in ends
        if inside[i] and inside[j] and 0 <= j - i < max_answer_length
    ]
    return max(spans, key=lambda entry: entry[0], default=(-np.inf, None))
