"""How a command ends: 0 done, 1 failed, 2 wrong usage or bad input, 3 a gate was missed, 130 interrupted."""

import contextlib
import errno
import os
import signal
import time

import pytest
import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from effitrans.errors import WrongResult


@pytest.fixture(autouse=True)
def interruptible():
    """As in a terminal: what a shell starts in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def quantize(effitrans, tiny_teacher, tmp_path, monkeypatch):
    """Run a command of which one part, saving, does something else; nothing may be left of its output."""

    def call(happens):
        monkeypatch.setattr(PreTrainedModel, "save_pretrained", happens)
        outcome = effitrans("quantize", tiny_teacher, "--output", tmp_path / "out")
        assert list(tmp_path.iterdir()) == []
        assert "Traceback" not in outcome.err
        return outcome

    return call


def raising(error):
    def happens(*_, **__):
        raise error

    return happens


@pytest.mark.parametrize(
    ("error", "message"),
    [
        pytest.param(OSError(errno.ENOSPC, "No space left on device"), "no space left", id="full-disk"),
        pytest.param(
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "no space left",
            id="full-disk-safetensors",
        ),
        pytest.param(
            RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0"),
            "no space left",
            id="full-disk-torch",
        ),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory", id="memory-cuda"),
        pytest.param(
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory", id="memory-torch"
        ),
        pytest.param(MemoryError(), "out of memory", id="memory"),
        pytest.param(PermissionError(errno.EACCES, "Permission denied", "/x/y"), "/x/y", id="permission"),
        pytest.param(WrongResult("it computes something else"), "it computes something else", id="wrong-result"),
    ],
)
def test_what_fails_while_running_is_1(quantize, error, message):
    outcome = quantize(raising(error))
    assert outcome.code == 1
    assert message in outcome.err
    assert "defect" not in outcome.err


def test_an_error_that_hides_a_full_disk_is_named(quantize):
    def happens(*_, **__):
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise ValueError("cannot write") from error

    assert "no space left" in quantize(happens).err


def test_a_defect_is_1_and_says_so(quantize):
    outcome = quantize(raising(KeyError("secret")))
    assert outcome.code == 1
    assert "defect in effitrans" in outcome.err


def test_diverged_training_is_1(effitrans, tiny_teacher, tiny_task, tmp_path):
    outcome = effitrans(
        *("train", "--model", tiny_teacher, "--task", tiny_task, "--output", tmp_path / "out"),
        *("--lr", "1e30", "--batch-size", 8, "--epochs", 5),
    )
    assert outcome.code == 1, outcome.err
    for words in ("diverged", "step", "learning rate"):
        assert words in outcome.err
    assert not (tmp_path / "out").exists()


def _interrupt(*_, **__):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)


def _swallowed(*_, **__):
    with contextlib.suppress(KeyboardInterrupt):
        _interrupt()


def _wrapped(*_, **__):
    try:
        _interrupt()
    except KeyboardInterrupt as error:
        raise RuntimeError("a library's own") from error


@pytest.mark.parametrize("happens", [_interrupt, _wrapped], ids=["raised", "wrapped"])
def test_interrupted_is_130(quantize, happens):
    outcome = quantize(happens)
    assert outcome.code == 130
    assert "interrupted" in outcome.err
    assert "--resume" not in outcome.err


def test_an_interrupt_that_is_swallowed_is_130(effitrans, tiny_teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("effitrans.checkpoint.bytes_on_disk", lambda folder: _swallowed() or 0)
    assert effitrans("quantize", tiny_teacher, "--output", tmp_path / "out").code == 130


def test_commands_that_resume_say_so(effitrans, tiny_teacher, tiny_task, tmp_path, monkeypatch):
    monkeypatch.setattr("effitrans.recipes.runner.load_for_task", _interrupt)
    outcome = effitrans("train", "--model", tiny_teacher, "--task", tiny_task, "--output", tmp_path / "out")
    assert outcome.code == 130
    assert "--resume" in outcome.err
