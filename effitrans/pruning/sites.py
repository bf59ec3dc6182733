"""Prunable units, whatever they are made of.

A `PruningSite` is a place with a number of like units (the heads of an attention block, the neurons of an FFN, a layer
taken whole). It says which features of which modules each unit owns, and that is all an importance criterion
or a removal needs: no criterion knows what a head is, and a new kind of unit works with every criterion.

Shapes: U units of a site, K features that one unit owns in one module.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from effitrans.architectures import HeadTensor, in_features, out_features
from effitrans.errors import UsageError
from effitrans.pruning.slicing import Side, drop_entries, drop_features


@dataclass(frozen=True)
class Slice:
    """The features of one linear module that the units of a site own."""

    module: nn.Module
    side: Side
    index_UK: Tensor
    """Feature indices, int64, on the CPU."""

    def unit_of_features(self) -> Tensor:
        """The unit that every feature of this side belongs to, int64 [features]."""
        units, features = self.index_UK.shape
        unit_of_feature = torch.empty(self.index_UK.numel(), dtype=torch.long)
        unit_of_feature[self.index_UK.flatten()] = torch.arange(units).repeat_interleave(features)
        return unit_of_feature

    def weights(self) -> Tensor:
        """The weights that each unit owns here, without bias, as a view or copy [U, K * other side]."""
        return self.pick(self.module.weight.detach())  # type: ignore[operator]

    def pick(self, tensor: Tensor) -> Tensor:
        """As `weights`, of any tensor of the weight's shape."""
        dim = int((self.side == "in") != isinstance(self.module, Conv1D))
        units = self.index_UK.shape[0]
        picked = tensor.index_select(dim, self.index_UK.flatten().to(tensor.device))
        return picked.movedim(dim, 0).reshape(units, -1)


@dataclass(frozen=True)
class PruningSite:
    """A place with like units that can be removed one by one."""

    name: str
    """Where it is, as the user knows it: a module path."""
    kind: str
    """What one of the units is called: "head", "neuron"."""
    units: int
    slices: tuple[Slice, ...]
    blocks: int = 1
    """Units stand in this many equal blocks, each of which must lose equally many (query heads per group)."""
    tables: tuple[tuple[HeadTensor, int], ...] = ()
    """Tensors with a number of entries (the int) a unit, which shrink along but are not scored."""
    after: Callable[[Sequence[int]], None] = lambda kept: None
    """Called after a removal with the units that stay: updates what the forward pass reads beside the weights."""
    operators: tuple[nn.Module, ...] = ()
    """Swapped attention operators of the site, which may hold parameters a head and slice them by themselves."""

    @property
    def gates(self) -> tuple[Slice, ...]:
        """The slices through which the units act on the residual stream: scaling these inputs by zero removes them."""
        return tuple(part for part in self.slices if part.side == "in")

    @contextmanager
    def gated(self, gate: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Within the block, multiply what the units add to the residual stream by gates.

        Args:
            gate: the input of one of the modules [B, ..., features] -> gates, [U] or one row per example, [B, U].
        """

        def hook_for(part: Slice) -> Callable[..., tuple[Tensor, ...]]:
            unit_of_feature = part.unit_of_features()

            def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                inputs, *others = arguments
                values = gate(inputs)[..., unit_of_feature.to(inputs.device)]
                if values.dim() == 2:
                    values = values.reshape(len(inputs), *[1] * (inputs.dim() - 2), -1)
                return (inputs * values).to(inputs.dtype), *others

            return hook

        with ExitStack() as handles:
            for part in self.gates:
                handles.callback(part.module.register_forward_pre_hook(hook_for(part)).remove)
            yield

    def remove(self, units: Sequence[int]) -> None:
        """Cut these units out of all modules of the site, in place."""
        doomed = torch.tensor(sorted(units), dtype=torch.long)
        features: dict[tuple[nn.Module, Side], set[int]] = {}
        for part in self.slices:
            features.setdefault((part.module, part.side), set()).update(part.index_UK[doomed].flatten().tolist())
        for (module, side), indices in features.items():
            drop_features(module, side, sorted(indices))
        for table, entries in self.tables:
            drop_entries(table.module, table.name, table.dim, spread(self.units, entries)[doomed].flatten().tolist())
        self.after(sorted(set(range(self.units)) - set(units)))

    def parameters_of(self, units: Sequence[int]) -> int:
        """Number of parameters that go when these units are removed, those of `operators` not counted."""
        counts = 0
        for part in self.slices:
            other_side = in_features(part.module) if part.side == "out" else out_features(part.module)
            bias = int(part.side == "out" and part.module.bias is not None)
            counts += len(units) * part.index_UK.shape[1] * (other_side + bias)
        for table, entries in self.tables:
            tensor = getattr(table.module, table.name)
            if isinstance(tensor, nn.Parameter):
                counts += len(units) * entries * (tensor.numel() // tensor.shape[table.dim])
        return counts


def spread(units: int, size: int, start: int = 0) -> Tensor:
    """Indices [units, size] of consecutive runs of `size` features from `start` on."""
    return start + torch.arange(units * size).reshape(units, size)


def whole_site(name: str, kind: str, outs: Sequence[nn.Module], ins: Sequence[nn.Module]) -> PruningSite:
    """A site with all that these linear modules write and read as its only unit. For scoring."""
    require_plain(name, [*outs, *ins])
    slices = [Slice(module, "out", spread(1, out_features(module))) for module in dict.fromkeys(outs)]
    slices += [Slice(module, "in", spread(1, in_features(module))) for module in ins]
    return PruningSite(name=name, kind=kind, units=1, slices=tuple(slices))


def require_plain(path: str, modules: Sequence[nn.Module]) -> None:
    """Refuse modules from which nothing can be cut.

    Raises:
        UsageError: one that is no plain linear layer (an integer one, an adapter), with its kind.
    """
    for module in modules:
        if type(module) not in (nn.Linear, Conv1D):
            kind = getattr(module, "kind", type(module).__name__)
            raise UsageError(
                f"{path} holds a {kind} module, from which nothing can be cut. Prune the floating-point model first, "
                "recover it by training, and quantize last."
            )


def remove_checked(model: PreTrainedModel, site: PruningSite, units: Sequence[int]) -> None:
    """Cut units out of a site, and make sure that exactly their parameters have gone."""
    expected = model.num_parameters() - site.parameters_of(units) - _parameters(site.operators)
    site.remove(units)
    assert model.num_parameters() == expected + _parameters(site.operators), site.name


def _parameters(modules: Sequence[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())
