"""The task definition: what a YAML holds, and the rows, labels and fingerprint that follow from it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from effitrans.config import Config
from effitrans.errors import UsageError, unknown_name
from effitrans.tasks import sources
from effitrans.tasks.kinds import KINDS
from effitrans.tasks.kinds.base import Kind
from effitrans.tasks.labels import names_of
from effitrans.tasks.metrics import HUB_PREFIX, metrics_of
from effitrans.tasks.missing import without_empty_rows
from effitrans.tasks.readers import UNTYPED, with_numbers
from effitrans.tasks.sources import HubSource, is_file
from effitrans.yaml_files import read_yaml

if TYPE_CHECKING:
    from datasets import Dataset

BUILTIN = Path(__file__).parent / "builtin"


class TokenizerSpec(Config):
    """The tokenizer that is made for a model that brings none (the base Transformer)."""

    method: Literal["bytes", "words", "bpe"] = "bpe"
    """`bytes`: UTF-8 bytes, untrained. `words`: what white space separates. `bpe`: byte-level pair encoding."""
    vocab_size: int = Field(8000, ge=16, le=10**7)
    """Most entries, special tokens included, of `words` and `bpe`, which are trained on the train split."""
    lowercase: bool = False
    """Lower the case first (`words` and `bpe`)."""


class Task(Config):
    """A task: data, what goes in, what should come out, and how it is measured.

    >>> task = Task(name="my-digits", kind="image-classification", data={"generator": "digits"},
    ...             inputs="image", target="label")
    >>> task.metrics, len(task.rows("test"))
    (('accuracy', 'f1_macro'), 359)
    """

    name: str = Field(min_length=1)
    """Its name in records and reports."""
    kind: str
    """One of `KINDS`."""
    data: Annotated[Any, BeforeValidator(sources.parse_source)]
    """`{split: file}`, `{hub: NAME, ...}` (see `HubSource`) or `{generator: NAME, ...}` (see `GENERATORS`)."""
    inputs: str | tuple[str, ...]
    """The column, or columns, that the model reads."""
    target: str | None = None
    """The column that it should answer with; none for language models."""
    metrics: tuple[str, ...] = ()
    """Metrics to report, the first being the main one; the kind's own if none are named."""
    version: int = 1
    """Raised when the definition changes, so that records of different versions are not compared."""
    labels: tuple[str, ...] | None = None
    """Names of the classes, in the order of their ids; read off the data if none."""
    max_length: int | None = Field(None, ge=2, le=2**20)
    """Tokens after which an input is truncated, or that a block of text holds; what the model can take if none."""
    tokenizer: TokenizerSpec | None = None
    """The tokenizer to make for a model that brings none; the kind's own if none."""
    options: SerializeAsAny[Any] = None
    """Settings of the kind (see the `Options` in its file), such as `context` of a causal language model."""
    fallback: HubSource | None = None
    """Where files under `$EFFITRANS_DATA` come from when that is not set, and splits that have no file."""

    @field_validator("inputs")
    @classmethod
    def _check_inputs(cls, inputs: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not inputs or not all(inputs):
            raise ValueError("expected the name of at least one column")
        return inputs

    @field_validator("kind")
    @classmethod
    def _check_kind(cls, kind: str) -> str:
        if kind not in KINDS:
            raise unknown_name("task kind", kind, KINDS)
        return kind

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, labels: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if labels is not None and len(set(labels)) != len(labels):
            raise ValueError("a label is named twice")
        if labels is not None and not all(label.strip() for label in labels):
            raise ValueError("a label is empty")
        if labels is not None and len(labels) < 2:
            raise ValueError("expected at least two labels")
        return labels

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """Put in the kind's metrics and options, and labels written as numbers, before the fields are checked."""
        if not isinstance(values, Mapping):
            return values
        values = dict(values)
        if isinstance(values.get("metrics"), str):
            values["metrics"] = (values["metrics"],)
        if isinstance(values.get("labels"), list | tuple):
            values["labels"] = tuple(str(label) for label in values["labels"])
        kind = KINDS.get(str(values.get("kind", "")))
        if kind is not None:
            values["metrics"] = values.get("metrics") or kind.default_metrics
            options = values.get("options") or {}
            values["options"] = options if isinstance(options, Config) else kind.Options.parse(options, "options")
        return values

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        valid = metrics_of(self.behaviour)
        for metric in self.metrics:
            if metric not in valid and not metric.startswith(HUB_PREFIX):
                raise unknown_name(f"metric of a {self.kind} task", metric, valid)
        KINDS[self.kind].check_task(self)
        return self

    @property
    def behaviour(self) -> Kind:
        """The entry of `KINDS` that this task's kind names."""
        return KINDS[self.kind]

    @property
    def input_columns(self) -> tuple[str, ...]:
        """The columns that the model reads, as a tuple."""
        return (self.inputs,) if isinstance(self.inputs, str) else self.inputs

    @property
    def target_column(self) -> str:
        """The column of the answers, of a task whose kind has one."""
        assert self.target is not None
        return self.target

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are used: the inputs and the target."""
        return self.input_columns + ((self.target,) if self.target else ())

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        if isinstance(self.data, dict):
            return tuple(dict.fromkeys([*self.data, *(self.fallback.splits if self.fallback else ())]))
        return tuple(self.data.splits)

    def rows(self, split: str, limit: int | None = None) -> "Dataset":
        """The rows of a split with their raw columns. Rows without any value are left out, which is said.

        Args:
            split: one of `splits`.
            limit: take at most this many rows, from the first. Default: all.

        Raises:
            UsageError: the split, a file or a column does not exist; there are no rows; a value is missing, or is
                none that the kind can use; a label is none of `label_names`.
        """
        if split not in self.splits:
            raise unknown_name(f"split of task {self.name!r}", split, self.splits)
        if limit is not None and limit < 1:
            raise UsageError(f"limit {limit} leaves no rows: expected at least 1")
        rows = _checked(self, split, self._load(split), self._folder(split))
        rows = rows.select(range(min(limit, len(rows)))) if limit is not None else rows
        return self.behaviour.open_rows(self, rows, self._folder(split))

    def _folder(self, split: str) -> Path:
        """Where the file of a split lies, which is where paths within it start."""
        path = self.data.get(split) if isinstance(self.data, dict) else None
        return sources.resolve(path, split).parent if path and not sources.uses_fallback(path) else Path(".")

    def hub_source(self, split: str) -> HubSource | None:
        """The hub data set that a split is read from; None for local and generated data."""
        if isinstance(self.data, HubSource):
            return self.data
        path = self.data.get(split) if isinstance(self.data, dict) else None
        falls_back = self.fallback and split in self.fallback.splits and (path is None or sources.uses_fallback(path))
        return self.fallback if falls_back and isinstance(self.data, dict) else None

    def is_untyped(self, split: str) -> bool:
        """Whether a split is read from a file whose cells are all texts."""
        if not isinstance(self.data, dict) or self.hub_source(split) is not None:
            return False
        return Path(self.data[split]).suffix.lower() in UNTYPED

    def _load(self, split: str) -> "Dataset":
        if (hub := self.hub_source(split)) is not None:
            return sources.load_hub(hub, split)
        if not isinstance(self.data, dict):
            return sources.load_generated(self.data, split)  # type: ignore[arg-type]
        return sources.load_file(self.data[split], split)

    def fingerprint(self, split: str) -> str:
        """Hex SHA-256 of the used columns of every row of a split, in order, whatever file they came from."""
        digest = hashlib.sha256()
        rows = self.rows(split).select_columns(list(self.columns))
        for row in rows:
            assert isinstance(row, dict)
            values = [_canonical(row[column]) for column in self.columns]
            digest.update(json.dumps(values, ensure_ascii=False, sort_keys=True).encode("utf-8", "surrogatepass"))
            digest.update(b"\n")
        return digest.hexdigest()

    def label_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of their ids; None for kinds without classes.

        They are those of `labels`; else those the data set declares; else the values of the target in the train
        split (the first split, if there is no train split), sorted.
        """
        if not self.behaviour.has_labels:
            return None
        if self.labels is not None:
            return self.labels
        split = calibration_split(self.splits)
        return _names(self, split, self._load(split))

    def __hash__(self) -> int:
        return hash((self.name, self.kind, self.inputs, self.target))


# What follows from a task and the rows of a file is worked out once, while the file stays as it is.
@lru_cache(maxsize=32)
def _usable(task: Task, split: str, rows: "Dataset") -> "Dataset":
    where = f"split {split!r} of task {task.name!r}"
    for column in task.columns:
        if column not in rows.column_names:
            raise unknown_name(f"column ({where})", column, rows.column_names)
    rows = rows if rows._indices is None else rows.flatten_indices()
    kind = task.behaviour
    if task.target and not kind.target_is_text and task.is_untyped(split):
        rows = with_numbers(rows, task.target, (task.labels or ()) if kind.has_labels else None)
    return without_empty_rows(rows, task.input_columns, task.target, kind.target_is_text, where)


@lru_cache(maxsize=32)
def _checked(task: Task, split: str, rows: "Dataset", folder: Path) -> "Dataset":
    rows = _usable(task, split, rows)
    try:
        task.behaviour.check_rows(task, rows, folder)
    except UsageError as error:
        raise UsageError(f"split {split!r}: {error}") from None
    return rows


@lru_cache(maxsize=32)
def _names(task: Task, split: str, rows: "Dataset") -> tuple[str, ...]:
    return names_of(_usable(task, split, rows), task.target_column, f"split {split!r} of task {task.name!r}")


def _canonical(value: Any) -> Any:
    """A value as JSON can write it; an image as its mode, size and pixels."""
    if isinstance(value, Mapping):
        return {str(key): _canonical(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(entry) for entry in value]
    if hasattr(value, "tobytes") and hasattr(value, "size"):
        return [str(getattr(value, "mode", "")), str(value.size), hashlib.sha256(value.tobytes()).hexdigest()]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def calibration_split(splits: Sequence[str]) -> str:
    """The split that examples are drawn from, and classes read off: the train split, else the first one."""
    return "train" if "train" in splits else splits[0]


def builtin_tasks() -> tuple[str, ...]:
    """The names of the tasks that come with effitrans."""
    return tuple(sorted(path.stem for path in BUILTIN.glob("*.yaml")))


def names_task(data: Any) -> bool:
    """Whether data is named by a task rather than being there: what `load_task` takes."""
    return isinstance(data, str | Path | Task) or (isinstance(data, Mapping) and "kind" in data)


def load_task(task: "str | Path | Mapping[str, Any] | Task", folder: str | Path | None = None) -> Task:
    """The task of a built-in name, a YAML file or a mapping; a `Task` is returned as it is.

    Args:
        task: what names or describes it.
        folder: where a mapping's relative paths start (the working directory if none). Those of a YAML file
            start at its own folder, and so does a relative path to a YAML file at `folder`.

    Raises:
        UsageError: no such task or file, or a definition that does not hold, with the nearest valid name.

    >>> load_task("digits").kind
    'image-classification'
    """
    if isinstance(task, Task):
        return task
    folder = Path(folder or ".")
    if isinstance(task, Mapping):
        return _parse(task, folder, "task")
    if not isinstance(task, str | Path):
        raise UsageError(
            f"task is a {type(task).__name__}: expected a built-in name, the path of a .yaml file, a mapping with the "
            "keys of one, or a Task"
        )
    path = BUILTIN / f"{task}.yaml"
    if isinstance(task, Path) or "/" in task or task.endswith((".yaml", ".yml")):
        path = sources.located(task, folder)
        if not is_file(path):
            raise UsageError(
                f"task file {path} does not exist: name a YAML file, or one of {', '.join(builtin_tasks())}"
            )
    elif task not in builtin_tasks():
        raise unknown_name("task (a built-in name, or the path of a .yaml file)", task, builtin_tasks())
    values = read_yaml(path, f"task file {path}", "name, kind, data, inputs, target")
    return _parse(values, path.parent, f"task {task}" if path.parent == BUILTIN else f"task file {path}")


def _parse(values: Mapping[str, Any], folder: Path, where: str) -> Task:
    return Task.parse({**values, "data": sources.anchored(values.get("data"), folder)}, where)
