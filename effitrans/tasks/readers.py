"""Data files to rows, one reader for each format. Texts come out as they stand in the file.

A csv file says nothing of types: all its cells are texts here (`007`, `1.50`, `true`, `NA`), and what is to be numbers
is made so by `with_numbers`. What a reader would have to guess silently is refused with the line: rows that are shorter
or longer than the header, quotes that are never closed, values of several types in a column.
"""

import csv
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from effitrans.errors import UsageError

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

logger = logging.getLogger(__name__)

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
CHUNK = 10_000
"""Rows that are Python objects at a time."""
DEEPEST = 64
"""Lists and objects within one another; the libraries beneath end the process where there are thousands."""
_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d+)?")
_ANY_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")

Row = dict[str, Any]


def read(path: Path, fingerprint: str) -> "Dataset":
    """The rows of a file.

    Args:
        path: its suffix is one of `READERS`.
        fingerprint: names the state of the file for `datasets`.

    Raises:
        UsageError: the file has no rows, or holds something that cannot be read as its format.
    """
    import datasets
    import pyarrow

    try:
        table = READERS[path.suffix.lower()](path)
        rows = datasets.Dataset(table, fingerprint=fingerprint)
    except UsageError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, NotImplementedError) as error:
        raise UsageError(f"{path} cannot be read as {path.suffix[1:]}: {' '.join(str(error).split())[:300]}") from None
    if not len(rows):
        raise UsageError(f"file {path} holds no rows: expected at least one")
    return rows


def _csv(path: Path) -> "pyarrow.Table":
    text = _decoded(path, "cp1252")
    if "\0" in text:
        raise UsageError(f"{path} holds NUL characters, so it is no text: save it as csv in UTF-8")
    names: list[str] | None = None
    tables, rows, before = [], [], 0
    try:
        with _long_cells():
            delimiter = _delimiter(path, text)
            records = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
            for cells in records:
                line, before = before + 1, records.line_num
                if not cells:
                    continue
                if names is None:
                    names = _distinct(path, [name or f"Unnamed: {place}" for place, name in enumerate(cells)])
                elif len(cells) != len(names):
                    raise UsageError(
                        f"{path}, line {line}: {len(cells)} cells, and the header has {len(names)}: give every row a "
                        f"cell for each column, and quote cells that hold {DELIMITERS[delimiter]}"
                    )
                else:
                    rows.append(cells)
                if len(rows) == CHUNK:
                    tables.append(_texts_table(names, rows))
                    rows = []
    except csv.Error as error:
        unclosed = "unexpected end" in str(error)
        raise UsageError(
            f"{path}, line {before + 1}: "
            + ("a quote is opened and never closed" if unclosed else "something follows the quote that closes a cell")
            + ': put cells with quotes in quotes, and write each quote within as ""'
        ) from None
    if names is None:
        raise UsageError(f"file {path} holds no rows: expected at least one")
    return _joined(path, [*tables, _texts_table(names, rows)])


def _distinct(path: Path, names: list[str]) -> list[str]:
    if doubled := [name for place, name in enumerate(names) if name in names[:place]]:
        raise UsageError(f"{path} names the column {doubled[0]!r} twice: give each column a name of its own")
    return names


def _texts_table(names: list[str], rows: list[list[str]]) -> "pyarrow.Table":
    import pyarrow

    columns = [list(cells) for cells in zip(*rows, strict=True)] if rows else [[] for _ in names]
    return pyarrow.table([pyarrow.array(cells, pyarrow.string()) for cells in columns], names=names)


def _delimiter(path: Path, text: str) -> str:
    """Commas (tabs in a tsv file), unless they leave the header in one piece and another delimiter does not."""
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    header = re.split("[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]
    counts = {delimiter: len(next(csv.reader([header], delimiter=delimiter), ())) for delimiter in DELIMITERS}
    if counts[usual] > 1 or max(counts.values()) < 2:
        return usual
    found = max(counts, key=counts.__getitem__)
    logger.warning("%s: the cells are separated by %s", path, DELIMITERS[found])
    return found


@contextmanager
def _long_cells() -> Iterator[None]:
    """Cells of any length: documents exceed the limit of the csv module, which is one for the process."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _json_lines(path: Path) -> "pyarrow.Table":
    tables, rows = [], []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            rows.append(_object(path, line, number))
            if len(rows) == CHUNK:
                tables.append(_table(path, rows, CHUNK * len(tables)))
                rows = []
    if not tables and not rows:
        raise UsageError(f"file {path} holds no rows: expected at least one")
    return _joined(path, [*tables, *([_table(path, rows, CHUNK * len(tables))] if rows else [])])


def _object(path: Path, line: bytes, number: int) -> Row:
    try:
        row = _parsed(path, line)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path} cannot be read as jsonl: line {number}: {error.msg} at column {error.colno}; "
            "each line is one JSON object"
        ) from None
    except UsageError as error:
        raise UsageError(f"{error} (line {number})") from None
    if not isinstance(row, dict):
        raise UsageError(f"{path} cannot be read as jsonl: line {number} is not an object such as {{...}}")
    return row


def _parsed(path: Path, content: bytes) -> Any:
    """JSON of a depth that the libraries beneath can bear. Raises `json.JSONDecodeError` besides."""
    try:
        value = json.loads(content)
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: byte {error.start} cannot be read; save it as UTF-8") from None
    except RecursionError:
        raise _too_deep(path) from None
    except ValueError as error:  # a number of thousands of digits
        raise UsageError(f"{path} cannot be read as json: {error}") from None
    if content.count(b"[") + content.count(b"{") > DEEPEST:
        level = [value]
        for _ in range(DEEPEST + 2):
            level = [
                entry
                for parent in level
                if isinstance(parent, list | dict)
                for entry in (parent.values() if isinstance(parent, dict) else parent)
            ]
        if level:
            raise _too_deep(path)
    return value


def _too_deep(path: Path) -> UsageError:
    return UsageError(
        f"{path} holds lists or objects that lie more than {DEEPEST} deep within one another: flatten them"
    )


def _json(path: Path) -> "pyarrow.Table":
    content = path.read_bytes()
    try:
        value = _parsed(path, content)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # one object a line, under the other suffix
            return _json_lines(path)
        raise UsageError(
            f"{path} cannot be read as json: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None
    if isinstance(value, dict) and value and all(isinstance(column, list) for column in value.values()):
        if len(lengths := {len(column) for column in value.values()}) > 1:
            raise UsageError(f"{path} holds columns of {min(lengths)} to {max(lengths)} values: expected one length")
        value = [dict(zip(value, entries, strict=True)) for entries in zip(*value.values(), strict=True)]
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise UsageError(
            f"{path} cannot be read as json: expected a list of objects, [{{...}}, {{...}}], or lists by column, "
            '{"column": [...]}'
        )
    if not value:
        raise UsageError(f"file {path} holds no rows: expected at least one")
    return _joined(path, [_table(path, value[at : at + CHUNK], at) for at in range(0, len(value), CHUNK)])


def _table(path: Path, rows: list[Row], first: int) -> "pyarrow.Table":
    """Rows as a table; those that lack a key have null there. `first`: rows of the file before these."""
    import pyarrow

    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pyarrow.array(values)
        except (pyarrow.ArrowException, OverflowError, UnicodeEncodeError, TypeError) as error:
            raise UsageError(f"{path}: {_mixed(name, values, first, error)}") from None
    return pyarrow.table(columns) if columns else pyarrow.table({"": pyarrow.nulls(len(rows))})


def _mixed(name: str, values: list[Any], first: int, error: Exception) -> str:
    """What is wrong with a column: the first two rows of different types, where that is it."""
    seen: dict[str, int] = {}
    for place, value in enumerate(values):
        kind = {int: "number", float: "number", str: "text", bool: "true/false"}.get(type(value), type(value).__name__)
        if value is not None:
            seen.setdefault(kind, first + place + 1)
    if len(seen) > 1:
        (one, row), (other, place) = list(seen.items())[:2]
        return f"column {name!r} holds a {one} in row {row} and a {other} in row {place}: expected values of one type"
    return f"column {name!r} cannot be read: {' '.join(str(error).split())[:200]}"


def _joined(path: Path, tables: list["pyarrow.Table"]) -> "pyarrow.Table":
    import pyarrow

    try:
        return pyarrow.concat_tables(tables, promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path}: a column holds values of several types: {' '.join(str(error).split())}") from None


def _parquet(path: Path) -> "pyarrow.Table":
    import pyarrow
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        table = file.read()
    _distinct(path, table.column_names)
    for place, field in enumerate(table.schema):
        if pyarrow.types.is_dictionary(field.type):  # categories: the values themselves are wanted
            table = table.set_column(place, field.name, table.column(place).cast(field.type.value_type))
    return table


def _text(path: Path) -> "pyarrow.Table":
    """One row, the whole text, unchanged."""
    import pyarrow

    return pyarrow.table({"text": pyarrow.array([_decoded(path)], pyarrow.large_string())})


def _decoded(path: Path, fallback: str | None = None) -> str:
    """The text of a file in UTF-8, in UTF-16 if it says so, or else in `fallback`, which is said."""
    content = path.read_bytes()
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        place = f"byte {error.start} cannot be read"
    try:
        if fallback is not None and encoding != "utf-16" and b"\0" not in content:
            text = content.decode(fallback)
            logger.warning("%s is not UTF-8 text (%s): it is read as %s", path, place, fallback)
            return text
    except UnicodeDecodeError:
        pass
    name = "UTF-16" if encoding == "utf-16" else "UTF-8"
    raise UsageError(f"{path} is not {name} text: {place}; save it as UTF-8")


READERS: dict[str, Callable[[Path], "pyarrow.Table"]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".json": _json,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
    ".txt": _text,
}
"""File suffix -> what reads it. A txt file is one row, its text unchanged, in `text`."""

UNTYPED = (".csv", ".tsv")
"""Suffixes of files whose cells are all texts."""


def with_numbers(rows: "Dataset", column: str, classes: Sequence[str] | None = ()) -> "Dataset":
    """A column of texts as numbers, where all of them are; empty ones become null.

    Args:
        rows: of an untyped file.
        column: one of them.
        classes: None where any number will do; else the numbers are class ids, which are written as `7` and not as
            `007`, and fractions are left as they are if these are the names of the classes.
    """
    import datasets
    import pyarrow

    cells = [cell if cell.strip() else None for cell in rows.data.column(column).to_pylist()]
    written = {cell for cell in cells if cell is not None}
    numbers: Any
    if written and all(map(_WHOLE.fullmatch, written)):
        numbers = pyarrow.array([None if cell is None else int(cell) for cell in cells], pyarrow.int64())
    elif written and all(map((_ANY_NUMBER if classes is None else _NUMBER).fullmatch, written)):
        if written <= set(classes or ()):
            return rows
        numbers = pyarrow.array([None if cell is None else float(cell) for cell in cells], pyarrow.float64())
    else:
        return rows
    table = rows.data.table  # type: ignore[attr-defined]
    table = table.set_column(table.column_names.index(column), column, numbers)
    return datasets.Dataset(table.replace_schema_metadata(None), fingerprint=f"{rows._fingerprint}-{column}")
