"""Malformed data files: each is read as it stands or refused with one message, soon and in little memory."""

import io
import json
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from effitrans.errors import UsageError
from effitrans.tasks import build_processor, encode, load_task

INPUTS = 60
"""Files of one test."""
SECONDS, MEGABYTES = 30, 500
"""What one file may take, and what all of a test may."""

WORDS = [
    "a",
    "the film",
    "007",
    "1.50",
    "true",
    "NA",
    "null",
    "nan",
    "",
    " ",
    "é",
    "日本",
    "\u2028",
    '"',
    "''",
    "\0",
    "-1",
    "x" * 3000,
]
ODD = [None, True, 0, 1, -1, -100, 0.5, 1e308, float("nan"), float("inf"), 2**63, 10**400, [], {}, [None], [[1]],
       {"a": None}, "\ud800", {"text": ["a"], "answer_start": [0]}, {"text": "a", "answer_start": -1},
       ["O", "B-X"], ["B", None]]  # fmt: skip
BYTES = [
    b"\0",
    b"\xff",
    b"\xfe\xff",
    b"\xef\xbb\xbf",
    b'"',
    b"'",
    b"\n",
    b"\r",
    b",",
    b";",
    b"\t",
    b"[",
    b"{",
    b"}",
    b"\\",
    b"\xc3",
]

KINDS: dict[str, dict[str, Any]] = {
    "sequence-classification": {"inputs": "text", "target": "label"},
    "regression": {"inputs": ["text", "other"], "target": "label"},
    "token-classification": {"inputs": "text", "target": "label"},
    "question-answering": {"inputs": ["text", "other"], "target": "label"},
    "causal-lm": {"inputs": "text"},
    "masked-lm": {"inputs": "text"},
    "seq2seq-lm": {"inputs": "text", "target": "label"},
    "embedding": {"inputs": ["text", "other"], "target": "label"},
    "image-classification": {"inputs": "text", "target": "label"},
}


PLAIN = ["sequence-classification", "regression", "seq2seq-lm", "embedding", "causal-lm"]
USUAL = {".csv": PLAIN, ".tsv": PLAIN, ".txt": ["causal-lm", "masked-lm"]}
"""Suffix -> the kinds whose data such files can hold, where that is not all."""


def plain_row(draw: random.Random, kind: str) -> dict[str, Any]:
    """A row that the kind can use."""
    text = draw.choice(["a fine film", "bad", "on and on"])
    row: dict[str, Any] = {"text": text, "other": text, "label": draw.randrange(3)}
    if kind == "token-classification":
        row |= {"text": text.split(), "label": [draw.choice("OX") for _ in text.split()]}
    elif kind == "question-answering":
        row["label"] = {"text": [text[:3]], "answer_start": [0]}
    elif kind == "image-classification":
        row["text"] = [[0, 1], [draw.randrange(255), 3]]
    elif kind == "seq2seq-lm":
        row["label"] = text
    return row


def rows_of(draw: random.Random, kind: str) -> list[Any]:
    """Rows of which some are odd, for odd reasons."""
    rows: list[Any] = [plain_row(draw, kind) for _ in range(draw.choice([1, 2, 5, 40]))]
    for _ in range(draw.choice([0, 0, 1, 1, 3])):
        row = draw.choice(rows)
        name = draw.choice(["text", "other", "label", "", "more"])
        match draw.randrange(4):
            case 0 if isinstance(row, dict):
                row.pop(name, None)
            case 1 if isinstance(row, dict):
                row[name] = draw.choice(WORDS)
            case 2:
                rows[draw.randrange(len(rows))] = draw.choice([{}, [], 3, None])
            case _ if isinstance(row, dict):
                row[name] = draw.choice(ODD)
    return rows


def as_jsonl(draw: random.Random, rows: list[Any]) -> bytes:
    lines = [json.dumps(row, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass") for row in rows]
    if draw.random() < 0.1:
        depth = draw.choice([10, 70, 900, 10_000, 100_000])
        lines.append(b'{"text": ' + b"[" * depth + b"]" * draw.choice([depth, 0]) + b"}")
    return draw.choice([b"\n", b"\r\n", b"\n\n"]).join(lines) + draw.choice([b"", b"\n"])


def as_json(draw: random.Random, rows: list[Any]) -> bytes:
    if draw.random() < 0.3:
        columns = {
            name: [row.get(name) for row in rows if isinstance(row, dict)] for name in ("text", "other", "label")
        }
        return json.dumps(draw.choice([columns, {"data": rows}, {**columns, "more": []}, rows[:1]])).encode()
    return json.dumps(rows).encode()


def as_csv(draw: random.Random, rows: list[Any]) -> bytes:
    import csv

    text = io.StringIO()
    writer = csv.writer(text, delimiter=draw.choice(",,;\t|"), lineterminator=draw.choice(["\n", "\r\n", "\r"]))
    names = ["text", "other", "label"]
    odd = [["text", "text", "label"], ["", "other", "label"], ["label"], [], ["Text", "other", "label"]]
    header = names if draw.random() < 0.8 else draw.choice(odd)
    writer.writerow(header)
    for row in rows:
        cells = [str(row.get(name, "")) if isinstance(row, dict) else "" for name in ("text", "other", "label")]
        writer.writerow(cells[: 3 if draw.random() < 0.98 else draw.randrange(3)])
    return text.getvalue().encode(draw.choice(["utf-8"] * 4 + ["utf-8-sig", "utf-16", "utf-16-le"]), "surrogatepass")


def as_parquet(draw: random.Random, rows: list[Any]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    columns, kept = {}, [row for row in rows if isinstance(row, dict)]
    for name in ("text", "other", "label"):
        values = [row.get(name) for row in kept]
        try:
            columns[name] = pyarrow.array(values)
            parquet.write_table(pyarrow.table({name: columns[name]}), io.BytesIO())
        except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError, TypeError):
            columns[name] = pyarrow.array([repr(value)[:50] for value in values])
    if draw.random() < 0.3 and kept:
        odd = [pyarrow.array([b"a"] * len(kept)), pyarrow.array([1] * len(kept), pyarrow.timestamp("s")),
               pyarrow.array(["a"] * len(kept)).dictionary_encode(), pyarrow.nulls(len(kept)),
               pyarrow.array([1] * len(kept), pyarrow.uint64()), pyarrow.array([1] * len(kept), pyarrow.duration("ms")),
               pyarrow.array([[("a", 1)]] * len(kept), pyarrow.map_(pyarrow.string(), pyarrow.int32()))]  # fmt: skip
        columns[draw.choice(["text", "label"])] = draw.choice(odd)
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def as_text(draw: random.Random, rows: list[Any]) -> bytes:
    return b"\n".join(str(row).encode("utf-8", "surrogatepass") for row in rows)


FORMATS: dict[str, Callable[[random.Random, list[Any]], bytes]] = {
    ".jsonl": as_jsonl, ".json": as_json, ".csv": as_csv, ".tsv": as_csv, ".parquet": as_parquet, ".txt": as_text,
}  # fmt: skip


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Some bytes changed, lost, doubled or put in; most files stay whole."""
    for _ in range(draw.choice([0] * 6 + [1, 1, 1, 4])):
        at, length = draw.randrange(len(content) + 1), draw.choice([0, 1, 1, 5, 100])
        part = draw.choice(
            [b"", b"", draw.choice(BYTES), draw.choice(BYTES) * 50, content[at : at + 50], draw.randbytes(9)]
        )
        content = content[:at] + part + content[at + length :]
    return content


def use(file: Path, kind: str) -> None:
    """All that is asked of a file before a model runs."""
    definition = {"name": "fuzz", "kind": kind, "data": {"train": file.name}, **KINDS[kind]}
    if kind != "image-classification":
        method = "words" if kind in ("question-answering", "masked-lm") else "bytes"
        definition |= {"tokenizer": {"method": method}, "max_length": 512}
    task = load_task(definition, file.parent)
    task.label_names()
    assert len(task.rows("train")) > 0
    task.fingerprint("train")
    for _ in encode(task, "train", build_processor(task), limit=4):
        pass


def ending(file: Path, kind: str) -> str:
    """`read`, `refused`, or what should not have happened."""
    start = time.perf_counter()
    try:
        use(file, kind)
        found = "read"
    except UsageError as error:
        found = "refused" if 0 < len(str(error)) < 5000 else f"a message of {len(str(error))} characters"
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    return found if time.perf_counter() - start < SECONDS else f"more than {SECONDS} s"


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))], ids="seed-{}".format
)
def test_malformed_files_are_read_or_refused(tmp_path, seed):
    draw = random.Random(seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    endings = {}
    for number in range(INPUTS):
        suffix = draw.choice(list(FORMATS))
        kind = draw.choice(USUAL.get(suffix, list(KINDS)) if draw.random() < 0.9 else list(KINDS))
        file = tmp_path / f"{number}{suffix}"
        file.write_bytes(damaged(draw, FORMATS[suffix](draw, rows_of(draw, kind))))
        endings[f"{file} ({kind})"] = ending(file, kind)
    assert {name: found for name, found in endings.items() if found not in ("read", "refused")} == {}
    counts = [list(endings.values()).count(found) for found in ("read", "refused")]
    assert min(counts) > INPUTS // 10, counts
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024
