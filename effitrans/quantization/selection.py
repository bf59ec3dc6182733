"""Which modules a scheme changes: linear layers and embedding tables, less those that are named to be skipped."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from effitrans.architectures import adapter
from effitrans.errors import UsageError, unknown_name
from effitrans.layers import check_numbers, matches
from effitrans.quantization.modules.kernels import MAX_IN_FEATURES


@dataclass(frozen=True)
class Candidate:
    """A module that can be quantized, and every path under which the model holds it."""

    module: nn.Module
    paths: tuple[str, ...]

    @property
    def is_embedding(self) -> bool:
        """Whether it is a table that ids are looked up in, rather than a linear layer."""
        return isinstance(self.module, nn.Embedding)


def select(
    model: nn.Module, *, embeddings: bool, skip: Sequence[int | str], must_match: bool
) -> tuple[list[Candidate], list[str]]:
    """Choose the modules to quantize.

    Modules that share their weight (an embedding and the output layer tied to it) are taken together or not at all.

    Args:
        model: the model.
        embeddings: take embedding tables too.
        skip: patterns of modules and numbers of layers to leave (see `Int8.skip`).
        must_match: refuse a pattern that names no module.

    Returns:
        The candidates in the order of the model, and the paths of linear layers and tables that are left.

    Raises:
        UsageError: a pattern of `skip` matches nothing and `must_match` is set, or a layer that there is not.
    """
    patterns = _patterns(model, skip)
    paths_of: dict[nn.Module, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        paths_of[module].append(path)
    if must_match:
        _refuse_idle_patterns(patterns, [path for paths in paths_of.values() for path in paths])

    def wanted(module: nn.Module) -> bool:
        if not _fits(module) or (isinstance(module, nn.Embedding) and not embeddings):
            return False
        return not any(matches(pattern, path) for pattern in patterns for path in paths_of[module])

    left_weights = {
        id(parameter)
        for module in paths_of
        for name, parameter in module.named_parameters(recurse=False)
        if name != "weight" or not wanted(module)
    }
    taken: list[Candidate] = []
    left: list[str] = []
    for module, paths in paths_of.items():
        if isinstance(module, (nn.Linear, Conv1D, nn.Embedding)):
            if wanted(module) and id(module.weight) not in left_weights:
                taken.append(Candidate(module, tuple(paths)))
            else:
                left.append(paths[0])
    return taken, left


def unskipped(model: nn.Module, kind: str, skip: Sequence[int | str]) -> list[str]:
    """Paths of the modules of a manifest's kind that no pattern of `skip` names."""
    patterns = _patterns(model, skip)
    paths = [path for path, module in model.named_modules() if getattr(type(module), "kind", None) == kind]
    return [path for path in paths if not any(matches(pattern, path) for pattern in patterns)]


def _fits(module: nn.Module) -> bool:
    """Whether the module is exactly one of the classes whose forward pass the int8 modules reproduce."""
    if type(module) is nn.Embedding:
        return module.max_norm is None and module.weight.is_floating_point()
    if type(module) not in (nn.Linear, Conv1D):
        return False
    weight = module.weight
    in_features = weight.shape[0 if type(module) is Conv1D else 1]  # type: ignore[union-attr,index]
    return weight.is_floating_point() and 0 < in_features <= MAX_IN_FEATURES  # type: ignore[operator]


def _patterns(model: nn.Module, skip: Sequence[int | str]) -> list[str]:
    """The patterns of `skip`, with paths in place of the numbers of layers.

    Raises:
        UsageError: a layer that there is not, or a model whose layers cannot be told.
    """
    numbers = [item for item in skip if isinstance(item, int)]
    layers = adapter(model).layers if numbers else []  # type: ignore[arg-type]
    check_numbers(numbers, len(layers), f"skip: {type(model).__name__}")
    return [layers[item].path if isinstance(item, int) else item for item in skip]


def _refuse_idle_patterns(skip: Sequence[str], paths: Sequence[str]) -> None:
    for pattern in skip:
        if not any(matches(pattern, path) for path in paths):
            names = {part for path in paths for part in path.split(".") if not part.isdigit()} | set(paths)
            raise unknown_module(pattern, names - {""})


def unknown_module(pattern: str, names: set[str]) -> UsageError:
    """The error for a pattern that names no module; lists the short names only, the paths may be hundreds."""
    error = unknown_name("module to skip", pattern, names)
    message = str(error).split("Valid: ")[0]
    short = sorted(name for name in names if "." not in name)
    return UsageError(f"{message}It names no module of this model; the parts of its paths are: {', '.join(short)}")
