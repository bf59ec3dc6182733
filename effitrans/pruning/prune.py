"""`prune`: make a model smaller, by whichever method the config is for.

Accuracy is recovered by training or distillation, afterwards or between the steps of an iterative pruning, which
take the result like any model.
"""

from collections.abc import Callable
from typing import Any

from transformers import PreTrainedModel

from effitrans.checkpoint.accepting import takes_models
from effitrans.config import Config, as_config
from effitrans.pruning.config import FFNPruning, HeadPruning, HiddenPruning, LayerPruning, Pruning
from effitrans.pruning.l0.config import L0Pruning
from effitrans.pruning.l0.learn import learn_gates
from effitrans.pruning.search.config import Search
from effitrans.pruning.search.search import search
from effitrans.pruning.sparse.config import Sparsity
from effitrans.pruning.sparse.sparsify import sparsify
from effitrans.pruning.structured import prune_units

METHODS: dict[type[Config], Callable[..., PreTrainedModel]] = {
    Pruning: prune_units,
    HeadPruning: prune_units,
    FFNPruning: prune_units,
    HiddenPruning: prune_units,
    LayerPruning: prune_units,
    L0Pruning: learn_gates,
    Search: search,
    Sparsity: sparsify,
}
"""Config -> the function that does it, `(model, config, data, *, processor, inplace)` and what it alone takes."""


@takes_models("model")
def prune(
    model: PreTrainedModel,
    config: "Pruning | HeadPruning | FFNPruning | HiddenPruning | LayerPruning | L0Pruning | Search | Sparsity",
    data: Any = None,
    *,
    processor: Any = None,
    inplace: bool = False,
) -> PreTrainedModel:
    """Remove attention heads, FFN neurons, channels of the hidden width, sublayers, layers or single weights.

    What only one method takes is an argument of that method's own function, which can be called instead:
    `prune_units` takes `scores` measured before and `recover`, called between its steps; `search` takes `storage`, a
    file from which an interrupted search resumes.

    Args:
        model: a floating-point model, or its folder, of a family with an adapter; of any other, FFN neurons can be
            removed where torch-pruning's dependency graph shows them.
        config: what to remove and how to choose it; or `L0Pruning`, for gates that learn it; or a `Search` for the
            best model inside a budget; or a `Sparsity` for single weights.
        data: calibration data for a criterion that measures, in any form of `effitrans.tasks.forms`, with labels for
            the criteria by gradient.
        processor: tokenizer or image processor of a task or of texts. Default: the one beside the model's weights.
        inplace: change `model` itself, which saves the memory of a copy. Learned gates and a search refuse it.

    Returns:
        The pruned model, an ordinary trainable one that saves and loads with `save_pretrained` and
        `from_pretrained`; its config carries the structure and the history.

    Raises:
        UsageError: no adapter for the architecture; integer weights; a criterion without its data; a ratio that
            empties a layer; a request that changes nothing. The model is then untouched.

    Example:
        >>> from transformers import BertConfig, BertModel
        >>> from effitrans.pruning import HeadPruning, prune
        >>> model = BertModel(BertConfig(hidden_size=32, num_attention_heads=4, intermediate_size=64))
        >>> pruned = prune(model, HeadPruning(ratio=0.5))
        >>> pruned.encoder.layer[0].attention.self.query.weight.shape
        torch.Size([16, 32])
    """
    kind = type(as_config(config, "prune", tuple(METHODS), "HeadPruning(ratio=0.5)"))
    method = next(METHODS[base] for base in kind.__mro__ if base in METHODS)
    return method(model, config, data, processor=processor, inplace=inplace)
