"""`refuse_unknown_sharing`: weights that a model holds in several places, and of which its config says nothing.

Embeddings tied to an output layer, or a layer that an architecture runs several times, are rebuilt as they are when
the model is loaded. A module object that was put into a second place, or a parameter that was set in a second module,
is not: the places would part when one of them is cut, quantized or loaded.
"""

from collections import defaultdict

from torch import nn
from transformers import PreTrainedModel

from effitrans.checkpoint.manifest import skeleton
from effitrans.errors import UsageError


def refuse_unknown_sharing(model: PreTrainedModel) -> None:
    """Refuse a model that shares weights in another way than its architecture does.

    Raises:
        UsageError: with the places named.
    """
    shared = _shared(model)
    if not shared:
        return
    built = skeleton(model)
    built.tie_weights()  # type: ignore[operator]
    known = _shared(built)
    for names in shared:
        if not any(names <= others for others in known):
            first, *others = sorted(names)
            raise UsageError(
                f"{', '.join(others[:3])} and {first} are one and the same weight, which the config does not tell, so "
                "they would part when the model is changed or loaded. Give each place a copy of its own "
                "(copy.deepcopy), or tie the weights through the config where it can (tie_word_embeddings)"
            )


def _shared(model: nn.Module) -> list[set[str]]:
    """The names of the parameters that are one, for each with several."""
    names: dict[tuple[object, ...], set[str]] = defaultdict(set)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        is_real = parameter.device.type != "meta" and parameter.numel()
        key = (parameter.data_ptr(), parameter.device, parameter.shape) if is_real else (id(parameter),)
        names[key].add(name)
    return [found for found in names.values() if len(found) > 1]
