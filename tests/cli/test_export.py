"""`effitrans export`."""

import importlib.util

import pytest

from effitrans.exporting import FORMATS


def test_from_the_command_line(effitrans, tiny_teacher, tmp_path):
    if missing := [name for name in FORMATS["onnx"].packages if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")
    outcome = effitrans("export", tiny_teacher, "--format", "onnx", "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "predictions the same" in outcome.err
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_mistakes_are_named(effitrans, tiny_teacher, tmp_path):
    outcome = effitrans("export", tiny_teacher, "--format", "openvin", "--output", tmp_path / "out")
    assert outcome.code == 2
    assert "did you mean 'openvino'" in outcome.err
    assert not (tmp_path / "out").exists()
