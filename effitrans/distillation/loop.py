"""`distill`: teach a smaller model what a larger one knows."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.checkpoint.accepting import evaluation_mode, takes_models
from effitrans.config import as_config
from effitrans.distillation.augmentation import Augmentation, with_copies, with_texts
from effitrans.distillation.baseline import check_baseline, compare_to_baseline
from effitrans.distillation.cache import CachedTeacher, with_index
from effitrans.distillation.config import Distillation, TaughtTraining
from effitrans.distillation.data import is_about_sentences, resolve_for_both
from effitrans.distillation.objectives import OBJECTIVES, DistillationBatch
from effitrans.distillation.recording import Recorder, through_interface
from effitrans.distillation.sequences import with_answers
from effitrans.distillation.student import adopt_problem_type, check_compatible, differing_tokens, kept_layers
from effitrans.distillation.teacher import LABELS, LiveTeacher, in_evaluation
from effitrans.distillation.teachers import further_teachers, shares
from effitrans.distillation.trainer import CHILD, DistillationLoss, DistillationTrainer
from effitrans.errors import UsageError
from effitrans.tasks.kinds.embedding import settings_of
from effitrans.training.arguments import check_environment
from effitrans.training.data import Data
from effitrans.training.loop import TrainResult, check_trainable, fit, summary
from effitrans.training.trainer import accepted_inputs


@takes_models("student", "teacher")
def distill(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    data: Any,
    config: Distillation | str | None = None,
    *,
    processor: Any = None,
    teacher_processor: Any = None,
    teachers: Mapping[str, PreTrainedModel] | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
) -> TrainResult:
    """Train a student in place under a teacher.

    Args:
        student: a transformers model, or its folder, pruned or not, but with no integer weights. Where its config
            leaves `problem_type` open, it takes the teacher's.
        teacher: a model, or its folder, with the same inputs and outputs, of any family, depth, width and precision. It
            runs in evaluation mode and is neither changed nor saved.
        data: as in `effitrans.train`; rows of a `datasets.Dataset` and batches of a `DataLoader` may lack labels.
        config: settings, or the names of objectives alone (`"response,feature"`); default `Distillation()`.
        processor: the tokenizer (or image processor) that encodes the task for both models.
        teacher_processor: the teacher's own; None compares vocabulary sizes. Another tokenizer is allowed where the
            task has one answer per text and the objectives compare whole texts: each model then reads its own.
        teachers: the models that `config.teachers` names, which must read what the student reads. Default: they are
            loaded from these names.
        output_dir: as in `effitrans.train`; checkpoints of the baseline go to
            `output_dir/no-teacher-baseline`.
        resume: as in `effitrans.train`.

    Returns:
        The student, which is the one passed in, in its best state, and the history.

    Raises:
        UsageError: as `effitrans.train`; another vocabulary or other labels than the teacher's; an objective that
            this pair of models does not allow; alpha below 1 and no labels; a baseline without labelled
            validation data; a resumed run with another teacher.
        TrainingDiverged, KeyboardInterrupt: as `effitrans.train`.

    >>> import datasets
    >>> from effitrans.distillation import make_student
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> teacher = BertForSequenceClassification(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=2,
    ...     num_attention_heads=2, intermediate_size=8))
    >>> rows = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3, 4]]})
    >>> distill(make_student(teacher, "layers=1"), teacher, rows, Distillation(max_steps=2, batch_size=2)).steps
    2
    """
    config = as_config(
        config,
        "distill",
        Distillation,
        'Distillation(objective="response")',
        default=Distillation(),
        named=lambda name: Distillation.parse({"objective": name}),
    )
    check_trainable(student)
    check_environment(config)
    apart = reads_apart(config, processor, teacher_processor, data)
    check_compatible(student, teacher, processor, teacher_processor, own_inputs=apart)
    adopt_problem_type(student, teacher)
    if apart and config.teachers:
        raise UsageError("several teachers read what the student reads: leave teachers out, or use one tokenizer")
    others = further_teachers(student, config, teachers, processor)
    found = resolve_for_both(
        data, student, [teacher, *others.values()], processor, config, teacher_processor if apart else None
    )
    labelled, untaught = found, None
    if config.no_teacher_baseline:
        check_baseline(labelled)
        untaught = copy.deepcopy(student)
    if config.augmentation is not None:
        found = _augmented(found, config.augmentation, config, processor, [student, teacher, *others.values()], apart)
    if config.sequence_level is not None:
        found = with_answers(found, student, teacher, config)
    result = teach(
        student,
        teacher,
        found,
        config,
        list(others.values()),
        output_dir=output_dir,
        resume=resume,
        has_labels=config.augmentation is None,
    )
    facts: dict[str, Any] = {"teacher_parameters": teacher.num_parameters()}
    if untaught is not None:
        folder = None if output_dir is None else Path(output_dir) / "no-teacher-baseline"
        facts |= compare_to_baseline(result, untaught, labelled, config, output_dir=folder, resume=resume)
    checkpoint.record(student, "distill", config, **summary(result), **facts)
    return result


def _augmented(
    data: Data,
    added: Augmentation,
    config: Distillation,
    processor: Any,
    models: Sequence[PreTrainedModel],
    apart: bool,
) -> Data:
    """The data with the texts that `added` names behind the training examples."""
    if added.unlabeled is not None or added.crops:
        data = with_texts(data, added, config, processor, models, apart)
    if added.word_replacement is not None:
        if apart:
            raise UsageError(
                "word_replacement changes tokens that both models read: leave it out, or use one tokenizer"
            )
        data = with_copies(data, processor, added.word_replacement, config)
    return data


def reads_apart(config: Distillation, processor: Any, teacher_processor: Any, data: Any) -> bool:
    """Whether student and teacher each read what their own tokenizers make of a text."""
    compares_sentences = all(objective.compares_sentences for objective in config.objective_classes.values())
    return bool(differing_tokens(processor, teacher_processor)) and compares_sentences and is_about_sentences(data)


def teach(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    data: Data,
    config: TaughtTraining,
    others: Sequence[PreTrainedModel] = (),
    *,
    output_dir: str | Path | None,
    resume: bool,
    has_labels: bool = True,
    description: str = "distill",
) -> TrainResult:
    """Distill on resolved data, without checks and without a record.

    Args:
        has_labels: whether the labels of all training examples are known, where the data holds any.
        description: name of the run in the progress.

    The other arguments and errors are those of `distill`.
    """
    objectives = config.objective_classes.values()
    with ExitStack() as stack:
        for model in (teacher, *others):
            stack.enter_context(in_evaluation(model))
        records = sorted({kind for objective in objectives for kind in objective.records})
        if "attention" in records:
            stack.enter_context(through_interface(teacher))
            stack.enter_context(through_interface(student))
        needs = tuple(sorted({need for objective in objectives for need in objective.needs}))
        is_taught = config.alpha != 0 or bool(config.alpha_end)
        data = with_index(data) if config.cache is not None and is_taught else data
        example = _first_batch(data)
        _check_first_tokens(config, [student, teacher])
        sources = [LiveTeacher(model, needs, records) for model in (teacher, *others)]
        loss = DistillationLoss(
            student,
            Recorder(student, records),
            {name: settings.weight for name, settings in config.objective.items()},
            _alpha(config, example, has_labels),
            config.alpha_end,
            data.loss,
            shares(config),
            settings_of(data.task, teacher).pooling,
            kept_layers(student, teacher),
        )
        _check_validation(data, loss)
        batches = [_try(loss, source, example, needs) for source in sources]
        run = partial(fit, student, data, config, output_dir=output_dir, resume=resume, description=description)
        if not is_taught:  # the labels alone; no forward pass of the teacher would change anything
            return run()
        stack.enter_context(_objectives(loss, config, batches))
        return run(
            trainer_class=DistillationTrainer,
            teachers=[CachedTeacher(one, data, config, example) for one in sources] if config.cache else sources,
            distillation_loss=loss,
            others={"teacher": teacher, **{f"teacher {i}": other for i, other in enumerate(others, 2)}},
        )


def _first_batch(data: Data) -> dict[str, Tensor]:
    if isinstance(data.train, DataLoader):
        with torch.random.fork_rng(devices=[]):
            return next(iter(data.train))
    return data.collate([data.train[i] for i in range(min(2, len(data.train)))])


def _alpha(config: TaughtTraining, example: Mapping[str, Tensor], has_labels: bool) -> float:
    has_labels = has_labels and any(name in example for name in LABELS)
    if config.alpha is None:
        return 0.5 if has_labels else 1.0
    for name, alpha in (("alpha", config.alpha), ("alpha_end", config.alpha_end)):
        if alpha is not None and alpha < 1 and not has_labels:
            raise UsageError(
                f"{name} {alpha} leaves a part of the loss to labels, and the data has none: "
                f"leave {name} out (the teacher alone), or pass data with labels"
            )
    return config.alpha


def _check_first_tokens(config: TaughtTraining, models: Sequence[PreTrainedModel]) -> None:
    names = [name for name, objective in config.objective_classes.items() if objective.compares_first_tokens]
    for model in models:
        # Not every attention module says `is_causal`: T5's says `is_decoder` alone before transformers 5.15.
        marks = {getattr(module, name, False) for module in model.modules() for name in ("is_causal", "is_decoder")}
        if names and True in marks:
            raise UsageError(
                f"objective {names[0]!r} compares first tokens, which have seen nothing in a causal stack, and "
                f"{type(model).__name__} has one: use 'feature' or 'cosine'"
            )


def _check_validation(data: Data, loss: DistillationLoss) -> None:
    if data.validation is None or not loss.uses_labels:
        return
    if not any(name in data.collate([data.validation[0]]) for name in LABELS):
        raise UsageError(
            "the validation data has no labels, and the loss needs them: add them, leave the validation data "
            "out, or set alpha=1 (the teacher alone)"
        )


@torch.no_grad()
def _try(
    loss: DistillationLoss, teacher: LiveTeacher, example: dict[str, Tensor], needs: tuple[str, ...]
) -> DistillationBatch:
    """Both models' outputs for one batch. The objectives are built from their shapes."""
    student = loss.student
    inputs = {name: tensor.to(student.device) for name, tensor in example.items()}
    options = dict.fromkeys(needs, True)
    with evaluation_mode(student), loss.recorder.running():
        outputs = student(**accepted_inputs(student, inputs), **options, return_dict=True)
    if loss.uses_labels and loss.hard_loss(outputs, inputs) is None:
        raise UsageError(
            f"{type(student).__name__} gave no loss for a batch with {', '.join(inputs)}: use a model with a head "
            "for the task, or alpha=1 (the teacher alone)"
        )
    return loss.batch(outputs, teacher(inputs), inputs)


@contextmanager
def _objectives(
    loss: DistillationLoss, config: TaughtTraining, examples: Sequence[DistillationBatch]
) -> Iterator[None]:
    """Attach the objectives to the student, with the hook that computes the loss; remove them at the end.

    Objectives are built once per teacher, to check its outputs; those of the first are used, since objectives that take
    several teachers have no parameters.
    """
    student = loss.student
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        sets = [
            {name: OBJECTIVES[name](settings, one) for name, settings in config.objective.items()} for one in examples
        ]
    for name, objective in sets[0].items():
        if len(examples) > 1 and not objective.takes_several:
            raise UsageError(
                f"objective {name!r}: the vectors of texts lie in spaces of their teachers' own, which cannot be "
                "averaged: leave teachers out"
            )
    built = nn.ModuleDict(sets[0])
    student.add_module(CHILD, built)
    handle = student.register_forward_hook(loss.hook)
    try:
        yield
    finally:
        handle.remove()
        delattr(student, CHILD)
