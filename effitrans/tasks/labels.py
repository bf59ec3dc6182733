"""Class names and class ids: reading them off the data, and telling what does not fit."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from effitrans.errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

MOST_LABELS = 1000
"""More distinct values than this, in a target without declared labels, are a mistake: a text, or a row's number."""


def names_of(rows: "Dataset", column: str, where: str) -> tuple[str, ...]:
    """The class names of a column of values, or of lists of values.

    Raises:
        UsageError: the values are no classes: negative or fractional numbers, or too many different ones.
    """
    from datasets import Value

    feature: Any = rows.features[column]
    declared = getattr(getattr(feature, "feature", feature), "names", None)
    if declared:
        return tuple(declared)
    if isinstance(feature, Value):
        values = set(rows.unique(column))
    else:
        values = {value for entry in rows[column] for value in (entry if isinstance(entry, list) else [entry])} - {None}
    if len(values) > MOST_LABELS:
        raise UsageError(
            f"target {column!r} in {where} has {len(values)} different values, too many for classes: name the column "
            "of the classes, declare `labels`, or make the kind `regression` if they are numbers"
        )
    if all(isinstance(value, str | bool) for value in values):
        names = tuple(sorted(str(value) for value in values))
    else:
        names = tuple(str(index) for index in range(_count(values, column, where)))
    if len(names) < 2:
        raise UsageError(f"target {column!r} in {where} has {len(names)} different value: expected two classes or more")
    return names


def _count(values: Iterable[Any], column: str, where: str) -> int:
    """How many classes there are where they are given as ids."""
    for value in values:
        if isinstance(value, str | bool) or not float(value).is_integer() or value < 0:
            raise UsageError(
                f"target {column!r} in {where} holds {value!r}: class ids are whole numbers from 0, class names are "
                "texts, and a column holds one or the other. Numbers on a scale want the kind `regression`"
            )
    return 1 + int(max(values))  # type: ignore[type-var]


class LabelIds:
    """From a value of the target to a class id.

    A text is looked up among the names. A whole number is an id, unless the names are themselves whole numbers:
    then it is looked up too, so that `labels: [1, 2, 3]` means what it says.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._ids = {name: index for index, name in enumerate(names)}
        self._numeric = all(name.lstrip("-").isdigit() for name in names)

    def __call__(self, value: Any, where: str) -> int:
        """The id of `value`.

        Args:
            value: a class name or id.
            where: which row of what, for the message.

        Raises:
            UsageError: it is not one of the classes.
        """
        if isinstance(value, str | bool):
            found = self._ids.get(str(value))
        elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            found = self._ids.get(str(int(value))) if self._numeric else int(value)
        else:
            found = None
        if found is None or not 0 <= found < len(self.names):
            shown = ", ".join(self.names[:20]) + (", ..." if len(self.names) > 20 else "")
            raise UsageError(
                f"{where} has the target {value!r}, which is none of the {len(self.names)} labels ({shown}): "
                "mend the row, or add it to the task's `labels`"
            )
        return found
