"""The models that come into a verb, looked at before anything is done.

A model may be given as a transformers model or as the folder or name it is loaded from. What looks like a model and is
none (a LoRA wrapper, a pipeline, a state dict) is refused with what to pass instead, as are weights that are missing,
NaN or infinite.
"""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from effitrans.checkpoint.load import load_model, load_processor
from effitrans.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")

_SCANNED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def takes_models(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a verb: these arguments of it are models, and pass through `as_model`.

    Where a folder or name is given and no processor, the one beside the model is passed on: to `processor` for the
    first of the arguments, to `NAME_processor` for another. While the verb runs, outputs are by name (`named_outputs`).
    """

    def decorate(verb: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(verb)

        @functools.wraps(verb)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            for name in names:
                given, beside = bound.arguments[name], None
                if isinstance(given, str | Path):
                    given, beside = load_model(given, None), load_processor(given)
                bound.arguments[name] = as_model(given, name)
                processor = "processor" if name == names[0] else f"{name}_processor"
                if processor in signature.parameters and bound.arguments.get(processor) is None:
                    bound.arguments[processor] = beside
            with named_outputs(*(bound.arguments[name] for name in names)) as given_back:
                return given_back(verb(*bound.args, **bound.kwargs))

        return checked

    return decorate


def as_model(value: Any, argument: str = "model") -> PreTrainedModel:
    """The model that a caller passed, with weights that are there and finite.

    Args:
        value: a transformers model; or a folder or hub name, which is loaded with the head it was saved with.
        argument: how the verb calls it, for messages.

    Raises:
        UsageError: something else, adapters that are not merged, weights on the meta device, NaN or infinite.
    """
    if isinstance(value, str | Path):
        value = load_model(value, None)
    if not isinstance(value, PreTrainedModel):
        raise UsageError(f"{argument} must be a transformers model or its folder, received {_described(value)}")
    if _has_adapters(value):
        raise UsageError(
            f"{argument} is a {type(value).__name__} with adapters (LoRA) beside its weights, which no pass can keep. "
            "Save them, load them as a PeftModel (peft.PeftModel.from_pretrained(base, folder)), call "
            "merge_and_unload() on it and pass what that returns"
        )
    check_weights(value, argument)
    return value


def check_weights(model: nn.Module, argument: str = "model") -> None:
    """Refuse weights that are not there, NaN or infinite. Reads every weight once.

    Raises:
        UsageError: names the first such tensor.
    """
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and (is_lazy(tensor) or tensor.is_meta):
            raise UsageError(
                f"{argument} has no values for {name} (it is on the meta device, offloaded or not initialised): load "
                "the whole model with from_pretrained, without a device map"
            )
    if broken := broken_weights(model):
        raise UsageError(
            f"{argument} has {broken}, so nothing that it computes means anything: load an earlier checkpoint, or "
            "train it anew with a lower learning rate or in precision 'bf16' or 'fp32'"
        )


def broken_weights(model: nn.Module) -> str | None:
    """Names the first tensor with NaN or infinite values; a buffer, which may be a mask, only with NaN."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or tensor.dtype not in _SCANNED or not tensor.numel():
            continue
        smallest, largest = tensor.detach().aminmax()
        if smallest.isnan() or largest.isnan():
            return f"NaN in {name}"
        if isinstance(tensor, nn.Parameter) and (smallest.isinf() or largest.isinf()):
            return f"infinite values in {name}"
    return None


@contextmanager
def named_outputs(*models: PreTrainedModel) -> Iterator[Callable[[Any], Any]]:
    """Within the block the models give outputs by name, also if their configs ask for tuples (`return_dict: false`).

    At the end the configs are as they were. What is yielded passes a result on, and where it is or holds a copy of the
    first model, that one's config has the first's setting again.
    """
    changed = [config for model in models for config in _configs(model) if config.return_dict is False]
    first_changed = bool(models) and models[0].config.return_dict is False
    for config in changed:
        config.return_dict = True

    def give_back(result: R) -> R:
        for made in (result, getattr(result, "model", None)):
            if first_changed and isinstance(made, PreTrainedModel) and made not in models:
                for config in _configs(made):
                    config.return_dict = False
        return result

    try:
        yield give_back
    finally:
        for config in changed:
            config.return_dict = False


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Within the block the models are in evaluation mode; at the end every module is in the mode it was in."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _configs(model: nn.Module) -> list[Any]:
    """Every config that the model and its modules hold, once."""
    found = [getattr(module, "config", None) for module in model.modules()]
    return list({id(config): config for config in found if hasattr(config, "return_dict")}.values())


def _has_adapters(model: nn.Module) -> bool:
    """Whether some module is wrapped by peft; a model that was merged only keeps the settings."""
    if "peft" not in sys.modules:
        return False
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def _described(value: Any) -> str:
    """What was received in the place of a model, and what to pass instead."""
    name = type(value).__name__
    if isinstance(value, type):
        return f"the class {value.__name__}: make a model of it, {value.__name__}.from_pretrained(...)"
    if isinstance(value, PreTrainedTokenizerBase):
        return f"the tokenizer {name}: the model comes first, and a tokenizer is passed as processor"
    if isinstance(value, Mapping):
        return f"a {name}: if it holds weights, load them into a model with its load_state_dict"
    if isinstance(value, nn.Module) and hasattr(value, "merge_and_unload"):
        return f"the {name} with adapters (LoRA): call merge_and_unload() on it and pass the model that this returns"
    for holder in ("_orig_mod", "module", "model"):
        if isinstance(getattr(value, holder, None), PreTrainedModel):
            return f"a {name}: pass its model, .{holder}"
    if type(value).__module__.startswith("sentence_transformers"):
        return f"a {name}: save it and pass the folder, or pass its transformers model, [0].auto_model"
    if isinstance(value, nn.Module):
        return f"the module {name}, which has no config: effitrans rebuilds models from theirs"
    return f"a {name} ({value!r:.60})"
