"""Running text cut into blocks of tokens, for language modelling; every token and every byte is accounted for."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import ByT5Tokenizer

PIECE = 1_000_000
"""Characters that are tokenized at a time."""
PLAIN_LINE = re.compile(r"\n(?=\S)")


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
    A character that several tokens spell counts to the last of them. Tokenizers written in Python, except
    ByT5's, give no positions: there the tokens of a line share its bytes equally.
    """
    ids: list[np.ndarray] = [np.zeros(0, np.int64)]
    ends: list[np.ndarray] = [np.zeros(0, np.int64)]
    base = 0
    for piece in _pieces(text, PIECE if tokenizer.is_fast or _is_bytes(tokenizer) else 1):
        piece_ids, piece_ends = _tokenize_piece(piece, tokenizer)
        ids.append(piece_ids)
        ends.append(piece_ends + base)
        base += len(piece.encode("utf-8"))
    all_ids, all_ends = np.concatenate(ids), np.concatenate(ends)
    if len(all_ends):
        all_ends[-1] = base
    return TokenizedText(all_ids, all_ends)


def _is_bytes(tokenizer: Any) -> bool:
    return isinstance(tokenizer, ByT5Tokenizer)


def _pieces(text: str, size: int) -> Iterator[str]:
    """The text in parts of about `size` characters, cut after line ends, where tokenizers cut anyway.

    A line end before a blank or an indented line is avoided, since some tokenizers join such white space.
    """
    start = 0
    while start < len(text):
        found = PLAIN_LINE.search(text, start + size - 1, start + size + PIECE // 10) if size > 1 else None
        end = found.end() if found else (text.find("\n", start + size - 1) + 1 or len(text))
        yield text[start:end]
        start = end


def _tokenize_piece(text: str, tokenizer: Any) -> tuple[np.ndarray, np.ndarray]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    if not len(ids):
        return ids, ids
    if _is_bytes(tokenizer):
        # Special tokens that are spelled out in the text become one token of several bytes.
        width = np.ones(ids.max() + 1, dtype=np.int64)
        for special, token in tokenizer.added_tokens_decoder.items():
            width[special : special + 1] = len(token.content.encode("utf-8"))
        return ids, np.cumsum(width[ids])
    if not tokenizer.is_fast:
        return ids, np.arange(1, len(ids) + 1) * len(text.encode("utf-8")) // len(ids)
    offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    # Byte-level tokens that share a character each claim all of it: only the last of them may count it.
    ends = offsets[:, 1].copy()
    shared = offsets[:-1, 1] > offsets[1:, 0]
    ends[:-1][shared] = offsets[1:, 0][shared]
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    width = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)
    bytes_before = np.concatenate([[0], np.cumsum(width)])
    return ids, np.maximum.accumulate(bytes_before[ends])


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
