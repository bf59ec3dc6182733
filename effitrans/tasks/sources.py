"""Where rows come from: local files, the hub, a generator. Everything ends as a `datasets.Dataset`."""

import hashlib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from effitrans.config import Config
from effitrans.errors import UsageError, unknown_name
from effitrans.tasks.generators import GENERATORS
from effitrans.tasks.readers import READERS, read

if TYPE_CHECKING:
    from datasets import Dataset

DATA_VARIABLE = "EFFITRANS_DATA"
"""Environment variable that names the folder of the built-in tasks' files; `$EFFITRANS_DATA/` starts their paths."""


class HubSource(Config):
    """A data set of the Hugging Face hub."""

    hub: str
    """Its name, as `datasets.load_dataset` takes it."""
    config: str | None = None
    """The configuration (subset), where the data set has several."""
    revision: str | None = None
    """Branch, tag or commit; the default branch if none."""
    splits: dict[str, str] = Field(default={"train": "train", "validation": "validation", "test": "test"})
    """Split of the task -> split on the hub."""
    columns: dict[str, str] = Field(default={})
    """Column on the hub -> the name the task gives it."""


def parse_source(value: Any) -> Any:
    """The source that a YAML's `data` mapping describes: `{hub: ...}`, `{generator: ...}` or `{split: file}`.

    Raises:
        UsageError: an unknown generator or option, or a path that is not text.
    """
    if not isinstance(value, Mapping):
        if isinstance(value, Config):
            return value
        raise UsageError("expected {split: file}, {hub: NAME} or {generator: NAME}")
    if "hub" in value:
        return HubSource.parse(value)
    if "generator" in value:
        name = str(value["generator"])
        if name not in GENERATORS:
            raise unknown_name("generator", name, GENERATORS)
        return GENERATORS[name].parse(value)
    if not value or not all(isinstance(path, str | Path) for path in value.values()):
        raise UsageError("expected a file for each split, such as {train: train.jsonl, test: test.jsonl}")
    return {str(split): str(path) for split, path in value.items()}


def anchored(value: Any, folder: Path) -> Any:
    """The same files with paths made absolute; those that are relative start from `folder`."""
    if not isinstance(value, dict) or "hub" in value or "generator" in value:
        return value
    return {split: _anchor(path, folder) if isinstance(path, str) else path for split, path in value.items()}


def _anchor(path: str, folder: Path) -> str:
    return path if path.startswith("$") else str(located(path, folder))


def located(path: str | Path, folder: Path) -> Path:
    """An absolute path; one that is relative starts from `folder`.

    Raises:
        UsageError: no file can have this name, or `~` is a home that nobody has.
    """
    try:
        return (folder / Path(path).expanduser()).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(f"path {str(path)[:200]!r}: {error}") from None


def uses_fallback(path: str) -> bool:
    """Whether a file lies in the folder of `EFFITRANS_DATA` and that variable is not set."""
    return path.startswith("$") and not os.environ.get(DATA_VARIABLE)


def resolve(path: str, split: str) -> Path:
    """The file that a path means, with `$VARIABLE/` at its start replaced.

    Raises:
        UsageError: the variable is not set.
    """
    if not path.startswith("$"):
        return Path(path)
    variable, _, rest = path[1:].partition("/")
    folder = os.environ.get(variable)
    if not folder:
        raise UsageError(f"split {split!r} is in {path}, and {variable} is not set: set it to the data folder")
    return Path(folder).expanduser() / rest


def is_file(path: Path) -> bool:
    """Whether there is such a file; names that no file can have are none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def load_file(path: str, split: str) -> "Dataset":
    """Read one file into rows.

    Raises:
        UsageError: it is missing, empty, of an unknown format, or holds a row that cannot be read.
    """
    file = resolve(path, split)
    if file.suffix.lower() not in READERS:
        raise unknown_name(f"file format of {file}", file.suffix or "(none)", READERS)
    if not is_file(file):
        remedy = (
            f"put it there, or unset {DATA_VARIABLE} if the task has a hub data set to fall back to"
            if path.startswith("$")
            else "paths in a task file start at the folder of that file"
        )
        raise UsageError(f"file {file} of split {split!r} does not exist: {remedy}")
    status = file.stat()
    if not status.st_size:
        raise UsageError(f"file {file} of split {split!r} is empty: expected at least one row")
    return _read(file, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=16)
def _read(file: Path, *state: int) -> "Dataset":
    """The rows of a file in a state, which no change of the file leaves as it is."""
    return read(file, hashlib.sha256(repr((file, state)).encode()).hexdigest()[:16])


def load_generated(source: Any, split: str) -> "Dataset":
    """The rows that a generator makes for a split."""
    return _generate(type(source), source.model_dump_json(), split)


@lru_cache(maxsize=16)
def _generate(generator: type[Config], options: str, split: str) -> "Dataset":
    import datasets

    try:
        return datasets.Dataset.from_dict(generator.model_validate_json(options).columns(split))  # type: ignore[attr-defined]
    except ValueError as error:
        raise UsageError(str(error)) from None


def load_hub(source: HubSource, split: str) -> "Dataset":
    """The rows of a split of a hub data set, with the task's column names.

    Raises:
        UsageError: there is no such data set, configuration or split, or it cannot be reached.
    """
    return _load_hub(source.model_dump_json(), split)


@lru_cache(maxsize=16)
def _load_hub(definition: str, split: str) -> "Dataset":
    import datasets

    source = HubSource.model_validate_json(definition)
    try:
        rows: Any = datasets.load_dataset(
            source.hub, source.config, split=source.splits[split], revision=source.revision
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"split {source.splits[split]!r} of hub data set {source.hub!r} could not be loaded: {error}. "
            f"Check the name and the network, or name local files, or set {DATA_VARIABLE} to the data folder"
        ) from None
    return rows.rename_columns({old: new for old, new in source.columns.items() if old in rows.column_names})
