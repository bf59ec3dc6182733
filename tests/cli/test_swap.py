"""`effitrans swap --dry-run`: a table of errors, and nothing written."""

import re

import pytest


def test_dry_run_prints_the_error_of_each_operator_in_each_layer(effitrans, tiny_teacher, tiny_task, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    outcome = effitrans(
        *("swap", tiny_teacher, "--attention", "full,local,linformer", "--set", "window=2", "--layers", "1-2"),
        *("--task", tiny_task, "--limit", 12, "--dry-run"),
    )
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["layer", "module", "full", "local", "linformer"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "mean"]
    assert "encoder.layer.1.attention.self" in lines[1]
    exact, local = (float(cell) for cell in lines[-1].split()[1:3])
    assert exact < 1e-3 < local < 2
    assert re.search("nothing was written", outcome.err)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attention", "local", "--dry-run"], "--dry-run writes nothing: it goes with --task"),
        (["--attention", "local", "--dry-run", "--task", "TASK", "-o", "x"], "without --output"),
        (["--attention", "local"], "--output is missing"),
        (["--attention", "local", "--task", "TASK", "-o", "x"], "--task goes with --dry-run"),
        (["--attention", "local", "-o", "x", "--lr", "1e-3"], "--learning-rate: no effect without --heal TASK"),
        (["--attention", "local", "-o", "x", "--seed", "3"], "--seed: no effect, nothing is drawn at random"),
        (["--attention", "local", "--dry-run", "--task", "TASK", "--resume"], "--resume: no effect with --dry-run"),
        (["--attention", "local,locl", "--dry-run", "--task", "TASK"], "did you mean 'local'"),
        (["--attention", "local,full", "--dry-run", "--task", "TASK", "--set", "windw=3"], "did you mean 'window'"),
    ],
)
def test_wrong_usage_is_one_message(effitrans, tiny_teacher, tiny_task, arguments, message):
    outcome = effitrans("swap", tiny_teacher, *(tiny_task if part == "TASK" else part for part in arguments))
    assert outcome.code == 2
    assert message in outcome.err.replace("\n", " ")
