"""The pass `swap_attention`: give layers of a model another attention operator, and prove that it runs."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.attention.interface import CHILD, NAME, activate, attach, observing
from effitrans.attention.operator import AttentionOperator, OperatorConfig, Site
from effitrans.attention.registry import operator_config
from effitrans.checkpoint.accepting import evaluation_mode, takes_models
from effitrans.config import as_config
from effitrans.errors import UsageError
from effitrans.layers import check_numbers, matches, parse_layers

Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class FoundSite:
    """An attention module that ran in the probe."""

    path: str
    module: nn.Module
    site: Site
    asked: frozenset[str]
    """Names from `FEATURES` that the layer asks of an operator."""


@takes_models("model")
def swap_attention(
    model: Model,
    config: OperatorConfig | str,
    layers: int | str | Sequence[int | str] | None = None,
    *,
    inplace: bool = False,
    inputs: Mapping[str, Tensor] | None = None,
) -> Model:
    """Attach an attention operator to layers of a model whose architecture uses transformers' attention interface.

    A probe forward pass finds the attention sites; a second one proves that every swapped layer ran its operator.

    Args:
        model: any transformers model, with or without a head, or its folder.
        config: the operator: `Local(window=128)`; or the name of one, with its defaults: `"local"`.
        layers: numbers of self-attention layers, counted from 0 over the model (the encoder's before the decoder's),
            as a list or as text (`"0-3,6"`); or paths of modules that are or hold attention, or one dotted part of
            them, `*` standing for anything (`"model.decoder.layers.*.encoder_attn"`). Default: all self-attention
            layers. Cross-attention is swapped only by path.
        inplace: change `model` itself instead of a copy.
        inputs: model inputs for the probe. Default: a few tokens or a blank image, from the config.

    Returns:
        The model, in the mode (training or evaluation) it had.

    Raises:
        UsageError: no layer goes through the interface, a layer that does not exist, something the operator cannot
            honour, layers that have this operator already, or weights shared in a way unknown to the config.

    >>> from transformers import BertConfig, BertModel
    >>> from effitrans.attention import Local, swap_attention
    >>> model = BertModel(BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64, num_hidden_layers=2))
    >>> swapped = swap_attention(model, Local(window=16), layers=[1])
    >>> swapped.encoder.layer[1].attention.self.attention_operator.config.window
    16
    """
    config = as_operator(config)
    checkpoint.refuse_unknown_sharing(model)
    if not inplace:
        model = copy.deepcopy(model)
    with restored_on_error(model):
        inputs = probe_inputs(model) if inputs is None else inputs
        chosen = choose(find_sites(model, inputs), layers, type(model).__name__)
        _attach_all(chosen, config, next(model.parameters()))
        activate(model)
        _prove(model, chosen, inputs)
    settings = {"attention": config.name, **config.model_dump(mode="json")}
    checkpoint.record(model, "swap", settings, layers=[found.path for found in chosen])
    return model


def as_operator(value: Any) -> OperatorConfig:
    """The operator that a caller passed as its config or by name.

    Raises:
        UsageError: it is neither.
    """
    return as_config(value, "swap_attention", OperatorConfig, "Local(window=128)", named=operator_config)


def find_sites(model: PreTrainedModel, inputs: Mapping[str, Tensor] | None = None) -> list[FoundSite]:
    """The attention modules that go through transformers' interface, in the order in which they run.

    Leaves the model as it was, but for `attn_implementation`, which is "effitrans" afterwards.

    Args:
        model: the model.
        inputs: model inputs for the probe; default `probe_inputs(model)`.

    Raises:
        UsageError: none does, the message names the architecture; inputs that tell self-attention and cross-attention
            not apart.
    """
    inputs = probe_inputs(model) if inputs is None else inputs
    _check_lengths(inputs)
    paths = {module: path for path, module in model.named_modules()}
    found: dict[nn.Module, FoundSite] = {}

    def observe(module: nn.Module, site: Site, asked: set[str]) -> None:
        needs = asked | {name for name in ("causal", "cross") if getattr(site, name)}
        found.setdefault(module, FoundSite(paths[module], module, site, frozenset(needs)))

    if model._can_set_attn_implementation():
        model.set_attn_implementation(NAME)
        with observing(observe):
            run_probe(model, inputs)
    if not found:
        raise UsageError(
            f"{type(model).__name__} (architecture {model.config.model_type!r}) does not send its attention through "
            "transformers' attention interface, so no operator can be put into it. Architectures that do: bert, "
            "distilbert, roberta, gpt2, llama, qwen2, mistral, vit, bart, effitrans, t5 (from transformers 5.15 on) "
            "and most recent ones."
        )
    return list(found.values())


def _check_lengths(inputs: Mapping[str, Tensor]) -> None:
    """Cross-attention is known by keys that are not as many as the queries, so its two sides must differ in length."""
    for own, other in (("decoder_input_ids", "input_ids"), ("input_ids", "encoder_hidden_states")):
        if own in inputs and other in inputs and inputs[own].shape[1] == inputs[other].shape[1]:
            raise UsageError(
                f"inputs: {own} and {other} have {inputs[own].shape[1]} positions each, so self-attention and "
                "cross-attention cannot be told apart: shorten one of them"
            )


def probe_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    """Small inputs for a forward pass: 7 tokens, the last one padding, and 5 for a decoder; or a blank image.

    Raises:
        UsageError: the model takes something else; the caller must pass inputs.
    """
    config = model.config
    device = next(model.parameters()).device
    if model.main_input_name == "pixel_values":
        size: Any = getattr(config, "image_size", None)
        if size is not None:
            height, width = size if isinstance(size, (list, tuple)) else (size, size)
            dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
            pixels = torch.zeros(1, getattr(config, "num_channels", 3), height, width, dtype=dtype, device=device)
            return {"pixel_values": pixels}
    vocabulary = getattr(config.get_text_config(), "vocab_size", None)
    if model.main_input_name != "input_ids" or not vocabulary:
        raise UsageError(
            f"cannot make up an input for {type(model).__name__} (it takes {model.main_input_name!r}): "
            "pass inputs={...} with tensors for one small forward pass"
        )
    tokens = _tokens(7, vocabulary, config.pad_token_id, device)
    mask = torch.ones_like(tokens)
    mask[:, -1] = 0
    inputs = {"input_ids": tokens, "attention_mask": mask}
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = _tokens(5, vocabulary, config.pad_token_id, device)
    return inputs


def _tokens(length: int, vocabulary: int, pad_token_id: Any, device: torch.device) -> Tensor:
    """[1, length] token ids without the padding token, which some models read from the ids."""
    usable = [token for token in range(min(vocabulary, length + 1)) if token != pad_token_id]
    return torch.tensor([[usable[i % len(usable)] for i in range(length)]], device=device)


def run_probe(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> None:
    """One forward pass in evaluation mode without gradients; the modes of all modules are restored."""
    with evaluation_mode(model), torch.no_grad():
        model(**inputs)


def choose(sites: list[FoundSite], layers: int | str | Sequence[int | str] | None, name: str) -> list[FoundSite]:
    """The sites that `layers` names, as `swap_attention` takes it; `name` is the model's, for messages.

    Raises:
        UsageError: a layer or path that does not exist, or none at all.
    """
    own = [found for found in sites if not found.site.cross]
    if layers is None:
        return own
    chosen: list[FoundSite] = []
    for item in parse_layers(layers, "layers"):
        if isinstance(item, int):
            check_numbers([item], len(own), name, "self-attention layer")
            chosen.append(own[item])
            continue
        named = [found for found in sites if matches(item, found.path)]
        if not named:
            raise UsageError(
                f"no attention module matches {item!r}. Paths in this model: {', '.join(f.path for f in sites)}"
            )
        chosen.extend(named)
    return list(dict.fromkeys(chosen))


def _attach_all(chosen: list[FoundSite], config: OperatorConfig, like: Tensor) -> None:
    if all(_operator(found.module, config) for found in chosen):
        raise UsageError(f"every chosen layer has the operator {config!r} already: nothing would change")
    for found in chosen:
        try:
            operator = config.build(found.site)
            operator.refuse(set(found.asked))
        except UsageError as error:
            raise UsageError(f"{found.path}: {error}") from None
        if _operator(found.module, config):
            continue
        dtype = next((p.dtype for p in found.module.parameters() if p.is_floating_point()), torch.float32)
        attach(found.module, operator.to(device=like.device, dtype=dtype).train(found.module.training))


def _operator(module: nn.Module, config: OperatorConfig) -> AttentionOperator | None:
    """The module's operator if it was built from this config."""
    operator = getattr(module, CHILD, None)
    return operator if isinstance(operator, AttentionOperator) and operator.config == config else None


def _prove(model: PreTrainedModel, chosen: list[FoundSite], inputs: Mapping[str, Tensor]) -> None:
    """Run the probe and check that the operator of every chosen layer was called."""
    called: set[nn.Module] = set()
    hooks = [
        getattr(found.module, CHILD).register_forward_hook(lambda operator, *_: called.add(operator))
        for found in chosen
    ]
    try:
        run_probe(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if idle := [found.path for found in chosen if getattr(found.module, CHILD) not in called]:
        raise UsageError(f"the operator did not run in {', '.join(idle)}: this layer cannot be swapped")


@contextmanager
def restored_on_error(model: PreTrainedModel) -> Iterator[Callable[[], None]]:
    """Give a model back its operators and attention implementation if the block raises, or calls what is yielded."""
    before = {module: module._modules.get(CHILD) for module in model.modules()}
    implementation = model.config._attn_implementation

    def restore() -> None:
        for module, child in before.items():
            if child is None:
                module._modules.pop(CHILD, None)
            else:
                module._modules[CHILD] = child
        if implementation is not None and model._can_set_attn_implementation():
            model.set_attn_implementation(implementation)

    try:
        yield restore
    except BaseException:
        restore()
        raise
