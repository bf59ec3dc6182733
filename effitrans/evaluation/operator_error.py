"""How far an operator's output is from a layer's softmax output, layer by layer, on real data.

    error = || operator(Q, K, V) - softmax(Q, K, V) ||_2 / || softmax(Q, K, V) ||_2

over the outputs of all heads for all tokens of the data (padding left out), with the queries, keys and values that
the layer has when all layers before it run softmax. So the errors of layers do not mix, and tell which layers to
convert; they do not say what becomes of the model's quality, which a swap and an evaluation do.
"""

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.attention.full import full_attention
from effitrans.attention.interface import CHILD
from effitrans.attention.mask import AttentionMask
from effitrans.attention.operator import FEATURES, AttentionOperator, OperatorConfig, State
from effitrans.attention.swap import FoundSite, as_operator, choose, find_sites, restored_on_error, run_probe
from effitrans.checkpoint.accepting import takes_models
from effitrans.errors import UsageError
from effitrans.tasks import calibration_batches


@dataclass(frozen=True)
class LayerError:
    """The error of one operator in one layer."""

    layer: int | None
    """Number of the layer as `swap_attention` counts; None for cross-attention."""
    path: str
    """The attention module."""
    operator: OperatorConfig
    error: float | None
    """Relative L2 error; 0 is exact. None if the operator was refused."""
    refused: str | None = None
    """Why the operator cannot be put into this layer."""


@dataclass
class _Candidate:
    config: OperatorConfig
    operator: AttentionOperator | None
    refused: str | None = None
    squared: float = 0.0


class _Comparison(AttentionOperator):
    """Runs softmax attention, and beside it the candidates on the same queries, keys and values."""

    honours = frozenset(FEATURES)

    def __init__(self, found: FoundSite, candidates: list[_Candidate]) -> None:
        super().__init__(_ComparisonConfig(), found.site)
        self.candidates = candidates
        self.squared = 0.0

    def attend(
        self,
        query_BHLD: Tensor,
        key_BGSD: Tensor,
        value_BGSD: Tensor,
        mask: AttentionMask,
        *,
        scale: float,
        dropout: float = 0.0,
        state: State | None = None,
        **extras: Any,
    ) -> Tensor:
        exact = full_attention(query_BHLD, key_BGSD, value_BGSD, mask, scale=scale, **extras)
        token_BL = None if self.site.cross else _query_tokens(mask)
        self.squared += _squared(exact, token_BL)
        for candidate in self.candidates:
            if candidate.operator is None:
                continue
            try:
                out = candidate.operator(query_BHLD, key_BGSD, value_BGSD, mask, scale=scale, **extras)
            except UsageError as error:
                candidate.operator, candidate.refused = None, str(error)
                continue
            candidate.squared += _squared(out.double() - exact.double(), token_BL)
        return exact

    def reference(self, *args: Any, **options: Any) -> Tensor:
        return self.attend(*args, **options)


class _ComparisonConfig(OperatorConfig):
    name: ClassVar[str] = "comparison"


def _query_tokens(mask: AttentionMask) -> Tensor | None:
    """bool [B, L], True where the query is a token; None if all are."""
    if mask.padding_BT is None:
        return None
    return mask.padding_BT[:, mask.q_offset : mask.q_offset + mask.q_length]


def _squared(tensor_BHLD: Tensor, token_BL: Tensor | None) -> float:
    """Sum of squares over tokens."""
    tensor = tensor_BHLD.double()
    if token_BL is not None:
        tensor = tensor.masked_fill(~token_BL[:, None, :, None], 0)
    return float(tensor.square().sum())


@takes_models("model")
def attention_error(
    model: PreTrainedModel,
    data: Any,
    operators: OperatorConfig | str | Sequence[OperatorConfig | str] | None = None,
    *,
    layers: int | str | Sequence[int | str] | None = None,
    processor: Any = None,
    batch_size: int = 8,
    limit: int | None = 64,
    seed: int = 0,
) -> list[LayerError]:
    """The relative L2 error of operators against each layer's own softmax output, on real data.

    The model is left as it was. Operators with parameters are measured as they are initialised; those that are
    attached to the model (`operators=None`) as they are.

    Args:
        model: any model whose attention goes through transformers' interface.
        data: a task, batches, encoded examples or texts, as `effitrans.tasks.calibration_batches` takes them.
        operators: configs or names to compare. Default: the operators that the model has, each in its own layers.
        layers: layers, as `swap_attention` takes them. Default: all self-attention layers.
        processor: the model's tokenizer or image processor. Default: the one beside its weights.
        batch_size: examples per batch.
        limit: examples at most; None: all.
        seed: of the draw.

    Returns:
        One entry for each layer and operator, layer by layer.

    Raises:
        UsageError: the architecture is outside the interface, no such layer, no data, or no operator to measure.

    >>> from transformers import BertConfig, BertModel
    >>> from effitrans.attention import Local
    >>> model = BertModel(BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64, num_hidden_layers=2))
    >>> entry = attention_error(model, [{"input_ids": [5, 6, 7, 8]}], Local(window=2), layers=[1])[0]
    >>> entry.path, 0 < entry.error < 1
    ('encoder.layer.1.attention.self', True)
    """
    if operators is not None and not isinstance(operators, list | tuple):
        operators = [operators]  # type: ignore[list-item]
    configs = None if operators is None else [as_operator(operator) for operator in operators]
    own = {path.removesuffix(f".{CHILD}"): part for path, part in model.named_modules() if path.endswith(f".{CHILD}")}
    batches = calibration_batches(data, model, processor, limit=limit, batch_size=batch_size, seed=seed)
    with restored_on_error(model) as restore:
        for path in own:
            model.get_submodule(path)._modules.pop(CHILD)
        sites = find_sites(model)
        chosen = choose(sites, layers, type(model).__name__)
        numbers = {found.path: number for number, found in enumerate(f for f in sites if not f.site.cross)}
        comparisons = [_compare(found, configs, own.get(found.path)) for found in chosen]
        if not any(comparison.candidates for comparison in comparisons):
            raise UsageError("no operators to measure: pass some, or a model that has operators in these layers")
        for found, comparison in zip(chosen, comparisons, strict=True):
            found.module.register_module(CHILD, comparison)
        for batch in batches:
            run_probe(model, batch)
        restore()
    for found, comparison in zip(chosen, comparisons, strict=True):
        if not math.isfinite(comparison.squared):
            raise UsageError(
                f"{found.path} gives NaN or infinite values in {model.dtype} with its own softmax attention: load the "
                "model in float32 or bfloat16"
            )
    return [
        LayerError(numbers.get(found.path), found.path, part.config, _relative(part, comparison), part.refused)
        for found, comparison in zip(chosen, comparisons, strict=True)
        for part in comparison.candidates
    ]


def _compare(found: FoundSite, configs: Iterable[OperatorConfig] | None, own: nn.Module | None) -> _Comparison:
    if configs is None:
        # a copy, so that the model's own keeps its mode
        candidates = [_Candidate(own.config, copy.deepcopy(own).eval())] if isinstance(own, AttentionOperator) else []
    else:
        candidates = [_built(found, config) for config in configs]
    return _Comparison(found, candidates).eval()


def _built(found: FoundSite, config: OperatorConfig) -> _Candidate:
    try:
        operator = config.build(found.site)
        operator.refuse(set(found.asked))
    except UsageError as error:
        return _Candidate(config, None, str(error))
    like = next(parameter for parameter in found.module.parameters() if parameter.is_floating_point())
    return _Candidate(config, operator.to(like.device, like.dtype).eval())


def _relative(candidate: _Candidate, comparison: _Comparison) -> float | None:
    if candidate.operator is None:
        return None
    return (candidate.squared / comparison.squared) ** 0.5 if comparison.squared else 0.0
