"""Files and folders that are written whole or not at all."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from effitrans.errors import UsageError


def check_output_directory(path: str | Path, overwrite: bool = False) -> Path:
    """Return `path` if results may be written there.

    Raises:
        UsageError: the folder exists and holds something and `overwrite` is false, or it is a file.
    """
    path = Path(path)
    if path.is_file():
        raise UsageError(f"output {path} is a file: name a folder that does not exist yet")
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise UsageError(
            f"output folder {path} exists and is not empty: choose another, or pass --overwrite (overwrite=True)"
        )
    return path


def is_main_process() -> bool:
    """Whether this process is the one of a `torchrun` job that writes results; true outside of one."""
    return os.environ.get("RANK", "0") == "0"


def process_place() -> tuple[int, int]:
    """Rank of this process and number of processes of a `torchrun` job, which it joins; (0, 1) outside of one."""
    if "RANK" not in os.environ:
        return 0, 1
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes


def wait_for_everyone() -> None:
    """Return when every process of a `torchrun` job has come here; at once outside of one."""
    if "RANK" in os.environ:
        from accelerate import PartialState

        PartialState().wait_for_everyone()


def cache_directory(name: str) -> Path:
    """Where effitrans keeps what can be made again, such as predictions; not created.

    `$EFFITRANS_CACHE/name`, else `$XDG_CACHE_HOME/effitrans/name`, else `~/.cache/effitrans/name`.
    """
    if own := os.environ.get("EFFITRANS_CACHE"):
        return Path(own) / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "effitrans" / name


@contextmanager
def output_directory(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it becomes `path`, on an error it is removed.

    Args:
        path: the folder to be made. Parents are created.
        overwrite: replace a non-empty folder. The old one is kept until the new one is complete.

    Raises:
        UsageError: the folder exists and is not empty and `overwrite` is false.
    """
    path = check_output_directory(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text to a temporary sibling and rename it, so that readers never see half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON-serializable value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
