"""Which of the Trainer's checkpoints are complete.

Trainer writes a checkpoint file by file into its final place, and deletes old ones the same way, so a kill can
leave half of one. A checkpoint counts as complete when it holds a list of its files, which is written last, and
every file on the list is there with its size. Whatever else is found is removed before a run resumes.
"""

import json
import re
import shutil
from pathlib import Path

from effitrans.files import write_text

FILE_LIST = "files.json"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(checkpoint: Path) -> None:
    """Write the list of files that makes a checkpoint count as complete."""
    files = {
        str(file.relative_to(checkpoint)): file.stat().st_size
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name != FILE_LIST
    }
    write_text(checkpoint / FILE_LIST, json.dumps(files, indent=1))


def is_complete(checkpoint: Path) -> bool:
    """Whether every file that the checkpoint listed when it was finished is still there, whole."""
    try:
        files = json.loads((checkpoint / FILE_LIST).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return False
    return all((checkpoint / name).is_file() and (checkpoint / name).stat().st_size == n for name, n in files.items())


def complete_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in a folder, ordered by step."""
    return [path for path in _all(folder) if is_complete(path)]


def remove_incomplete(folder: Path) -> None:
    """Delete what an interrupted save or an interrupted deletion left behind."""
    for path in _all(folder):
        if not is_complete(path):
            shutil.rmtree(path)


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps done when the checkpoint was written."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match[1])


def _all(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if path.is_dir() and _NAME.fullmatch(path.name)), key=step_of)
