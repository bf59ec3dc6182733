"""Running text cut into blocks of tokens, for language modelling; every token and every byte is accounted for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

PIECE = 1_000_000
"""Characters that are tokenized at a time. Text is cut after a line end that another line follows."""


@dataclass(frozen=True)
class TokenizedText:
    """A text as tokens. T tokens."""

    ids: np.ndarray
    """int64 [T]: token ids, no special token among them."""
    ends: np.ndarray
    """int64 [T]: UTF-8 bytes of the text up to the end of each token; the last is the length of the text."""


def tokenize(text: str, tokenizer: Any) -> TokenizedText:
    """Tokenize a text of any length, remembering how many bytes each token reaches.

    White space that the tokenizer drops counts to the next token, and what follows the last token to the last.
    A character that several tokens spell counts to the last of them. A tokenizer that is written in Python
    gives no positions: its tokens share the bytes of each line equally, except for ByT5's, which are bytes.
    """
    ids: list[np.ndarray] = [np.zeros(0, np.int64)]
    ends: list[np.ndarray] = [np.zeros(0, np.int64)]
    base = 0
    for piece in _pieces(text, PIECE if tokenizer.is_fast else 1):
        size = len(piece.encode("utf-8"))
        piece_ids, piece_ends = _tokenize_piece(piece, size, tokenizer)
        ids.append(piece_ids)
        ends.append(piece_ends + base)
        base += size
    all_ids, all_ends = np.concatenate(ids), np.concatenate(ends)
    if len(all_ends):
        all_ends[-1] = base
    return TokenizedText(all_ids, all_ends)


def _pieces(text: str, size: int) -> Iterator[str]:
    start = 0
    while start < len(text):
        end = start + size
        while (end := text.find("\n", end - 1) + 1) and end < len(text) and text[end].isspace():
            end += 1
        end = end or len(text)
        yield text[start:end]
        start = end


def _tokenize_piece(text: str, size: int, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    if not tokenizer.is_fast:
        ids = np.asarray(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int64)
        return ids, np.arange(1, len(ids) + 1) * size // max(len(ids), 1)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    # Byte-level tokens that share a character each claim all of it: only the last of them may count it.
    ends = offsets[:, 1].copy()
    if len(ends):
        shared = offsets[:-1, 1] > offsets[1:, 0]
        ends[:-1][shared] = offsets[1:, 0][shared]
    width = np.fromiter((len(char.encode("utf-8")) for char in text), dtype=np.int64, count=len(text))
    bytes_before = np.concatenate([[0], np.cumsum(width)])
    return ids, np.maximum.accumulate(bytes_before[ends]) if len(ends) else ends


@dataclass(frozen=True)
class Block:
    """Tokens `start` to `end` of a sequence, of which those from `predicted` on are to be predicted."""

    start: int
    predicted: int
    end: int


def cut(count: int, length: int, context: int) -> Iterator[Block]:
    """Blocks of at most `length` tokens that predict each of `count` tokens but the first exactly once.

    Args:
        count: tokens of the sequence; the first is never predicted (it is the start token, where there is one).
        length: tokens of a block.
        context: tokens that a block repeats from the one before, at least 1.
    """
    start, predicted = 0, 1
    while predicted < count:
        end = min(start + length, count)
        yield Block(start, predicted, end)
        predicted = end
        start = end - context
