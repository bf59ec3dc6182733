"""Output folders: whole or not at all, where they can be written, by one process at a time."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from effitrans import files
from effitrans.errors import UsageError
from effitrans.files import check_output_directory, claimed, output_directory, write_text

HOLDER = """
import sys
from effitrans.files import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen]:
    """Another process holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_until_the_first_has_ended(tmp_path):
    folder = tmp_path / "out"
    with held(folder) as process:
        message = rf"another run is writing .*out \(process {process.pid} on "
        with pytest.raises(UsageError, match=message), claimed(folder, overwrite=True):
            pass
        with pytest.raises(UsageError, match="another run is writing"), output_directory(folder):
            pass
        with output_directory(tmp_path / "other"):
            pass
        process.communicate("")
    with output_directory(folder):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"]


def test_a_killed_process_leaves_no_lock_and_its_leftovers_go(tmp_path):
    folder = tmp_path / "out"
    with held(folder) as process:
        (tmp_path / ".out.abcd1234.partial").mkdir()
        (tmp_path / ".out.settings").mkdir()
        process.send_signal(signal.SIGKILL)
        process.wait()
        with output_directory(folder) as temporary:
            (temporary / "a").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.settings", "out"]


def test_locks_within_an_output_go_if_no_process_holds_them(tmp_path):
    steps = tmp_path / "out" / "steps"
    steps.mkdir(parents=True)
    (steps / ".01-train.lock").write_text("process 1 on nowhere")
    with held(steps / "02-distill"), claimed(tmp_path / "out", overwrite=True):
        assert [path.name for path in steps.iterdir()] == [".02-distill.lock"]


def test_a_block_within_a_block_of_the_same_process(tmp_path):
    with claimed(tmp_path / "out") as folder:
        with output_directory(folder) as temporary:
            (temporary / "a").write_text("1")
        with pytest.raises(UsageError, match="not empty"), claimed(folder):
            pass
    with held(folder.with_name("again")):
        pass
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_what_appeared_meanwhile_is_not_replaced(tmp_path):
    folder = tmp_path / "out"
    with pytest.raises(UsageError, match="not empty"), output_directory(folder):
        write_text(folder / "a", "theirs")
    assert (folder / "a").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two-renames"])
def test_overwriting_replaces_the_folder_whole(tmp_path, exchange, monkeypatch):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "old").write_text("old")
    with output_directory(folder, overwrite=True) as temporary:
        (temporary / "new").write_text("new")
        assert (folder / "old").is_file()
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2 is Linux's")
def test_folders_are_exchanged_in_one_step(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not files._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system cannot")
    assert (tmp_path / "one" / "other").exists()
    assert (tmp_path / "other" / "one").exists()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        pytest.param("FILE", "FILE is no folder", id="file"),
        pytest.param("FILE/below", "FILE is no folder", id="below-a-file"),
        pytest.param("/dev/null", "/dev/null is no folder", id="device"),
        pytest.param("/proc/effitrans", "cannot be written .in /proc", id="read-only"),
        pytest.param("x" * 300, "File name too long", id="long-name"),
    ],
)
def test_places_where_nothing_can_be_written(tmp_path, monkeypatch, path, message):
    if path.startswith("/") and not Path("/proc/self").exists():
        pytest.skip("no /proc")
    monkeypatch.chdir(tmp_path)
    Path("FILE").write_text("mine")
    with pytest.raises(UsageError, match=message):
        check_output_directory(path, overwrite=True)
    assert Path("FILE").read_text() == "mine"


def test_the_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with output_directory("~/out") as temporary:
        assert temporary.parent == tmp_path
    assert os.listdir(tmp_path) == ["out"]
