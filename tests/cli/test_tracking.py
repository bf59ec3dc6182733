"""`--tracking` sends the records of `eval` and `compare models` to a tracker."""

import pytest


def test_an_evaluation_goes_to_tensorboard(effitrans, tiny_teacher, tiny_task, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    arguments = ("--task", tiny_task, "--no-cost", "--tracking", "tensorboard")
    assert effitrans("eval", tiny_teacher, *arguments).code == 0
    assert len(list((tmp_path / "board").rglob("events.*"))) == 1


def test_compared_models_are_runs_beside_the_report(effitrans, tiny_teacher, tiny_task, tmp_path, monkeypatch):
    import shutil

    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    shutil.copytree(tiny_teacher, tmp_path / "other")
    arguments = ("--task", tiny_task, "--no-cost", "--output", tmp_path / "out", "--tracking", "tensorboard")
    assert effitrans("compare", "models", tiny_teacher, tmp_path / "other", *arguments).code == 0
    assert len(list((tmp_path / "out.tensorboard").iterdir())) == 2


@pytest.mark.parametrize("command", [("eval", "MODEL", "--task", "TASK"), ("run", "quickstart", "--dry-run")])
def test_an_unknown_tracker_is_refused_before_anything_runs(effitrans, command, tiny_teacher, tiny_task):
    names = {"MODEL": tiny_teacher, "TASK": tiny_task}
    outcome = effitrans(*(names.get(word, word) for word in command), "--tracking", "wandbb")
    assert outcome.code == 2
    assert "did you mean 'wandb'" in outcome.err
    assert outcome.out == ""
