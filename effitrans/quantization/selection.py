"""Which modules a scheme quantizes: linear layers and embedding tables, less those that are named to be skipped."""

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
class Target:
    """A module to be quantized, and every path under which the model holds it."""

    module: nn.Module
    paths: tuple[str, ...]

    @property
    def is_embedding(self) -> bool:
        """Whether it is a table that ids are looked up in, rather than a linear layer."""
        return isinstance(self.module, nn.Embedding)


@dataclass(frozen=True)
class Selection:
    """What a scheme quantizes in a model, in the order of the model."""

    targets: list[Target]
    left: list[str]
    """Paths of linear layers and tables that are left as they are."""

    @property
    def linears(self) -> list[Target]:
        """The linear layers."""
        return [target for target in self.targets if not target.is_embedding]

    @property
    def tables(self) -> list[Target]:
        """Embedding tables, and the linear layers that share the weight of one."""
        return [target for target in self.targets if id(target.module.weight) in self._table_weights]

    @property
    def untied(self) -> list[Target]:
        """The linear layers that share no table's weight."""
        return [target for target in self.targets if id(target.module.weight) not in self._table_weights]

    @property
    def _table_weights(self) -> set[int]:
        return {id(target.module.weight) for target in self.targets if target.is_embedding}


def names_of(targets: Sequence[Target]) -> dict[nn.Module, str]:
    """Module -> the first of its paths."""
    return {target.module: target.paths[0] for target in targets}


def select(
    model: nn.Module, scheme: str, *, embeddings: bool, skip: Sequence[int | str], must_match: bool
) -> Selection:
    """Choose the modules to quantize.

    Modules that share their weight (an embedding and the output layer tied to it) are taken together or not at all.

    Args:
        model: the model.
        scheme: the scheme's name, for messages.
        embeddings: take embedding tables too.
        skip: patterns of modules and numbers of layers to leave (see `Int8.skip`).
        must_match: refuse a pattern that names no module.

    Raises:
        UsageError: a pattern of `skip` matches nothing and `must_match` is set, or a layer that there is not; layers
            are stored sparsely; there is nothing to quantize.
    """
    patterns = _patterns(model, skip)
    paths_of: dict[nn.Module, list[str]] = defaultdict(list)
    for path, module in model.named_modules(remove_duplicate=False):
        paths_of[module].append(path)
    if must_match:
        _refuse_idle_patterns(patterns, [path for paths in paths_of.values() for path in paths])

    def is_skipped(module: nn.Module) -> bool:
        return any(matches(pattern, path) for pattern in patterns for path in paths_of[module])

    def wanted(module: nn.Module) -> bool:
        return _fits(module) and (embeddings or not isinstance(module, nn.Embedding)) and not is_skipped(module)

    left_weights = {
        id(parameter)
        for module in paths_of
        for name, parameter in module.named_parameters(recurse=False)
        if name != "weight" or not wanted(module)
    }
    targets: list[Target] = []
    left: list[str] = []
    for module, paths in paths_of.items():
        if isinstance(module, (nn.Linear, Conv1D, nn.Embedding)):
            if wanted(module) and id(module.weight) not in left_weights:
                targets.append(Target(module, tuple(paths)))
            else:
                left.append(paths[0])
    sparse = [m for m in paths_of if getattr(type(m), "kind", None) == "sparse_linear" and not is_skipped(m)]
    if sparse:
        raise UsageError(
            f"{len(sparse)} layers, {paths_of[sparse[0]][0]} the first, store nothing but their nonzero weights (prune "
            f"--sparsity), and {scheme} stores whole rows: quantize a model that was not made sparse, or leave these "
            "layers as they are by naming them in skip"
        )
    if not targets:
        raise UsageError(
            f"{scheme} changes nothing in {type(model).__name__}: it holds {len(left)} linear layers and embedding "
            f"tables, and all are left as they are (embeddings={embeddings}, skip={', '.join(map(str, skip))})"
        )
    return Selection(targets, left)


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
