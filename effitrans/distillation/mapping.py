"""Which layer of the teacher each layer of the student learns from.

Hidden states are counted from the embeddings, which are 0; the output of the i-th layer is i.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator
from torch import Tensor

from effitrans.architectures import evenly_chosen
from effitrans.errors import UsageError, unknown_name

DYNAMIC = "dynamic"
"""The name of the mapping that is chosen anew for every batch, by `nearest`."""


def uniform(student_layers: int, teacher_layers: int) -> dict[int, int]:
    """Evenly spread: embeddings to embeddings, last layer to last layer.

    >>> uniform(3, 6)
    {0: 0, 1: 2, 2: 4, 3: 6}
    """
    return {i: round(i * teacher_layers / student_layers) for i in range(student_layers + 1)}


def last(student_layers: int, teacher_layers: int) -> dict[int, int]:
    """The teacher's last layers (PKD-Last, Sun et al. 2019), and embeddings to embeddings.

    >>> last(3, 6)
    {0: 0, 1: 4, 2: 5, 3: 6}
    """
    _check_depth("last", student_layers, teacher_layers)
    return {0: 0} | {i: teacher_layers - student_layers + i for i in range(1, student_layers + 1)}


def skip(student_layers: int, teacher_layers: int) -> dict[int, int]:
    """The layers that a student `layers=N` is made of, from the first to the last: each layer follows its original.

    >>> skip(3, 6)
    {0: 0, 1: 1, 2: 3, 3: 6}
    """
    _check_depth("skip", student_layers, teacher_layers)
    return from_kept(evenly_chosen(teacher_layers, student_layers))


def from_kept(kept: Sequence[int]) -> dict[int, int]:
    """Each layer to the one it was: `kept[i]` is the teacher's layer, counted from 0, that the student's i-th was.

    >>> from_kept([0, 4])
    {0: 0, 1: 1, 2: 5}
    """
    return {0: 0} | {i: original + 1 for i, original in enumerate(kept, 1)}


MAPPINGS: dict[str, Callable[[int, int], dict[int, int]]] = {"uniform": uniform, "last": last, "skip": skip}
"""Name -> (number of student layers, number of teacher layers) -> {student state: teacher state}."""


def _known(names: Iterable[str]) -> BeforeValidator:
    """Refuses unknown names and mappings without a pair."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value not in names:
            raise unknown_name("layer mapping", value, names)
        if isinstance(value, Mapping) and not value:
            raise UsageError("received an empty mapping, expected at least one pair {student: teacher}")
        return value

    return BeforeValidator(check)


FixedMapping = Annotated[Literal["uniform", "last", "skip"] | dict[int, int], _known(MAPPINGS)]
"""Field of a config: pairs of layers that are known before training, by a name in `MAPPINGS` or one by one."""

LayerMapping = Annotated[Literal["uniform", "last", "skip", "dynamic"] | dict[int, int], _known((*MAPPINGS, DYNAMIC))]
"""Field of a config: as `FixedMapping`, or `dynamic`."""


def map_layers(
    mapping: str | Mapping[int, int], student_layers: int, teacher_layers: int, kept: Sequence[int] | None = None
) -> dict[int, int]:
    """The pairs of hidden states of a named or explicit mapping.

    Args:
        mapping: a name in `MAPPINGS`, or pairs {student state: teacher state}.
        student_layers: number of layers of the student.
        teacher_layers: number of layers of the teacher.
        kept: the teacher's layers, counted from 0, that pruning left in the student; `skip` follows them.

    Raises:
        UsageError: an unknown name, a pair that names a layer there is not, or a student that is too deep.
    """
    if isinstance(mapping, str):
        if mapping not in MAPPINGS:
            raise unknown_name("layer mapping", mapping, MAPPINGS)
        if mapping == "skip" and kept is not None:
            return from_kept(kept)
        return MAPPINGS[mapping](student_layers, teacher_layers)
    for mine, theirs in mapping.items():
        for who, state, final in (("student", mine, student_layers), ("teacher", theirs, teacher_layers)):
            if not 0 <= state <= final:
                raise UsageError(
                    f"layer_mapping {{{mine}: {theirs}}}: the {who} has hidden states 0 (embeddings) to {final}, "
                    f"received {state}"
                )
    return dict(mapping)


def nearest(costs_ST: Tensor) -> list[int]:
    """The monotone assignment of student layers to teacher layers with the smallest sum of costs.

    Later layers of the student never follow earlier layers of the teacher, and no two follow the same one where the
    teacher has enough (the rule of CoFi, Xia et al. 2022, section 3.2, solved exactly). Time O(S T).

    Args:
        costs_ST: distance between each of S student layers and each of T teacher layers.

    Returns:
        The teacher layer, counted from 0, of each student layer.

    >>> import torch
    >>> nearest(torch.tensor([[0.5, 0.1, 9.0], [0.2, 0.3, 0.9]]))
    [0, 1]
    """
    costs = costs_ST.tolist()
    total, step = len(costs[0]), int(len(costs) <= len(costs[0]))
    best = [costs[0]]
    came_from: list[list[int]] = []
    for row in costs[1:]:
        sums, sources = [], []
        lowest, source = float("inf"), -1
        for column in range(total):
            previous = column - step
            if previous >= 0 and best[-1][previous] < lowest:
                lowest, source = best[-1][previous], previous
            sums.append(lowest + row[column])
            sources.append(source)
        best.append(sums)
        came_from.append(sources)
    chosen = [min(range(total), key=lambda column: best[-1][column])]
    for sources in reversed(came_from):
        chosen.append(sources[chosen[-1]])
    return chosen[::-1]


def _check_depth(name: str, student_layers: int, teacher_layers: int) -> None:
    if student_layers > teacher_layers:
        raise UsageError(
            f"layer_mapping {name!r} needs a teacher with at least the student's {student_layers} layers and it has "
            f"{teacher_layers}: use 'uniform'"
        )
