"""Values that are not there: rows without any are left out and counted, others are refused by number."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from effitrans.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SHOWN = 10
"""Row numbers that a message names."""


def without_empty_rows(
    rows: "Dataset", inputs: Sequence[str], target: str | None, target_is_text: bool, where: str
) -> "Dataset":
    """The rows that hold something.

    Args:
        rows: all rows.
        inputs: the columns that the model reads. An empty text is a text.
        target: the column of the answers, if there is one.
        target_is_text: whether an empty text is an answer too; it is no class and no number.
        where: what the rows are of, for messages.

    Raises:
        UsageError: there are no rows, or a row that holds something lacks one of the used values.
    """
    import datasets

    lacking = {column: _lacking(rows, column, texts_too=False) for column in inputs}
    if target is not None:
        lacking[target] = _lacking(rows, target, texts_too=not target_is_text)
        silent = np.all([_lacking(rows, column, texts_too=True) for column in lacking], axis=0)
        suspects = np.flatnonzero(np.any([*lacking.values(), silent], axis=0))
    else:
        suspects = np.flatnonzero(np.any(list(lacking.values()), axis=0))
    if not len(suspects):
        return _some(rows, where)
    columns = [rows.data.column(column) for column in rows.column_names]
    empty = [number for number in suspects if all(_holds_nothing(column[number].as_py()) for column in columns)]
    for column, mask in lacking.items():
        mask[empty] = False
        if mask.any():
            numbers = _numbers(np.flatnonzero(mask))
            verb = "has" if mask.sum() == 1 else "have"
            raise UsageError(
                f"{numbers} of {where} {verb} no {column!r}: every row needs a value there. "
                "Fill it in, or delete the row"
            )
    if not empty:
        return rows
    logger.warning("%s: %d empty %s left out and not counted from here on (%s)", where, len(empty),
                   "row is" if len(empty) == 1 else "rows are", _numbers(empty))  # fmt: skip
    kept = np.ones(len(rows), dtype=bool)
    kept[empty] = False
    table = rows.data.table.filter(kept)  # type: ignore[attr-defined]
    return _some(datasets.Dataset(table, info=rows.info.copy(), fingerprint=f"{rows._fingerprint}-filled"), where)


def _some(rows: "Dataset", where: str) -> "Dataset":
    if not len(rows):
        raise UsageError(f"{where} is empty: expected at least one row")
    return rows


def _lacking(rows: "Dataset", column: str, texts_too: bool) -> np.ndarray:
    """Boolean [rows]: where there is no value: null or not a number, or a blank text if `texts_too`."""
    import pyarrow
    import pyarrow.compute as compute

    values: Any = rows.data.column(column)
    lacking = values.is_null(nan_is_null=pyarrow.types.is_floating(values.type))
    if texts_too and (pyarrow.types.is_string(values.type) or pyarrow.types.is_large_string(values.type)):
        blank = compute.equal(compute.utf8_trim_whitespace(values), "")  # type: ignore[attr-defined]
        lacking = compute.or_(lacking, blank.fill_null(True))  # type: ignore[attr-defined]
    return np.array(lacking)


def _holds_nothing(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, list):
        return all(map(_holds_nothing, value))
    if isinstance(value, dict):
        return all(map(_holds_nothing, value.values()))
    return value is None or value != value


def _numbers(places: Any) -> str:
    """The numbers of rows, counted from 1, as messages name them."""
    shown = ", ".join(str(place + 1) for place in places[:SHOWN])
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    return f"{'row' if len(places) == 1 else 'rows'} {shown}{more}"
