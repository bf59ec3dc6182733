"""`linearize`: convert the softmax attention of a trained model to another operator, and train the result.

Two stages (LoLCATs, Zhang et al. 2024): attention transfer, in which each new operator learns the outputs of the
layer that it replaces (see `transfer`), then fine-tuning under the original model as teacher, of all weights or of
low-rank updates to the projections (LoRA, Hu et al. 2022, through peft), which are merged at the end.
"""

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from effitrans import checkpoint
from effitrans.architectures import adapter
from effitrans.attention import AttentionOperator, operator_config, swap_attention
from effitrans.checkpoint.accepting import takes_models
from effitrans.config import Config, Count, Epochs, Rate, Width, as_config
from effitrans.distillation.choosing import chosen_layers, layers_or_rule, parse_rule
from effitrans.distillation.config import TaughtTraining
from effitrans.distillation.data import resolve_for_both
from effitrans.distillation.loop import teach
from effitrans.distillation.objectives.settings import Objectives
from effitrans.distillation.recording import through_interface
from effitrans.distillation.teacher import in_evaluation
from effitrans.distillation.teachers import further_teachers
from effitrans.distillation.transfer import TransferHooks, TransferTrainer, only_trainable
from effitrans.errors import UsageError
from effitrans.layers import Named
from effitrans.training.arguments import check_environment
from effitrans.training.config import Training
from effitrans.training.data import Data, Selection
from effitrans.training.loop import TrainResult, check_trainable, fit, summary
from effitrans.versions import check_versions

logger = logging.getLogger(__name__)


class AttentionTransfer(Config):
    """The first stage, in which the new operators learn the outputs of softmax attention."""

    epochs: Epochs = 1.0
    """Passes over the training data (default 1). `max_steps` overrides it."""
    max_steps: Count | None = None
    """Optimizer steps (default: none, `epochs` decides)."""
    learning_rate: Rate = 1e-3
    """Peak learning rate (default 1e-3)."""
    parameters: Literal["attention", "operator"] = "attention"
    """What learns: the converted attention modules with their projections, or their operators alone, which must then
    have parameters (default attention)."""


RESPONSE_AND_FEATURE: Any = {"response": 1.0, "feature": 1.0}
"""The default of `objective`."""


class Linearization(TaughtTraining):
    """How softmax attention is converted. The fields of `TaughtTraining` are for the second stage; those on data,
    batches and precision hold for both.
    """

    verb: ClassVar[str] = "linearize"

    attention: str = "linear"
    """Name of the operator (default linear)."""
    options: dict[str, Any] = Field(default={})
    """Settings of the operator, such as `{window: 16}`; its seed is that of the conversion unless given here."""
    layers: Annotated[
        tuple[int | str, ...] | str | None, BeforeValidator(layers_or_rule, json_schema_input_type=Named | None)
    ] = None
    """Self-attention layers to convert: `"0-3,5"`, a list of numbers from 0, or module paths; `"best:4"`, those in
    which the operator is nearest to softmax on training examples; `"error:0.2"`, those in which its relative error is
    at most that (default: all)."""
    transfer: AttentionTransfer = AttentionTransfer()
    """The first stage (default: one epoch)."""
    objective: Objectives = RESPONSE_AND_FEATURE
    """What is learned from the original in the second stage, as in `Distillation` (default: response and feature)."""
    lora_rank: Width | None = None
    """Learn low-rank updates of this rank to the projections of attention in the second stage instead of all weights;
    operators learn too (needs peft; default: all weights)."""

    @model_validator(mode="after")
    def _check_operator(self) -> Self:
        operator_config(self.attention, self.options)
        return self


@takes_models("model")
def linearize(
    model: PreTrainedModel,
    data: Any,
    config: Linearization | str | None = None,
    *,
    processor: Any = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
) -> TrainResult:
    """Convert the attention of a trained model.

    Args:
        model: a floating-point model, or its folder, whose attention goes through transformers' interface. It is the
            teacher of both stages and is not changed.
        data: as in `effitrans.distill`, with or without labels.
        config: settings, or the name of an operator alone; default `Linearization()`: linear attention in all layers.
        processor: the tokenizer (or image processor) that encodes the task.
        output_dir: checkpoints go to `output_dir/transfer` and `output_dir/heal`.
        resume: as in `effitrans.train`; a finished first stage is not run again.

    Returns:
        The converted copy of the model in its best state, with the history of the second stage; that of the first is
        summarized in the model's history.

    Raises:
        UsageError: as `swap_attention` and `distill`; operators without parameters to train alone; peft is missing.
        TrainingDiverged, KeyboardInterrupt: as `effitrans.train`.

    >>> import datasets
    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> model = BertForSequenceClassification(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1,
    ...     num_attention_heads=2, intermediate_size=8))
    >>> rows = datasets.Dataset.from_dict({"input_ids": [[1, 2], [3, 4]], "labels": [0, 1]})
    >>> linearize(model, rows, Linearization(max_steps=2, transfer={"max_steps": 2})).steps
    2
    """
    config = as_config(
        config,
        "linearize",
        Linearization,
        'Linearization(attention="linear")',
        default=Linearization(),
        named=lambda name: Linearization.parse({"attention": name}),
    )
    check_trainable(model)
    check_environment(config)
    others = list(further_teachers(model, config, processor=processor).values())
    found = resolve_for_both(data, model, others, processor, config)
    operator = operator_config(config.attention, config.options).seeded(config.seed)
    rule = parse_rule(config.layers)
    errors: dict[str, Any] = {}
    if rule is not None:
        layers, measured = chosen_layers(model, found, operator, rule)
        errors = {"layer_errors": {str(layer): error for layer, error in measured.items()}, "layers_converted": layers}
        logger.info("converting layers %s of %d", layers, len(measured))
    else:
        layers = config.layers
    student = swap_attention(model, operator, layers=layers)
    folders = {stage: None if output_dir is None else Path(output_dir) / stage for stage in ("transfer", "heal")}
    transferred = transfer(student, model, found, config, output_dir=folders["transfer"], resume=resume)
    with low_rank(student, config.lora_rank):
        result = teach(
            student, model, found, config, others, output_dir=folders["heal"], resume=resume, description="linearize"
        )
    details = {**errors, "transfer": summary(transferred), **summary(result)}
    checkpoint.record(student, "linearize", config, **details)
    return replace(result, checkpoints=None if output_dir is None else Path(output_dir).resolve())


def transfer(
    student: PreTrainedModel,
    original: PreTrainedModel,
    data: Data,
    config: Linearization,
    *,
    output_dir: Path | None,
    resume: bool,
) -> TrainResult:
    """The first stage: train the converted attention modules of `student` in place."""
    values = {name: getattr(config, name) for name in Training.model_fields}
    settings = Training(**values).model_copy(
        update={
            "epochs": config.transfer.epochs,
            "max_steps": config.transfer.max_steps,
            "learning_rate": config.transfer.learning_rate,
            "gradient_checkpointing": False,  # the inputs of a layer's attention are there in the forward pass only
            "early_stopping": None,
        }
    )
    with in_evaluation(original), through_interface(original):
        stage = TransferHooks(student, original)
        chosen: list[nn.Parameter] = []
        for module in stage.modules.values():
            operators = [child for child in module.children() if isinstance(child, AttentionOperator)]
            part = operators if config.transfer.parameters == "operator" else [module]
            chosen += [parameter for learner in part for parameter in learner.parameters()]
        if not chosen:
            raise UsageError(
                f"transfer: parameters 'operator', and operator {config.attention!r} has no parameters to learn: use "
                "'attention', or a learned feature map (options: {feature_map: hedgehog})"
            )
        with stage.attached(), only_trainable(student, chosen):
            return fit(
                student,
                replace(data, selection=Selection(), loss=None),
                settings,
                output_dir=output_dir,
                resume=resume,
                description="transfer",
                trainer_class=TransferTrainer,
                others={"original model": original},
                transfer=stage,
            )


def require_peft() -> None:
    """Refuse low-rank updates if peft is not installed, or too old.

    Raises:
        UsageError: with the remedy.
    """
    if importlib.util.find_spec("peft") is None:
        raise UsageError(
            "lora_rank needs peft, which is not installed: pip install peft, or leave it out to train all weights"
        )
    check_versions("lora")


@contextmanager
def low_rank(student: PreTrainedModel, rank: int | None) -> Iterator[None]:
    """Within the block the attention projections learn by low-rank updates, and the operators; all else is frozen.

    The updates are merged into the weights at the end. With rank None nothing is changed.

    Raises:
        UsageError: peft is not installed, or too old.
    """
    if rank is None:
        yield
        return
    require_peft()
    from peft import LoraConfig, get_peft_model

    paths = {module: path for path, module in student.named_modules()}
    sites = [site for layer in adapter(student).layers for site in layer.attention]
    projections = {part for site in sites for part in (site.query.module, site.key.module, site.value.module)}
    targets = sorted(paths[module] for module in projections | {site.output for site in sites})
    required = {name: parameter.requires_grad for name, parameter in student.named_parameters()}
    lora = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in projections),  # GPT-2 stores [in, out]
    )
    wrapped = get_peft_model(student, lora)  # type: ignore[arg-type]
    for module in student.modules():
        if isinstance(module, AttentionOperator):
            module.requires_grad_(True)
    try:
        yield
    finally:
        wrapped.merge_and_unload()  # type: ignore[operator]
        vars(student).pop("peft_config", None)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(required[name])
