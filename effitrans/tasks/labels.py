"""Class names and class ids: reading them off the data, and telling what does not fit."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from effitrans.errors import UsageError
from effitrans.tasks.padding import IGNORED

if TYPE_CHECKING:
    from datasets import Dataset

MOST_LABELS = 1000
"""More distinct values than this, in a target without declared labels, are a mistake: a text, or a row's number."""


def names_of(rows: "Dataset", column: str, where: str) -> tuple[str, ...]:
    """The class names of a column of values, or of lists of values.

    Raises:
        UsageError: the values are no classes: negative or fractional numbers, or too many different ones, or one.
    """
    from datasets import Value

    feature: Any = rows.features[column]
    declared = getattr(getattr(feature, "feature", feature), "names", None)
    if declared:
        return tuple(declared)
    if isinstance(feature, Value):
        values = set(rows.unique(column))
    else:
        tags = [value for entry in rows[column] for value in (entry if isinstance(entry, list) else [entry])]
        if (nested := next((value for value in tags if isinstance(value, list | dict)), None)) is not None:
            raise UsageError(f"target {column!r} in {where} holds {nested!r}: expected a class, or a list of tags")
        values = {*tags} - {None, IGNORED}
    if len(values) > MOST_LABELS:
        raise UsageError(
            f"target {column!r} in {where} has {len(values)} different values, too many for classes: name the column "
            "of the classes, declare `labels`, or make the kind `regression` if they are numbers"
        )
    if all(isinstance(value, str | bool) for value in values):
        names = tuple(sorted(str(value) for value in values))
    else:
        names = tuple(str(number) for number in sorted(_ids(values, column, where)))
    if len(names) < 2:
        raise UsageError(f"target {column!r} in {where} has {len(names)} different value: expected two classes or more")
    return names


def _ids(values: Iterable[Any], column: str, where: str) -> set[int]:
    """Class ids given as numbers; an id that no row has is no class."""
    for value in values:
        if not _is_whole(value) or value < 0:
            raise UsageError(
                f"target {column!r} in {where} holds {value!r}: class ids are whole numbers from 0, class names are "
                "texts, and a column holds one or the other. Numbers on a scale want the kind `regression`; leave out "
                "rows without a label, which some data sets mark with -1"
            )
    return {int(value) for value in values}


def _is_whole(value: Any) -> bool:
    """Whether a value is a whole number, written as an integer or as a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and float(value).is_integer()


class LabelIds:
    """From a value of the target to a class id.

    A text is looked up among the names. A whole number is an id, unless the names are themselves whole numbers:
    then it is looked up too, so that `labels: [1, 2, 3]` means what it says.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._ids = {name: index for index, name in enumerate(names)}
        self._numeric = all(name.lstrip("-").isdigit() for name in names)

    def find(self, value: Any) -> int | None:
        """The id of a class name or id; None if it is not one of the classes."""
        if isinstance(value, bool):
            return self._ids.get(str(value), self._ids.get(str(value).lower()))
        if isinstance(value, str):
            return self._ids.get(value)
        if not _is_whole(value):
            return None
        found = self._ids.get(str(int(value))) if self._numeric else int(value)
        return found if found is not None and 0 <= found < len(self.names) else None

    def __call__(self, value: Any, where: str) -> int:
        """The id of `value`.

        Args:
            value: a class name or id.
            where: which row of what, for the message.

        Raises:
            UsageError: it is not one of the classes.
        """
        found = self.find(value)
        if found is None:
            shown = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
            raise UsageError(
                f"{where} has the target {value!r}, which is none of the {len(self.names)} labels ({shown}): "
                "mend the row, or name all classes in the task's `labels`"
            )
        return found
