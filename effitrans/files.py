"""Files and folders that are written whole or not at all, by one process at a time."""

import ctypes
import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from effitrans.errors import UsageError
from effitrans.processes import is_main_process

try:
    import fcntl
except ImportError:  # Windows, where outputs are not locked
    fcntl = None


def check_output_directory(path: str | Path, overwrite: bool = False) -> Path:
    """Return `path`, its `~` expanded, if results may be written there. Nothing is created.

    Raises:
        UsageError: the folder exists and holds something and `overwrite` is false; it is a file or a device; it cannot
            be made where it is to be.
    """
    path = Path(path).expanduser()
    check_writable(path, "output", "name a folder that does not exist yet")
    if not overwrite and path.is_dir() and any(path.iterdir()):
        raise UsageError(
            f"output folder {path} exists and is not empty: choose another, or pass --overwrite (overwrite=True)"
        )
    return path


def check_writable(folder: Path, what: str, remedy: str) -> None:
    """Refuse a folder that cannot be made or written in; nothing is created. `what` and `remedy` are for the message.

    Raises:
        UsageError: with the place that does not allow it, and why.
    """
    place = folder
    try:
        place = existing_place(folder)
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        reason = f"{place} is no folder" if isinstance(error, NotADirectoryError) else f"in {place}: {error.strerror}"
        raise UsageError(f"{what} {folder} cannot be written ({reason}): {remedy}") from error


def existing_place(folder: Path) -> Path:
    """The folder, or the nearest one above that exists, in which it would be made."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def cache_directory(name: str) -> Path:
    """Where effitrans keeps what can be made again, such as predictions; not created.

    `$EFFITRANS_CACHE/name`, else `$XDG_CACHE_HOME/effitrans/name`, else `~/.cache/effitrans/name`.
    """
    if own := os.environ.get("EFFITRANS_CACHE"):
        return Path(own) / name
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "effitrans" / name


_held: dict[Path, int] = {}
"""Paths that this process has locked -> how many blocks hold them."""


@contextmanager
def claimed(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Check an output folder and, until the block ends, keep other processes from writing it.

    Args:
        path: the folder, as for `check_output_directory`. Parents are created.
        overwrite: accept a folder that holds something.

    Raises:
        UsageError: see `check_output_directory` and `locked`.
    """
    # Of a torchrun job the others come when the main process may have begun to fill the folder.
    path = check_output_directory(path, overwrite or not is_main_process())
    with locked(path):
        yield path


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only process that writes an output until the block ends. Blocks may be nested.

    The lock is a file beside the output, which the system releases when the process ends, however it ends. Of a
    `torchrun` job the main process holds it.

    Raises:
        UsageError: another process writes the output.
    """
    path = path.resolve()
    lock = None
    if path not in _held and is_main_process():
        lock = _lock(path)
    if lock is not None:
        _remove_leftovers(path)
    _held[path] = _held.get(path, 0) + 1
    try:
        yield
    finally:
        _held[path] -= 1
        if not _held[path]:
            del _held[path]
        if lock is not None:
            _release(path, lock)


def _lock_file(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _lock(folder: Path) -> int | None:
    """An open descriptor of the folder's lock file, locked; None where there can be no such file."""
    file = _lock_file(folder)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:  # a mounted folder, say, whose parent is not ours
        return None
    try:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(lock, 200).decode(errors="replace")
        os.close(lock)
        raise UsageError(
            f"another run is writing {folder} ({owner or 'just begun'}): wait for it, stop it, or choose another "
            "folder; --resume goes on with a run that has ended"
        ) from None
    except OSError:  # a file system without locks
        return lock
    if not os.fstat(lock).st_nlink:  # the process that held it has just removed the file
        os.close(lock)
        return _lock(folder)
    os.truncate(lock, 0)
    os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return lock


def _release(folder: Path, lock: int | None = None) -> None:
    """Remove the lock file of a folder; one that a killed process left, if no descriptor is given."""
    lock = _lock(folder) if lock is None else lock
    _lock_file(folder).unlink(missing_ok=True)
    if lock is not None:
        os.close(lock)


def _remove_leftovers(path: Path) -> None:
    """What processes that were killed left of an output that nobody writes now, beside it and in it."""
    beside = re.compile(rf"\.{{1,2}}{re.escape(path.name)}\.\w{{8}}\.partial(\.lock)?")
    found = [other for other in path.parent.iterdir() if beside.fullmatch(other.name)]
    for leftover in [*found, *path.rglob(".*.partial")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    for file in path.rglob(".*.lock"):
        with suppress(UsageError):  # of a process that writes there
            _release(file.with_name(file.name[1:].removesuffix(".lock")))


@contextmanager
def output_directory(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of `path`; on success it becomes `path`, on an error it is removed.

    Args:
        path: the output folder. Its parents are created.
        overwrite: replace a non-empty folder. The old one is kept until the new one is complete.

    Raises:
        UsageError: as for `claimed`.
    """
    with claimed(path, overwrite) as path:
        folder = path.resolve()
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
        temporary.chmod(0o755)
        try:
            yield temporary
            check_output_directory(folder, overwrite)
            _replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _replace(new: Path, folder: Path) -> None:
    """Put a new folder in the place of one that may hold something, at no moment of which there is none.

    Afterwards `new` holds what was there before, where there was something.
    """
    try:
        os.replace(new, folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not _exchange(new, folder):
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
            os.replace(folder, old)
            os.replace(new, folder)
            shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step (Linux's `renameat2`); whether the system and the file system can."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return call is not None and call(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text to a temporary sibling and rename it, so that readers never see half a file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON-serializable value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
