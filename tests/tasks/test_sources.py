"""Every file format, the hub, and data that cannot be read."""

import json

import pytest

from effitrans.errors import UsageError
from effitrans.tasks import load_task, sources
from effitrans.tasks.readers import READERS

ROWS = [
    {"sentence": "a fine film", "label": 1},
    {"sentence": "null", "label": 0},
    {"sentence": 'says "no, never"', "label": 0},
    {"sentence": "très bien 日本", "label": 1},
]


@pytest.fixture(autouse=True)
def _forget_hub_data():
    sources._load_hub.cache_clear()


def write(path, rows=ROWS):
    """The rows in the format that the suffix names."""
    import datasets

    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        datasets.Dataset.from_list(rows).to_parquet(path)
    else:
        import pandas

        pandas.DataFrame(rows).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def task_of(folder, file, **changes):
    values = {"name": "mine", "kind": "sequence-classification", "inputs": "sentence", "target": "label"}
    return load_task({**values, "data": {"train": file}, **changes}, folder)


@pytest.mark.parametrize("suffix", [suffix for suffix in READERS if suffix != ".txt"])
def test_formats_give_the_same_rows_and_fingerprint(tmp_path, suffix):
    write(tmp_path / f"data{suffix}")
    write(tmp_path / "reference.jsonl")
    task = task_of(tmp_path, f"data{suffix}")
    assert [dict(row) for row in task.rows("train")] == ROWS
    assert task.fingerprint("train") == task_of(tmp_path, "reference.jsonl").fingerprint("train")
    assert task.label_names() == ("0", "1")


def test_txt_keeps_every_byte(tmp_path):
    content = "one\r\ntwo\n\n  three é\n".encode()
    (tmp_path / "text.txt").write_bytes(content)
    task = load_task({"name": "t", "kind": "causal-lm", "inputs": "text", "data": {"test": "text.txt"}}, tmp_path)
    assert task.rows("test")["text"][0].encode() == content


def test_paths_start_at_the_yaml_file(tmp_path, monkeypatch):
    folder = tmp_path / "somewhere"
    folder.mkdir()
    write(folder / "train.jsonl")
    (folder / "task.yaml").write_text(
        "name: mine\nkind: sequence-classification\ndata: {train: train.jsonl}\ninputs: sentence\ntarget: label\n"
    )
    monkeypatch.chdir(tmp_path)
    task = load_task("somewhere/task.yaml")
    monkeypatch.chdir(folder)
    assert len(task.rows("train")) == 4
    assert len(load_task("task.yaml").rows("train", limit=2)) == 2


def test_changed_file_is_read_again(tmp_path):
    write(tmp_path / "data.jsonl")
    task = task_of(tmp_path, "data.jsonl")
    before = task.fingerprint("train")
    write(tmp_path / "data.jsonl", [*ROWS, {"sentence": "more", "label": 1}])
    assert len(task.rows("train")) == 5
    assert task.fingerprint("train") != before


BAD_FILES = {
    "empty-jsonl": ("x.jsonl", "", "is empty"),
    "blank-jsonl": ("x.jsonl", "\n\n", "no rows|cannot be read"),
    "header-only-csv": ("x.csv", "sentence,label\n", "holds no rows"),
    "malformed-jsonl": ("x.jsonl", '{"sentence": "a", "label": 0}\n{"sentence": "b", \n', "line 2"),
    "jsonl-without-objects": ("x.jsonl", '{"sentence": "a", "label": 0}\n[1]\n', "line 2 is not an object"),
    "malformed-json": ("x.json", "[{]", "cannot be read as json"),
    "ragged-csv": ("x.csv", "sentence,label\na,0\nb,1,2,3\n", "line 3: 4 cells, and the header has 2"),
    "not-parquet": ("x.parquet", "hello", "cannot be read as parquet"),
    "unknown-format": ("x.xlsx", "hello", r"unknown file format.*'\.xlsx'"),
    "missing-value": (
        "x.jsonl",
        '{"sentence": "a", "label": 0}\n{"sentence": "b", "label": null}\n',
        "row 2 .*'label'",
    ),
    "missing-column": ("x.jsonl", '{"sentense": "a", "label": 0}\n', "did you mean 'sentense'"),
}


@pytest.mark.parametrize(("file", "content", "message"), BAD_FILES.values(), ids=BAD_FILES)
def test_unusable_files_are_refused(tmp_path, file, content, message):
    (tmp_path / file).write_text(content)
    with pytest.raises(UsageError, match=message):
        task_of(tmp_path, file).rows("train")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"nothing\.jsonl.*does not exist"):
        task_of(tmp_path, "nothing.jsonl").rows("train")


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"caf\xe9")
    task = load_task({"name": "t", "kind": "causal-lm", "inputs": "text", "data": {"test": "x.txt"}}, tmp_path)
    with pytest.raises(UsageError, match=r"not UTF-8.*byte 3"):
        task.rows("test")


def test_unset_data_folder_falls_back_to_the_hub(monkeypatch):
    asked = []

    def load_dataset(*arguments, **keywords):
        import datasets

        asked.append((*arguments, keywords))
        return datasets.Dataset.from_list([{"text": "fine", "label": 1, "label_text": "positive"}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.delenv("EFFITRANS_DATA", raising=False)
    rows = load_task("sst2").rows("test")
    assert rows["sentence"][0] == "fine"
    assert asked == [("SetFit/sst2", None, {"split": "test", "revision": None})]


def test_hub_that_cannot_be_reached_is_refused(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'SetFit/sst2' on the Hub")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    monkeypatch.delenv("EFFITRANS_DATA", raising=False)
    with pytest.raises(UsageError, match=r"SetFit/sst2.*set EFFITRANS_DATA"):
        load_task("sst2").rows("test")


def test_data_folder_without_the_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("EFFITRANS_DATA", str(tmp_path))
    with pytest.raises(UsageError, match=r"sst2/test\.jsonl.*does not exist.*unset EFFITRANS_DATA"):
        load_task("sst2").rows("test")


def test_class_names_of_the_data_set_are_used(monkeypatch):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["ham", "spam"])}
    )
    rows = datasets.Dataset.from_list([{"text": "hello", "label": 0}, {"text": "money", "label": 1}], features=features)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows)
    task = load_task(
        {
            "name": "spam",
            "kind": "sequence-classification",
            "data": {"hub": "spam"},
            "inputs": "text",
            "target": "label",
        }
    )
    assert task.label_names() == ("ham", "spam")
