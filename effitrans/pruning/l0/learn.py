"""`learn_gates`: what `prune` runs for `L0Pruning`.

Weights and gates are trained together on the task, under a Lagrangian that drives the expected share s of parameters
that are gated away to a target t (Wang et al. 2020, arXiv:1910.04732, section 3; Xia et al. 2022, CoFi,
arXiv:2204.00408, equation 1):

    max over lambda, min over weights and gates:  L + lambda_1 (t - s) + lambda_2 (t - s)^2

The target rises linearly at first. At the end every site loses as many units as its gates expect to be closed, the
most closed first, and the values of the others are multiplied into the weights: the model that is cut computes what
the gated model does. CoFi's gates on whole layers and on the hidden width are left out, and it distills meanwhile,
which here is a step of its own afterwards. More than the target may go; the summary in the history says how much.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from effitrans.architectures import adapter
from effitrans.checkpoint.accepting import takes_models
from effitrans.errors import GateMissed, UsageError
from effitrans.pruning.accepting import refuse_unprunable
from effitrans.pruning.l0.config import L0Pruning
from effitrans.pruning.l0.gates import Gates, attached
from effitrans.pruning.recording import logger, record
from effitrans.pruning.sites import PruningSite, remove_checked
from effitrans.pruning.units.heads import head_sites
from effitrans.pruning.units.neurons import ffn_sites
from effitrans.training.data import resolve
from effitrans.training.loop import fit, summary
from effitrans.training.trainer import Trainer

CHILD = "l0"
"""Name under which gates and multipliers hang on the model while it learns."""

DAMPING = 30.0
"""Where lambda_2 starts. At 0, as in the papers, short runs swing far past the target before lambda_1 turns round."""


@dataclass(frozen=True)
class Target:
    """What is to go of some sites."""

    name: str
    share: float
    sites: tuple[int, ...]
    """Indices of the sites."""
    cost: tuple[int, ...]
    """Parameters of one unit of each of them."""
    total: int
    """Parameters of all their units."""

    def gone(self, open_units: Sequence[Tensor]) -> Tensor:
        """Share of the parameters that is gone, where these numbers of units are open in each site."""
        left = sum(cost * open_units[site].sum() for site, cost in zip(self.sites, self.cost, strict=True))
        return 1 - torch.as_tensor(left) / self.total


class Lagrangian(nn.Module):
    """Gates, targets and the multipliers of each target."""

    def __init__(self, gates: Gates, targets: Sequence[Target]) -> None:
        super().__init__()
        self.gates = gates
        self.targets = targets
        self.multipliers = nn.Parameter(torch.tensor([[0.0, DAMPING]]).repeat(len(targets), 1))

    def forward(self, risen: float) -> Tensor:
        """The penalty while the targets have risen to this share of themselves."""
        opened = self.gates.open_probability()
        short = torch.stack([target.share * risen - target.gone(opened) for target in self.targets])
        return (self.multipliers * torch.stack([short, short.square()], dim=1)).sum()


class _Trainer(Trainer):
    """Adds the penalty to the loss, and climbs along the multipliers."""

    def __init__(self, *, lagrangian: Lagrangian, settings: L0Pruning, **options: Any) -> None:
        self.lagrangian, self.settings = lagrangian, settings
        super().__init__(**options)

    def mean_loss(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
        loss, outputs = super().mean_loss(model, inputs)
        done = self.state.global_step / max(1, self.state.max_steps)
        return loss + self.lagrangian(min(1.0, done / self.settings.rise) if self.settings.rise else 1.0), outputs

    def create_optimizer(self, *arguments: Any, **options: Any) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*arguments, **options)
        own = {id(parameter) for parameter in self.lagrangian.parameters()}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in own]
        shared: dict[str, Any] = {"lr": self.settings.gate_learning_rate, "weight_decay": 0.0}
        optimizer.add_param_group({"params": list(self.lagrangian.gates.parameters()), **shared})
        optimizer.add_param_group({"params": [self.lagrangian.multipliers], "maximize": True, **shared})
        return optimizer

    def create_scheduler(self, *arguments: Any, **options: Any) -> Any:
        """Gates and multipliers, the last two groups, learn at a constant rate: the target is met at the end."""
        scheduler: Any = super().create_scheduler(*arguments, **options)
        scheduler.lr_lambdas[-2:] = [lambda step: 1.0] * 2
        for group in scheduler.optimizer.param_groups[-2:]:
            group["lr"] = self.settings.gate_learning_rate
        return scheduler


@takes_models("model")
def learn_gates(
    model: PreTrainedModel, config: L0Pruning, data: Any = None, *, processor: Any = None, inplace: bool = False
) -> PreTrainedModel:
    """Train a copy of a model with gates on its heads and neurons, and cut out what they close.

    Args:
        model: a floating-point model of a family with an adapter; it is left as it is.
        config: targets and training.
        data: training data, as for `train`.
        processor: as for `train`.
        inplace: refused.

    Returns:
        The pruned model, in the mode of the one passed in; its weights have been trained.

    Raises:
        UsageError: no data; a target that leaves a site without a unit; as `prune`.
        GateMissed: the gates did not reach a target, with what they reached.
    """
    if inplace:
        raise UsageError("gates learn on a copy, which they train meanwhile: leave inplace out")
    refuse_unprunable(model)
    if data is None:
        raise UsageError("gates are learned on labelled training data and there is none: give a task")
    target_model = copy.deepcopy(model)
    sites, targets = _targets(target_model, config)
    training = config.training()
    found = replace(resolve(data, target_model, processor, training), validation=None)
    lagrangian = Lagrangian(Gates(sites, config.seed), targets)
    with attached(target_model, lagrangian.gates, sites):
        # As a child of the model they are trained, moved and put into evaluation mode along with it.
        target_model.add_module(CHILD, lagrangian)
        try:
            result = fit(
                target_model,
                found,
                training,
                output_dir=None,
                resume=False,
                description="gates",
                trainer_class=_Trainer,
                lagrangian=lagrangian,
                settings=config,
            )
        finally:
            delattr(target_model, CHILD)
    closed = closed_units(lagrangian.gates, sites, config.multiple_of)
    left = [torch.tensor(float(site.units - len(units))) for site, units in zip(sites, closed, strict=True)]
    reached = {target.name: float(target.gone(left)) for target in targets}
    _check_reached(targets, reached, config)
    before = model.num_parameters()
    fold(lagrangian.gates, sites, closed)
    for site, units in zip(sites, closed, strict=True):
        if units:
            remove_checked(target_model, site, units)
    record(
        target_model,
        {"l0": config.model_dump(mode="json")},
        before,
        units_removed={site.name: len(units) for site, units in zip(sites, closed, strict=True) if units},
        shares_removed=reached,
        training=summary(result),
    )
    logger.info("gates closed on %s", ", ".join(f"{share:.1%} of {name}" for name, share in reached.items()))
    return target_model.train(model.training)


def _targets(model: PreTrainedModel, config: L0Pruning) -> tuple[list[PruningSite], list[Target]]:
    """The sites that get gates, and the targets.

    Raises:
        UsageError: a target that cannot be reached with one unit left in every site.
    """
    layers = adapter(model).layers
    kinds = {
        "heads": head_sites(layers) if config.heads or config.ratio else [],
        "ffn": ffn_sites(layers) if config.ffn or config.ratio else [],
    }
    sites = [site for kind in kinds.values() for site in kind]
    shares: Mapping[str, tuple[float, list[PruningSite]]] = (
        {"heads and neurons": (config.ratio, sites)}
        if config.ratio
        else {name: (getattr(config, name), found) for name, found in kinds.items() if found}
    )
    index = {site.name: position for position, site in enumerate(sites)}
    targets = []
    for name, (share, of) in shares.items():
        cost = tuple(site.parameters_of([0]) for site in of)
        total = sum(each * site.units for each, site in zip(cost, of, strict=True))
        fewest = sum(each * _rounded(1, site, config.multiple_of) for each, site in zip(cost, of, strict=True))
        if share > (most := 1 - fewest / total):
            raise UsageError(
                f"a share of {share:g} of {name} cannot go: every layer keeps something, so at most {most:.4g} can"
            )
        targets.append(Target(name, share, tuple(index[site.name] for site in of), cost, total))
    return sites, targets


def _rounded(units: int, site: PruningSite, multiple_of: int) -> int:
    """A number of units that stay, rounded up where the site's width is a multiple."""
    step = multiple_of if site.kind == "neuron" and site.units >= 2 * multiple_of else 1
    return min(site.units, -(-max(1, units) // step) * step)


@torch.no_grad()
def closed_units(gates: Gates, sites: Sequence[PruningSite], multiple_of: int) -> list[list[int]]:
    """The units whose gates are closed: as many as are expected to be, the most closed first; one stays anywhere."""
    found = []
    for site, opened, log_alpha in zip(sites, gates.open_probability(), gates.log_alpha, strict=True):
        left = _rounded(round(float(opened.sum())), site, multiple_of)
        found.append(sorted(log_alpha.argsort(stable=True)[: site.units - left].tolist()))
    return found


@torch.no_grad()
def fold(gates: Gates, sites: Sequence[PruningSite], closed: Sequence[Sequence[int]]) -> None:
    """Multiply the fixed values of the gates, 0 where a unit is closed, into the weights that they gate."""
    gates.eval().draw()
    for site, value_U, units in zip(sites, gates.values, closed, strict=True):
        value_U = value_U.clone()
        value_U[list(units)] = 0
        for part in site.gates:
            weight: Tensor = part.module.weight  # type: ignore[assignment]
            value = value_U[part.unit_of_features()].to(weight)
            weight.mul_(value[:, None] if isinstance(part.module, Conv1D) else value)


def _check_reached(targets: Sequence[Target], reached: Mapping[str, float], config: L0Pruning) -> None:
    for target in targets:
        short = target.share - reached[target.name]
        if short > config.tolerance:
            raise GateMissed(
                f"the gates closed on {reached[target.name]:.1%} of {target.name}, {100 * short:.1f} points less than "
                f"the {target.share:.1%} asked for. Train longer (epochs), raise gate_learning_rate, or let the target "
                "rise faster (rise)"
            )
