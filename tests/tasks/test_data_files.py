"""What users' files look like: cells that look like numbers, what spreadsheets write, labels that are not there."""

import json
import logging
import os
import re

import pytest

from effitrans.errors import UsageError
from effitrans.tasks import load_task

CLASSES = {"kind": "sequence-classification", "inputs": "text", "target": "label"}
SCORES = {"kind": "regression", "inputs": "text", "target": "label"}
TAGS = {"kind": "token-classification", "inputs": "words", "target": "tags"}
TRANSLATIONS = {"kind": "seq2seq-lm", "inputs": "text", "target": "label"}
ANSWERS = {"kind": "question-answering", "inputs": ["question", "context"], "target": "answers"}
TEXTS = {"kind": "causal-lm", "inputs": "text"}


def task_of(folder, name, content, **definition):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_task({"name": "mine", "data": {"train": name}, **definition}, folder)


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def answer(texts, starts):
    return lines({"question": "q", "context": "abc", "answers": {"text": texts, "answer_start": starts}})


READ = {
    "texts-that-look-like-numbers": (
        "x.csv", "text,label\n007,a\n1.50,b\ntrue,a\nNA,b\nnull,a\nnan,b\n1e5,a\n2020-01-01,b\n", CLASSES,
        ["007", "1.50", "true", "NA", "null", "nan", "1e5", "2020-01-01"], list("abababab"),
    ),
    "dates-in-json": ("x.jsonl", lines({"text": "2020-01-01", "label": "a"}, {"text": "2021-01-01", "label": "b"}),
                      CLASSES, ["2020-01-01", "2021-01-01"], ["a", "b"]),
    "empty-text": ("x.csv", 'text,label\n"",a\nx,b\n', CLASSES, ["", "x"], ["a", "b"]),
    "ids": ("x.csv", "text,label\na,0\nb,1\n", CLASSES, ["a", "b"], [0, 1]),
    "ids-of-pandas": ("x.csv", "text,label\na,0.0\nb,1.0\n", CLASSES, ["a", "b"], [0.0, 1.0]),
    "names-with-zeros": ("x.csv", "text,label\na,007\nb,008\n", CLASSES, ["a", "b"], ["007", "008"]),
    "yes-and-no": ("x.csv", "text,label\na,yes\nb,no\n", CLASSES, ["a", "b"], ["yes", "no"]),
    "true-and-false": ("x.csv", "text,label\na,true\nb,false\n", CLASSES, ["a", "b"], ["true", "false"]),
    "fractions-that-are-names": ("x.csv", "text,label\na,1.50\nb,2.0\n", {**CLASSES, "labels": ["1.50", "2.0"]},
                                 ["a", "b"], ["1.50", "2.0"]),
    "label-named-na": ("x.csv", "text,label\na,NA\nb,EU\n", CLASSES, ["a", "b"], ["NA", "EU"]),
    "scores": ("x.csv", "text,label\na,-1.5\nb,2\nc,1e-3\n", SCORES, ["a", "b", "c"], [-1.5, 2.0, 0.001]),
    "texts-for-texts": ("x.csv", "text,label\n1,007\n2,\n", TRANSLATIONS, ["1", "2"], ["007", ""]),
    "bom-and-crlf": ("x.csv", b"\xef\xbb\xbftext,label\r\na,0\r\nb,1\r\n", CLASSES, ["a", "b"], [0, 1]),
    "bom-in-jsonl": ("x.jsonl", b"\xef\xbb\xbf" + lines({"text": "a", "label": 0}, {"text": "b", "label": 1}).encode(),
                     CLASSES, ["a", "b"], [0, 1]),
    "semicolons": ("x.csv", "text;label\na, b;0\nc;1\n", CLASSES, ["a, b", "c"], [0, 1]),
    "tabs": ("x.csv", "text\tlabel\na, b\t0\nc\t1\n", CLASSES, ["a, b", "c"], [0, 1]),
    "cp1252": ("x.csv", "text,label\ncafé “x”,0\nb,1\n".encode("cp1252"), CLASSES, ["café “x”", "b"], [0, 1]),
    "utf-16": ("x.csv", "text,label\ncafé,0\nb,1\n".encode("utf-16"), CLASSES, ["café", "b"], [0, 1]),
    "index-of-pandas": ("x.csv", ",text,label\n0,a,0\n1,b,1\n", CLASSES, ["a", "b"], [0, 1]),
    "line-in-a-cell": ("x.csv", 'text,label\n"a\nb, ""c""",0\nd,1\n', CLASSES, ['a\nb, "c"', "d"], [0, 1]),
    "long-cell": ("x.csv", f"text,label\n{'a' * 200_000},0\nb,1\n", CLASSES, ["a" * 200_000, "b"], [0, 1]),
    "unicode-names": ("x.csv", "тéкст,étiquette\na,ja\nb,naïve\n",
                      {**CLASSES, "inputs": "тéкст", "target": "étiquette"},
                      ["a", "b"], ["ja", "naïve"]),
    "capital-suffix": ("x.CSV", "text,label\na,0\nb,1\n", CLASSES, ["a", "b"], [0, 1]),
    "lines-in-json": ("x.json", lines({"text": "a", "label": 0}, {"text": "b", "label": 1}), CLASSES,
                      ["a", "b"], [0, 1]),
    "columns-in-json": ("x.json", '{"text": ["a", "b"], "label": [0, 1]}', CLASSES, ["a", "b"], [0, 1]),
    "empty-rows-of-spreadsheets": ("x.csv", "text,label\na,0\n,\n\nb,1\n , \n", CLASSES, ["a", "b"], [0, 1]),
    "empty-objects": ("x.jsonl", lines({"text": "a", "label": 0}, {}, {"text": "b", "label": 1}, {"text": None}),
                      CLASSES, ["a", "b"], [0, 1]),
    "ignored-tags": ("x.jsonl", lines({"words": ["a", "b"], "tags": [0, -100]}, {"words": ["c"], "tags": [1]}),
                     TAGS, [["a", "b"], ["c"]], [[0, -100], [1]]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "definition", "texts", "targets"), READ.values(), ids=READ)
def test_files_are_read(tmp_path, name, content, definition, texts, targets):
    task = task_of(tmp_path, name, content, **definition)
    rows = task.rows("train")
    assert list(rows[task.input_columns[0]]) == texts
    assert list(rows[task.target_column]) == targets


LABELS = {
    "from-one": ([1, 2, 3], ("1", "2", "3")),
    "apart": ([10, 20], ("10", "20")),
    "many": (list(range(12)), tuple(map(str, range(12)))),
}


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize(("ids", "names"), LABELS.values(), ids=LABELS)
def test_ids_give_the_classes_that_there_are(tmp_path, ids, names, suffix):
    rows = [{"text": "a", "label": label} for label in ids]
    table = "text,label\n" + "".join(f"a,{label}\n" for label in ids)
    task = task_of(tmp_path, f"x.{suffix}", table if suffix == "csv" else lines(*rows), **CLASSES)
    assert task.label_names() == names
    assert task.behaviour.label_ids(task, {"label": list(task.rows("train")["label"])}, 0) == list(range(len(ids)))


REFUSED = {
    "missing-labels": ("x.csv", "text,label\na,0\nb,\nc,1\nd,\n", CLASSES, r"rows 2, 4 of .* have no 'label'"),
    "missing-label-beside-an-empty-row": ("x.csv", "text,label\na,x\n,\nb,\nc,y\n", CLASSES,
                                          r"row 3 of .* has no 'label'"),
    "empty-label": ("x.jsonl", lines({"text": "a", "label": ""}, {"text": "b", "label": "x"}), CLASSES,
                    "row 1 .* no 'label'"),
    "nan-label": ("x.jsonl", '{"text": "a", "label": NaN}\n{"text": "b", "label": 1.0}\n', CLASSES,
                  "row 1 .* no 'label'"),
    "missing-score": ("x.csv", "text,label\na,1.5\nb,\n", SCORES, "row 2 .* no 'label'"),
    "missing-text": ("x.jsonl", lines({"label": 0}, {"text": "b", "label": 1}), CLASSES, "row 1 .* no 'text'"),
    "short-row": ("x.csv", "text,label\na,0\nb\n", CLASSES, "line 3: 1 cells, and the header has 2"),
    "long-row": ("x.csv", "text,label\na, b,0\n", CLASSES, "line 2: 3 cells.* quote cells that hold commas"),
    "open-quote": ("x.csv", 'text,label\na,0\n"b,1\nc,0\n', CLASSES, "line 3: a quote is opened and never closed"),
    "quote-within": ("x.csv", 'text,label\n"a" b,0\n', CLASSES, "line 2: something follows the quote"),
    "same-name-twice": ("x.csv", "text,text,label\na,b,0\n", CLASSES, "column 'text' twice"),
    "nul": ("x.csv", b"text,label\na\0,0\n", CLASSES, "NUL"),
    "utf-16-without-a-mark": ("x.csv", "text,label\ncafé,0\n".encode("utf-16-le"), CLASSES, "UTF-8|NUL"),
    "cp1252-jsonl": ("x.jsonl", b'{"text": "caf\xe9", "label": 0}\n', CLASSES, "not UTF-8"),
    "binary": ("x.csv", bytes(range(128, 256)), CLASSES, "not UTF-8"),
    "no-header": ("x.csv", "a fine film,0\nbad,1\n", CLASSES, r"unknown column .*'text'.*Valid: 0, a fine film"),
    "other-name": ("x.csv", "texts,label\na,0\n", CLASSES, "did you mean 'texts'"),
    "deep": ("x.jsonl", '{"text": ' + "[" * 10_000 + "]" * 10_000 + "}\n", CLASSES, "deep within one another.*line 1"),
    "deep-json": ("x.json", "[" * 500 + "]" * 500, CLASSES, "deep within one another"),
    "endless-number": ("x.jsonl", '{"text": "a", "label": ' + "1" * 5000 + "}\n", CLASSES, "cannot be read"),
    "large-number": ("x.jsonl", '{"text": "a", "label": ' + "1" * 30 + "}\n", CLASSES, "column 'label' cannot be read"),
    "half-a-character": ("x.jsonl", '{"text": "\\ud800", "label": 0}\n', CLASSES, "column 'text' cannot be read"),
    "mixed-types": ("x.jsonl", lines({"text": "a", "label": 0}, {"text": "b", "label": "x"}), CLASSES,
                    "'label' holds a number in row 1 and a text in row 2"),
    "text-that-is-none": ("x.jsonl", lines({"text": 1, "label": 0}, {"text": 2, "label": 1}), CLASSES,
                          "expected a text"),
    "one-object": ("x.json", '{"text": "a", "label": 0}', CLASSES, "expected a list of objects"),
    "uneven-columns": ("x.json", '{"text": ["a"], "label": []}', CLASSES, "columns of 0 to 1 values"),
    "several-labels": ("x.jsonl", lines({"text": "a", "label": ["x", "y"]}), CLASSES, "takes one class"),
    "several-labels-as-bits": ("x.jsonl", lines({"text": "a", "label": [0, 1]}), CLASSES, "takes one class"),
    "label-of-parts": ("x.jsonl", lines({"text": "a", "label": {"x": 1}}), CLASSES, "takes one class"),
    "unlabelled-ids": ("x.csv", "text,label\na,-1\nb,0\n", CLASSES, "holds -1: .*leave out rows without a label"),
    "scores-as-classes": ("x.csv", "text,label\na,1.5\nb,2.5\n", CLASSES, "want the kind `regression`"),
    "one-class": ("x.csv", "text,label\na,x\n", CLASSES, "1 different value"),
    "score-that-is-none": ("x.csv", 'text,label\na,"1,5"\nb,2\n', SCORES, "row 1 .*'1,5'.*expected a number"),
    "endless-score": ("x.csv", "text,label\na,inf\nb,2\n", SCORES, "row 1 .*expected a number"),
    "score-true": ("x.jsonl", lines({"text": "a", "label": True}), SCORES, "row 1 .*expected a number"),
    "fewer-tags": ("x.jsonl", lines({"words": ["a"], "tags": ["X"]}, {"words": ["b", "c"], "tags": ["O"]}), TAGS,
                   "split 'train': row 2 .* 2 words and 1 tags"),
    "tags-in-csv": ("x.csv", "words,tags\na b,O X\n", TAGS, "expected a list of words"),
    "answer-elsewhere": ("x.jsonl", answer(["b"], [9]), ANSWERS, "row 1 .*does not start at character 9"),
    "answer-before-the-start": ("x.jsonl", answer(["c"], [-1]), ANSWERS, "does not start at character -1"),
    "answer-without-lists": ("x.jsonl", answer("b", 1), ANSWERS, "as many texts as whole numbers"),
    "more-answers-than-starts": ("x.jsonl", answer(["a", "b"], [0]), ANSWERS, "as many texts as whole numbers"),
    "nothing-but-empty-rows": ("x.csv", "text,label\n,\n,\n", CLASSES, "is empty"),
    "no-text": ("x.txt", b"\xff\xfea", TEXTS, "not UTF-16"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "definition", "message"), REFUSED.values(), ids=REFUSED)
def test_files_are_refused(tmp_path, name, content, definition, message):
    with pytest.raises(UsageError, match=f"(?s){message}"):
        task_of(tmp_path, name, content, **definition).rows("train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text;label\na;0\nb;1\n", "separated by semicolons"),
        ("text,label\ncafé,0\nb,1\n".encode("cp1252"), "byte 14 cannot be read.*read as cp1252"),
        ("text,label\na,0\n,\n,\nb,1\n", r"2 empty rows are left out .*\(rows 2, 3\)"),
    ],
    ids=["semicolons", "cp1252", "empty-rows"],
)
def test_what_was_assumed_is_said_once(tmp_path, caplog, content, message):
    task = task_of(tmp_path, "x.csv", content, **CLASSES)
    with caplog.at_level(logging.WARNING):
        task.rows("train")
        task.rows("train")
        task.label_names()
    assert len(caplog.messages) == 1
    assert re.search(message, caplog.messages[0])


def test_labels_that_training_never_saw_are_refused_beforehand(tmp_path):
    (tmp_path / "test.csv").write_text("text,label\na,x\nb,z\n")
    task = task_of(
        tmp_path, "train.csv", "text,label\na,x\nb,y\n", **CLASSES, data={"train": "train.csv", "test": "test.csv"}
    )
    with pytest.raises(UsageError, match=r"split 'test': row 2 .*'z'.*none of the 2 labels"):
        task.rows("test")


def test_categories_of_pandas_are_texts(tmp_path):
    import pandas

    pandas.DataFrame({"text": ["a", "b"], "label": pandas.Categorical(["x", "y"])}).to_parquet(tmp_path / "x.parquet")
    task = load_task({"name": "mine", "data": {"train": "x.parquet"}, **CLASSES}, tmp_path)
    assert task.label_names() == ("x", "y")


def test_images_that_are_none_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    task = task_of(tmp_path, "x.csv", "image,label\na.png,0\na.png,1\n", kind="image-classification", inputs="image",
                   target="label")  # fmt: skip
    with pytest.raises(UsageError, match=r"row 1 .*a\.png, which cannot be read as an image"):
        task.rows("train")


def test_a_file_is_read_once_and_again_when_it_has_changed(tmp_path, monkeypatch):
    from effitrans.tasks import readers

    reads = []
    reader = readers.READERS[".csv"]
    monkeypatch.setitem(readers.READERS, ".csv", lambda path: reads.append(path) or reader(path))
    task = task_of(tmp_path, "x.csv", "text,label\na,0\nb,1\n", **CLASSES)
    before, times = task.fingerprint("train"), (tmp_path / "x.csv").stat()
    assert task.label_names() == ("0", "1")
    assert len(reads) == 1
    (tmp_path / "x.csv").write_text("text,label\nA,0\nB,1\n")
    os.utime(tmp_path / "x.csv", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert task.fingerprint("train") != before
    assert len(reads) == 2
