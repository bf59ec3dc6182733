"""`effitrans quantize` with the schemes that need data, bits or a bound."""

import pytest

from effitrans import checkpoint
from effitrans.quantization import Int8Linear, PackedLinear


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        pytest.param(
            ["--scheme", "gptq", "--bits", "3", "--group-size", "16", "--no-optimize"], PackedLinear, id="gptq"
        ),
        pytest.param(["--scheme", "int8-smooth", "--max-drop", "50", "--no-optimize"], Int8Linear, id="smooth-bounded"),
        pytest.param(
            ["--scheme", "int8-qat", "--set", "max_steps=2", "--no-optimize"],
            Int8Linear,
            id="qat",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_with_a_task(effitrans, tiny_teacher, tiny_task, tmp_path, options, kind):
    outcome = effitrans("quantize", tiny_teacher, "--task", tiny_task, *options, "--output", tmp_path / "small")
    assert outcome.code == 0, outcome.err
    model = checkpoint.load_model(tmp_path / "small", "AutoModelForSequenceClassification")
    assert any(isinstance(module, kind) for module in model.modules())
    assert (tmp_path / "small" / "record.json").is_file()


def test_the_seed_is_recorded(effitrans, tiny_teacher, tiny_task, tmp_path):
    scored = ("--task", tiny_task, "--no-optimize")
    passes = [("quantize", "--scheme", "rtn", "--group-size", "32", *scored), ("swap", "--attention", "performer")]
    for verb, *options in passes:
        outcome = effitrans(verb, tiny_teacher, *options, "--seed", "7", "--output", tmp_path / verb)
        assert outcome.code == 0, outcome.err
        history = checkpoint.load_config(tmp_path / verb).quantization_config["history"]
        assert history[-1]["config"]["seed"] == 7


def test_without_a_task(effitrans, tiny_teacher, tmp_path):
    assert effitrans("quantize", tiny_teacher, "--scheme", "rtn", "--group-size", "32", "-o", tmp_path / "a").code == 0
    outcome = effitrans("quantize", tiny_teacher, "--scheme", "gptq", "--group-size", "32", "-o", tmp_path / "b")
    assert outcome.code == 2
    assert "give a task (--task)" in outcome.err
    outcome = effitrans("quantize", tiny_teacher, "--scheme", "rtn", "--group-size", "48", "-o", tmp_path / "b")
    assert outcome.code == 2
    assert "does not divide" in outcome.err
    assert not (tmp_path / "b").exists()
