"""Students made from their teacher, and the check that a student can learn from it."""

import copy
import re
from typing import Any

from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.architectures import adapter
from effitrans.checkpoint.accepting import takes_models
from effitrans.distillation.objectives import OBJECTIVES
from effitrans.errors import UsageError
from effitrans.layers import layer_numbers

_SPEC = re.compile(r"\s*\w+\s*=")
_PAIR = re.compile(r"\s*(\w+)\s*=\s*([\d\s,-]*\d)\s*")


def is_copy(spec: Any) -> bool:
    """Whether this is a spec of `make_student` rather than the name of a model.

    >>> is_copy("layers=3, heads=6"), is_copy("base:num_hidden_layers=2")
    (True, False)
    """
    return isinstance(spec, str) and _SPEC.match(spec) is not None


@takes_models("teacher")
def make_student(teacher: PreTrainedModel, spec: str | int, *, inplace: bool = False) -> PreTrainedModel:
    """A shallower or narrower copy of the teacher.

    A number of layers is evenly chosen, among them the first and the last. Heads and neurons of the FFNs are the most
    important of each layer by the magnitude of their weights, and so are the channels of the hidden width. All are
    taken out by `effitrans.prune`, which the copy's history tells.

    Args:
        teacher: a model, or its folder, of a family with an adapter; it is not touched, unless `inplace`.
        spec: what is kept, some of `"layers=3,hidden=192,heads=6,ffn=512"`: layers of each stack, the width of hidden
            states, key/value heads and neurons of each layer, and likewise for every other unit of `pruning.UNITS`;
            or a number, of layers. `layers=0-2,5` says which layers of each stack, counted from 0.
        inplace: make the student of `teacher` itself instead of a copy.

    Raises:
        UsageError: another spec, more than the teacher has, or a quantized teacher.

    >>> from transformers import BertConfig, BertModel
    >>> teacher = BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=4, num_attention_heads=2,
    ...     intermediate_size=8))
    >>> make_student(teacher, "layers=2").config.num_hidden_layers, teacher.config.num_hidden_layers
    (2, 4)
    """
    sizes = _parse(spec)
    if getattr(teacher, "is_quantized", False):
        raise UsageError("a copy of a quantized teacher cannot be trained: make the student from the original model")
    student = teacher if inplace else copy.deepcopy(teacher)
    # The one place where a pass uses another: what a smaller copy keeps is what pruning keeps.
    from effitrans.pruning import Pruning, prune
    from effitrans.pruning.units import PRUNED

    architecture = adapter(student)
    units = {unit.name: unit for unit in PRUNED if unit.name in sizes}
    removal = {unit.setting: unit.shrink(architecture, sizes[name]) for name, unit in units.items()}
    removal = {setting: value for setting, value in removal.items() if value is not None}
    if not removal:
        return student
    exact = {"multiple_of": 1} if any("multiple_of" in unit.reads for unit in units.values()) else {}
    return prune(student, Pruning.parse({**exact, **removal}), inplace=True)


def _parse(spec: str | int) -> dict[str, Any]:
    """What is kept: unit -> how many, or of what goes as a whole a tuple of numbers, which."""
    from effitrans.pruning.units import PRUNED, WHOLE_UNITS

    if isinstance(spec, int):
        return {"layers": spec}
    pairs = [_PAIR.fullmatch(part) for part in re.split(r",(?=\s*\w+\s*=)", spec)] if isinstance(spec, str) else [None]
    sizes: dict[str, Any] = {pair[1]: pair[2] for pair in pairs if pair is not None}
    named = {name for name, value in sizes.items() if not value.isdigit()}
    known, whole = ({unit.name for unit in units} for units in (PRUNED, WHOLE_UNITS))
    if len(sizes) < len(pairs) or not sizes.keys() <= known or not named <= whole:
        expected = ", ".join(f"{unit.name}=N" for unit in reversed(PRUNED))
        raise UsageError(
            f"unknown student {spec!r}: expected {expected} or several with a "
            "comma (layers=0-2,5 for certain layers), or a model of its own (a folder, a name, base)"
        )
    return {
        name: layer_numbers(value, f"student {name}") if name in named else int(value) for name, value in sizes.items()
    }


def kept_layers(student: PreTrainedModel, teacher: PreTrainedModel) -> dict[str, list[int]]:
    """The teacher's layers, counted from 0, that pruning left in each stack of the student.

    Empty unless the student's history is the teacher's and then passes that say which of the teacher's layers they
    kept, and no layers went otherwise.
    """
    before, after = checkpoint.history(teacher), checkpoint.history(student)
    if after[: len(before)] != before or type(student) is not type(teacher):
        return {}
    passes = [entry["summary"] for entry in after[len(before) :] if entry["summary"].get("layers_kept")]
    if not passes:
        return {}
    kept = {stack.name: list(range(len(stack.modules))) for stack in adapter(teacher).stacks}
    for made in passes:
        if made.get("layers_before") != {stack: len(layers) for stack, layers in kept.items()}:
            return {}
        kept |= {stack: [kept[stack][i] for i in layers] for stack, layers in made["layers_kept"].items()}
    depths = {stack.name: len(stack.modules) for stack in adapter(student).stacks}
    return kept if depths == {stack: len(layers) for stack, layers in kept.items()} else {}


def differing_tokens(mine: Any, theirs: Any) -> list[str]:
    """The tokens that two tokenizers number differently, or only one has; none where one of them is no tokenizer."""
    if not (hasattr(mine, "get_vocab") and hasattr(theirs, "get_vocab")):
        return []
    ours, others = mine.get_vocab(), theirs.get_vocab()
    return sorted(token for token in {*ours, *others} if ours.get(token) != others.get(token))


def check_compatible(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    processor: Any = None,
    teacher_processor: Any = None,
    *,
    own_inputs: bool = False,
) -> None:
    """Refuse a pair that does not mean the same by its inputs and outputs.

    Args:
        student: the student.
        teacher: the teacher.
        processor: the student's tokenizer, which makes the inputs of both.
        teacher_processor: the teacher's own tokenizer; None leaves the comparison of vocabulary sizes.
        own_inputs: whether each model reads what its own tokenizer made, so that these may differ.

    Raises:
        UsageError: the same object twice, another vocabulary, another set of labels, or another `problem_type`.
    """
    if student is teacher:
        raise UsageError(
            "student and teacher are the same model, so there is nothing to learn: make the student a copy of its own "
            "(layers=N, a pruned model, another model)"
        )
    if not own_inputs:
        _check_vocabulary(student, teacher, processor, teacher_processor)
    _check_labels(student, teacher)
    start = [getattr(model.config, "decoder_start_token_id", None) for model in (student, teacher)]
    if teacher.config.is_encoder_decoder and start[0] != start[1]:
        raise UsageError(
            f"student and teacher begin their outputs with different tokens (decoder_start_token_id {start[0]} and "
            f"{start[1]}): set the student's to the teacher's"
        )


def _check_vocabulary(student: PreTrainedModel, teacher: PreTrainedModel, mine: Any, theirs: Any) -> None:
    if different := differing_tokens(mine, theirs):
        whole_texts = [name for name, objective in OBJECTIVES.items() if objective.compares_sentences]
        raise UsageError(
            f"student and teacher have different tokenizers ({len(mine.get_vocab())} and {len(theirs.get_vocab())} "
            f"tokens, {len(different)} differ, such as {different[0]!r}), so they would read different inputs. Use a "
            "student with the teacher's tokenizer: layers=N, base, or a model of the same family; or, for a task with "
            f"one answer per text, only objectives that compare whole texts ({', '.join(whole_texts)})"
        )
    if hasattr(mine, "get_vocab") and hasattr(theirs, "get_vocab"):
        return
    sizes = [getattr(model.config, "vocab_size", None) for model in (student, teacher)]
    if None not in sizes and sizes[0] != sizes[1]:
        raise UsageError(
            f"student and teacher have vocabularies of {sizes[0]} and {sizes[1]} tokens, so they cannot read the same "
            "inputs. Use a student with the teacher's tokenizer: layers=N, base, or a model of the same family."
        )


def _check_labels(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    if not _classifies(student) or not _classifies(teacher):
        return
    mine, theirs = _labels(student), _labels(teacher)
    if len(mine) != len(theirs):
        raise UsageError(
            f"the student's head has {len(mine)} labels and the teacher's {len(theirs)}: "
            "give both the labels of the task"
        )
    problems = problem_type(student), problem_type(teacher)
    if None not in problems and problems[0] != problems[1]:
        raise UsageError(
            f"the student's config has the problem_type {problems[0]} and the teacher's {problems[1]}, so their "
            "outputs do not mean the same: give both the problem_type of the task"
        )
    unnamed = [f"label_{i}" for i in range(len(mine))]
    if mine != theirs and unnamed not in (mine, theirs):
        raise UsageError(
            f"student and teacher have different labels, {', '.join(mine)} and {', '.join(theirs)}: "
            "give both the labels of the task, in one order"
        )


def problem_type(model: PreTrainedModel) -> Any:
    """What the outputs of a model that classifies mean, as its config says; None where it leaves that open."""
    if not _classifies(model) or type(model).__name__.endswith("ForTokenClassification"):
        return None
    return model.config.problem_type or ("regression" if model.config.num_labels == 1 else None)


def adopt_problem_type(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Give a student whose config leaves open what its outputs mean the `problem_type` of its teacher."""
    if problem_type(student) is None and problem_type(teacher) is not None:
        student.config.problem_type = problem_type(teacher)


def _labels(model: PreTrainedModel) -> list[str]:
    names: dict = model.config.id2label or {}
    return [str(names[i]).lower() for i in sorted(names)]


def _classifies(model: PreTrainedModel) -> bool:
    return type(model).__name__.endswith(
        ("ForSequenceClassification", "ForTokenClassification", "ForImageClassification")
    )
