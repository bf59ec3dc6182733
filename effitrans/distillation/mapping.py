"""Which layer of the teacher each layer of the student learns from.

Hidden states are counted from the embeddings, which are 0; the output of the i-th layer is i.
"""

from collections.abc import Callable, Mapping

from effitrans.errors import UsageError, unknown_name


def uniform(student_layers: int, teacher_layers: int) -> dict[int, int]:
    """Evenly spread: embeddings to embeddings, last layer to last layer.

    >>> uniform(3, 6)
    {0: 0, 1: 2, 2: 4, 3: 6}
    """
    return {i: round(i * teacher_layers / student_layers) for i in range(student_layers + 1)}


MAPPINGS: dict[str, Callable[[int, int], dict[int, int]]] = {"uniform": uniform}
"""Name -> (number of student layers, number of teacher layers) -> {student state: teacher state}."""


def map_layers(mapping: str | Mapping[int, int], student_layers: int, teacher_layers: int) -> dict[int, int]:
    """The pairs of hidden states of a named or explicit mapping.

    Raises:
        UsageError: an unknown name, or a pair that names a layer there is not.
    """
    if isinstance(mapping, str):
        if mapping not in MAPPINGS:
            raise unknown_name("layer mapping", mapping, MAPPINGS)
        return MAPPINGS[mapping](student_layers, teacher_layers)
    for mine, theirs in mapping.items():
        for who, state, last in (("student", mine, student_layers), ("teacher", theirs, teacher_layers)):
            if not 0 <= state <= last:
                raise UsageError(
                    f"layer_mapping {{{mine}: {theirs}}}: the {who} has hidden states 0 (embeddings) to {last}, "
                    f"received {state}"
                )
    return dict(mapping)
