"""Attention transfer: new attention operators learn the outputs of the layers that they replace.

The first stage of converting softmax attention to other operators (LoLCATs, Zhang et al. 2024, section 3.1;
Hedgehog, Zhang et al. 2024). The original model runs on real data, and each converted attention module is given the
very inputs that its original had, so errors do not pile up from layer to layer; all layers learn at once. The loss is
|s - t|^2 / |t|^2 of a module's output for each token, the mean over the tokens of an example, examples and layers.
Deviations: LoLCATs takes the plain squared error, in which layers of large outputs weigh more, and trains feature maps
alone; here the projections of a module learn as well, unless they are held (`transfer: {parameters: operator}`). Time:
a forward pass of both models and the backward pass of the attention modules.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from effitrans.attention import AttentionOperator
from effitrans.attention.interface import CHILD
from effitrans.distillation.objectives.base import attended
from effitrans.distillation.objectives.feature import relative_error
from effitrans.distillation.teacher import LABELS, refuse_overflow
from effitrans.training.trainer import Trainer, accepted_inputs, count_examples


@dataclass(frozen=True)
class RecordedCall:
    """Inputs and output of one call of an attention module of the original."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor


def converted(student: PreTrainedModel, original: PreTrainedModel) -> dict[str, nn.Module]:
    """Path -> attention module of the student, for those whose operator the original does not have."""
    found = {}
    for path, module in student.named_modules():
        operator = getattr(module, CHILD, None)
        before = getattr(original.get_submodule(path), CHILD, None) if operator is not None else None
        if isinstance(operator, AttentionOperator) and getattr(before, "config", None) != operator.config:
            found[path] = module
    return found


@contextmanager
def only_trainable(model: PreTrainedModel, chosen: list[nn.Parameter]) -> Iterator[None]:
    """Freeze all other parameters; at the end every parameter is as it was."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = {id(parameter) for parameter in chosen}
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in wanted)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


class TransferHooks:
    """Hooks on both models: calls of the original's modules are recorded, the student's get the same inputs.

    Args:
        student: the model with the new operators.
        original: the model without, in evaluation mode, whose attention goes `through_interface`.
    """

    def __init__(self, student: PreTrainedModel, original: PreTrainedModel) -> None:
        self.student, self.original = student, original
        self.modules = converted(student, original)
        self.inputs: Mapping[str, Tensor] | None = None
        self._recorded: dict[str, RecordedCall] = {}
        self._given: dict[str, Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The hooks, within the block."""
        handles = [self.student.register_forward_hook(self._make_loss)]
        for path, module in self.modules.items():
            watched = self.original.get_submodule(path)
            handles.append(watched.register_forward_hook(self._watch(path), with_kwargs=True))
            # First, so that the operator's own hook sees what is really passed.
            handles.append(module.register_forward_pre_hook(self._replace(path), with_kwargs=True, prepend=True))
            handles.append(module.register_forward_hook(self._keep(path)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def loss(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """The loss of a batch; `model` is the student as it is wrapped for several processes."""
        given = {name: value for name, value in inputs.items() if name not in LABELS or self._reads_labels}
        if self.original.device != self.student.device:
            self.original.to(self.student.device)  # type: ignore[arg-type]
        with torch.no_grad():
            self.original(**accepted_inputs(self.original, given))
        self.inputs = inputs
        try:
            return model(**accepted_inputs(self.student, given))["loss"]
        finally:
            self.inputs = None
            self._recorded.clear()
            self._given.clear()

    @property
    def _reads_labels(self) -> bool:
        return bool(self.student.config.is_encoder_decoder)  # whose decoder reads them, moved by one

    def _watch(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._recorded[path] = RecordedCall(args, kwargs, _first(output))

        return hook

    def _replace(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return (self._recorded[path].args, dict(self._recorded[path].kwargs)) if self.inputs is not None else None

        return hook

    def _keep(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self.inputs is not None:
                self._given[path] = _first(output)

        return hook

    def _make_loss(self, module: nn.Module, args: Any, outputs: Any) -> Any:
        if self.inputs is None:
            return outputs
        errors = []
        for path, given in self._given.items():
            target = self._recorded[path].output.float()
            tokens = attended(self.inputs, target)
            if self._reads_labels and "decoder" in path.split("."):
                tokens = attended(self.inputs, target, decoder=True)
            errors.append(relative_error(given.float(), target, tokens))
        loss = torch.stack(errors).mean()
        if not loss.isfinite():
            refuse_overflow({f"outputs of {path}": seen.output for path, seen in self._recorded.items()}, self.original)
        return ModelOutput(loss=loss)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class TransferTrainer(Trainer):
    """Trains and evaluates by the loss of `TransferHooks`.

    Args:
        transfer: with its hooks attached.
        kwargs: of the training Trainer.
    """

    def __init__(self, *, transfer: TransferHooks, **kwargs: Any) -> None:
        self.transfer = transfer
        super().__init__(**kwargs)

    def counts(self, inputs: dict[str, Any]) -> list[int]:
        return [count_examples(inputs)]

    def mean_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        """The transfer loss, without dropout: the original's outputs have none."""
        training = model.training
        model.eval()
        try:
            return self.transfer.loss(model, inputs), None
        finally:
            model.train(training)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        inputs = self._prepare_inputs(inputs)  # type: ignore[assignment]
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, _ = self.mean_loss(model, inputs)
        return loss.detach().mean(), None, None
