"""Tasks whose data is made rather than read: seeded, so that a task and its options are the data.

A generator is a config (its fields are the options of the YAML's `data` mapping, beside `generator: NAME`)
with `splits` and `columns(split)`. One line in `GENERATORS` registers it.
"""

from typing import Any, Protocol

from effitrans.tasks.generators.digits import Digits
from effitrans.tasks.generators.listops import ListOps
from effitrans.tasks.generators.mqar import MQAR
from effitrans.tasks.generators.pathfinder import Pathfinder


class Generator(Protocol):
    """What a class listed in `GENERATORS` provides."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits it makes."""
        ...

    def columns(self, split: str) -> dict[str, list[Any]]:
        """The rows of a split as columns of equal length; the same at every call."""
        ...


GENERATORS: dict[str, Any] = {
    "digits": Digits,
    "listops": ListOps,
    "mqar": MQAR,
    "pathfinder": Pathfinder,
}
"""Name in the YAML -> generator config."""
