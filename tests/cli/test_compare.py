"""`compare models`, gates over several models, attention pictures, and the index."""

import json

import pytest

from effitrans.evaluation import Record


@pytest.fixture
def student(effitrans, tiny_teacher, tiny_task, tmp_path):
    folder = tmp_path / "student"
    outcome = effitrans("prune", tiny_teacher, "--task", tiny_task, "--heads", 0.5, "--output", folder)
    assert outcome.code == 0, outcome.err
    return folder


def test_models_are_compared_with_the_first(effitrans, tiny_teacher, tiny_task, student, tmp_path):
    output = tmp_path / "compared"
    outcome = effitrans(
        "compare", "models", tiny_teacher, student, "--task", tiny_task, "--no-cost", "--output", output
    )
    assert outcome.code == 0, outcome.err
    records = [Record.load(file) for file in sorted((output / "records").iterdir())]
    assert [record.fidelity and record.fidelity.baseline for record in records] == [None, records[0].model]
    assert "student" in outcome.out
    assert "2 models on tiny-sentiment" in (output / "report.html").read_text()
    assert effitrans("report", output, "--latex", "--output", tmp_path / "again.html").code == 0
    assert "tabular" in (tmp_path / "again.tex").read_text()


def test_a_missed_gate_ends_with_3_and_leaves_the_report(effitrans, tiny_teacher, tiny_task, student, tmp_path):
    output = tmp_path / "compared"
    outcome = effitrans(
        *("compare", "models", tiny_teacher, student, "--task", tiny_task, "--no-cost", "--output", output),
        *("--gate", "accuracy>=1.5*baseline"),
    )
    assert outcome.code == 3
    assert "accuracy" in outcome.err
    assert (output / "report.html").is_file()


def test_two_models_of_one_name_are_refused(effitrans, tiny_teacher, tiny_task, tmp_path):
    outcome = effitrans(
        "compare", "models", tiny_teacher, tiny_teacher, "--task", tiny_task, "--output", tmp_path / "compared"
    )
    assert outcome.code == 2
    assert "two models are called" in outcome.err
    assert not (tmp_path / "compared").exists()


def test_attention_is_drawn(effitrans, tiny_teacher, tmp_path):
    picture = tmp_path / "attention.svg"
    assert effitrans("inspect", tiny_teacher, "--attention", "a very fine film", "--output", picture).code == 0
    assert picture.read_text().lstrip().startswith("<?xml")
    assert effitrans("inspect", tiny_teacher, "--attention", "a", "--output", tmp_path / "a.txt").code == 2


def test_the_index_is_drawn(effitrans, tiny_teacher, tiny_task, tmp_path):
    record = json.loads(effitrans("eval", tiny_teacher, "--task", tiny_task, "--no-cost", "--json").out)
    (tmp_path / "reports" / "tiny" / "records").mkdir(parents=True)
    (tmp_path / "reports" / "tiny" / "records" / "a.json").write_text(json.dumps(record))
    assert effitrans("report", "--index", tmp_path / "reports").code == 0
    assert "[tiny](tiny/records)" in (tmp_path / "reports" / "README.md").read_text()


def test_attention_operators_are_compared(effitrans, tiny_task, tmp_path):
    output = tmp_path / "attention"
    arguments = [
        *("compare", "attention", "--task", tiny_task, "--variants", "full,near=local", "--set", "near.window=2"),
        *("--model", "base:hidden_size=16,num_hidden_layers=1,num_attention_heads=2", "--seeds", 1),
        *("--max-steps", 2, "--batch-size", 4, "--output", output),
    ]
    wrong = effitrans(*arguments, "--lengths", "32,many")
    assert wrong.code == 2
    assert "received 'many'" in wrong.err
    outcome = effitrans(*arguments, "--lengths", "none")
    assert outcome.code == 0, outcome.err
    assert "near" in outcome.out
    records = [Record.load(file) for file in (output / "records").iterdir()]
    assert {record.study.variant for record in records if record.study} == {"full", "near"}
    assert not (output / "lengths.json").exists()
    refused = effitrans(*arguments[:4], "--variants", "near=locl", "--output", tmp_path / "other")
    assert refused.code == 2
    assert "did you mean 'local'" in refused.err
