"""FFN neurons of architectures without an adapter, found through torch-pruning's dependency graph.

The graph traces the model and says which features of which modules belong together. A group in which some linear
layers produce a feature and others alone consume it, with nothing but element-wise operations between, is that of
an FFN's neuron. The features of attention heads look alike in the graph, so every group is tried on a copy: one
feature is cut, and the copy must compute what the model does with that feature silenced. What fails is left alone.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from effitrans.architectures import ARCHITECTURES
from effitrans.errors import UsageError
from effitrans.pruning.calibration import criterion_batches
from effitrans.pruning.config import Pruning
from effitrans.pruning.recording import record
from effitrans.pruning.scores import measured
from effitrans.pruning.selection import select
from effitrans.pruning.sites import PruningSite, Slice, spread
from effitrans.pruning.units import PRUNED

_TOLERANCE = 1e-4


def generic_ffn_sites(model: PreTrainedModel) -> list[PruningSite]:
    """One site for each FFN that the dependency graph shows.

    Args:
        model: any transformers model that a few tokens or a blank image can be put through.

    Raises:
        UsageError: the graph cannot be built, or shows no FFN, with the reason.
    """
    from effitrans.attention.swap import probe_inputs

    inputs = probe_inputs(model)
    names: dict[nn.Module, str] = {module: path for path, module in model.named_modules()}
    sites = []
    for outs, ins in _groups(model, inputs):
        neurons = spread(ins[0].in_features, 1)
        slices = tuple(Slice(m, "out", neurons) for m in outs) + tuple(Slice(m, "in", neurons) for m in ins)
        site = PruningSite(name=names[outs[0]], kind="neuron", units=len(neurons), slices=slices)
        # Bottlenecks of pooling and heads stand outside of the lists of layers.
        in_layers = any(part.isdigit() for part in site.name.split("."))
        if in_layers and _holds(model, site, names, inputs):
            sites.append(site)
    if not sites:
        raise UsageError(
            f"{_named(model)} has no adapter, and its dependency graph shows no feed-forward network whose neurons "
            "could go"
        )
    return sites


def _named(model: PreTrainedModel) -> str:
    return f"{type(model).__name__} (architecture {model.config.model_type!r})"


def prune_generic(
    model: PreTrainedModel, config: Pruning, data: Any, *, processor: Any = None, inplace: bool = False
) -> PreTrainedModel:
    """Remove FFN neurons from a model of any architecture. Arguments and result as those of `prune`.

    Raises:
        UsageError: the config asks for more than neurons in one step; as `generic_ffn_sites` and `prune`.
    """
    if any(unit.asked(config) for unit in PRUNED if unit.setting != "ffn") or config.steps > 1:
        raise UsageError(
            f"{_named(model)} has no adapter, so its heads and layers cannot be told. Without one, only FFN neurons "
            f"can be removed (ffn, in one step). Architectures with an adapter: {', '.join(sorted(ARCHITECTURES))}"
        )
    batches = criterion_batches(model, config, data, processor)
    target = model if inplace else copy.deepcopy(model)
    sites = generic_ffn_sites(target)
    scores = measured(config.method, batches, config.seed)(target, sites)
    chosen = select(sites, scores, config.ffn, scope=config.scope, multiple_of=config.multiple_of)
    if not any(chosen):
        raise UsageError(f"ffn={config.ffn:g} removes nothing: raise the ratio or set multiple_of=1")
    before = target.num_parameters()
    gone = sum(site.parameters_of(units) for site, units in zip(sites, chosen, strict=True))
    for site, units in zip(sites, chosen, strict=True):
        if units:
            site.remove(units)
    assert target.num_parameters() == before - gone
    removed = {site.name: len(units) for site, units in zip(sites, chosen, strict=True) if units}
    return record(target, config, before, units_removed=removed)


def _run(traced: nn.Module, batch: Any) -> Any:
    """How torch-pruning is to call the model: with the inputs by name, for all tensors that come out."""
    return _tensors(traced(**batch))


def _groups(model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> list[tuple[list[nn.Linear], list[nn.Linear]]]:
    """(linear layers that lose outputs, linear layers that lose inputs) of every group made of such alone."""
    import torch_pruning as tp

    use_cache = getattr(model.config, "use_cache", None)
    try:
        if use_cache:
            model.config.use_cache = False
        graph = tp.DependencyGraph().build_dependency(
            model,
            example_inputs=dict(inputs),
            forward_fn=_run,
            verbose=False,
        )
    except (RuntimeError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise UsageError(
            f"{_named(model)} has no adapter, and torch-pruning could not trace it ({type(error).__name__}: {error})"
        ) from error
    finally:
        if use_cache:
            model.config.use_cache = use_cache
    found: list[tuple[list[nn.Linear], list[nn.Linear]]] = []
    covered: set[nn.Module] = set()
    linear = [module for module in model.modules() if type(module) is nn.Linear]
    for root in linear:
        if root in covered or root.out_features < 2:
            continue
        try:
            group = graph.get_pruning_group(root, tp.prune_linear_out_channels, idxs=[0])
        except (RuntimeError, ValueError, KeyError, IndexError, AttributeError):
            continue
        split = _split(group, tp)
        if split is not None and len({m.out_features for m in split[0]} | {m.in_features for m in split[1]}) == 1:
            covered.update(split[0])
            found.append(split)
    return found


def _split(group: Any, tp: Any) -> tuple[list[nn.Linear], list[nn.Linear]] | None:
    outs: dict[nn.Linear, None] = {}
    ins: dict[nn.Linear, None] = {}
    for dependency, indices in group:
        module = dependency.target.module
        if type(module) is nn.Linear and list(indices) == [0]:
            (outs if dependency.handler == tp.prune_linear_out_channels else ins)[module] = None
        elif any(True for _ in module.parameters()):
            return None
    return (list(outs), list(ins)) if outs and ins else None


def _tensors(output: Any) -> list[Tensor]:
    return [value for value in output.values() if isinstance(value, Tensor)]


@torch.no_grad()
def _holds(
    model: PreTrainedModel, site: PruningSite, names: dict[nn.Module, str], inputs: Mapping[str, Tensor]
) -> bool:
    """Whether a copy without the first unit computes what a copy with that unit silenced does."""
    cut, silent = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    moved = [Slice(cut.get_submodule(names[part.module]), part.side, part.index_UK) for part in site.slices]
    for part in site.gates:
        silent.get_submodule(names[part.module]).weight[:, 0] = 0  # type: ignore[operator,index]
    PruningSite(site.name, site.kind, site.units, tuple(moved)).remove([0])
    try:
        ours = _tensors(cut(**inputs))
    except RuntimeError:
        return False
    theirs = _tensors(silent(**inputs))
    return all(
        torch.allclose(left, right, rtol=_TOLERANCE, atol=_TOLERANCE) for left, right in zip(ours, theirs, strict=True)
    )
