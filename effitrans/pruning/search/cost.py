"""What structures cost: a table measured on structures that were really built.

For every kind of place and every width a model is built in which all places of that kind have that width, and
timed in turn with the original on the same batches, so that drift of the machine cancels in the ratio. The cost
of a mixed structure is estimated from these by addition,

    R(structure) = R(full) - sum over places of (R(full) - R(all of its kind at its width)) / places of its kind

which is exact for parameters and bytes up to whole layers, for latency as good as layers run one after the other,
and for memory, whose activations have their peak in one layer, a first guess. The structure that is chosen is built
and measured itself, its latency in fresh processes.
"""

import copy
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.errors import UsageError
from effitrans.pruning.search.memory import peak_memory
from effitrans.pruning.search.space import Space, Structure

PROCESSES = 3
"""Processes over which the latency of a whole structure is the median."""

Costs = dict[str, float]
"""Cost -> value as a share of the original model's."""


def counted(model: PreTrainedModel) -> dict[str, float]:
    """Parameters and bytes of weights, shared ones once."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}.values()
    return {
        "parameters": float(model.num_parameters()),
        "bytes": float(sum(tensor.numel() * tensor.element_size() for tensor in tensors)),
    }


def counted_for(
    names: Sequence[str], model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]
) -> dict[str, float]:
    """As `counted`, with the memory where it is among the names; bytes."""
    found = counted(model)
    return found | {"memory": peak_memory(model.eval(), batches, found["bytes"])} if "memory" in names else found


def measured_ratio(
    model: PreTrainedModel, original: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], repeats: int
) -> float:
    """Latency of a model as a share of the original's, the two timed in turn on as many threads as `evaluate` uses; the
    median over rounds.
    """
    from effitrans.evaluation import Cost
    from effitrans.evaluation.cost import usable_threads
    from effitrans.evaluation.timing import Effort, Runner, interleave, pinned_threads

    runners = {
        name: Runner(lambda batch, timed=timed: timed(**batch), batches)
        for name, timed in (("model", model.eval()), ("original", original.eval()))
    }
    device = original.device

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    with torch.inference_mode(), pinned_threads(usable_threads(Cost().threads)):
        samples = interleave(runners, Effort(warmup=1, min_repeats=repeats, min_seconds=0.0), synchronize=synchronize)
    ratios = torch.tensor(samples["model"].sum(1) / samples["original"].sum(1))
    return float(ratios.median())


def fresh_ratio(
    model: PreTrainedModel, original: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]], repeats: int
) -> float:
    """As `measured_ratio`, in processes that are started for it, as those of `evaluate` are; the median over them.

    What a process allocated before, and where, decides what memory is handed back and fetched anew between layers, so
    that the same two models differ by several per cent more or less from process to process.

    Raises:
        UsageError: a process ended early, or could not time the two.
    """
    from effitrans import checkpoint
    from effitrans.evaluation import Cost
    from effitrans.evaluation.cost import usable_threads
    from effitrans.evaluation.fresh import ProcessFailed, Request, Saved, measure_fresh
    from effitrans.evaluation.latency import BASELINE, MODEL, EvaluatedModel
    from effitrans.evaluation.record import Latency

    size = len(next(iter(batches[0].values())))
    cost = Cost(batches=(size,), lengths=("data",), min_repeats=repeats, min_seconds=0.0)
    candidate = copy.deepcopy(model)
    checkpoint.record(candidate, "prune", {})  # without which it could not be loaded
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        subjects = {}
        for role, timed in ((MODEL, candidate), (BASELINE, original)):
            timed.save_pretrained(folder := Path(temporary) / role)
            subjects[role] = EvaluatedModel(role, timed, None, folder)
        request = Request(
            auto_class=None,
            threads=usable_threads(cost.threads),
            models={role: Saved.of(subject) for role, subject in subjects.items()},
            cost=cost,
            timed=True,
            compiled=frozenset(),
            generates=False,
        )
        for _ in range(PROCESSES):
            try:
                rows = [row for row in measure_fresh(request, subjects, _Given(batches)) if isinstance(row, Latency)]
            except ProcessFailed as failed:
                raise UsageError(
                    f"the latency of a structure could not be measured in a new process: {failed}"
                ) from failed
            for row in rows:
                if row.ratio_to_baseline is None:
                    raise UsageError(
                        f"the latency of a structure could not be measured: {row.error}. Use a smaller batch"
                    )
                ratios.append(row.ratio_to_baseline)
    return statistics.median(ratios)


@dataclass(frozen=True)
class _Given:
    """Batches that are there already, as the harness asks for them."""

    known: Sequence[Mapping[str, Tensor]]

    def batches(self, model: PreTrainedModel, processor: Any, batch_size: int, most: int) -> list[dict[str, Tensor]]:
        return [dict(batch) for batch in self.known if len(next(iter(batch.values()))) == batch_size]


class Table:
    """Costs of every kind of place at every width, each as a share of the original."""

    def __init__(self, space: Space, values: Mapping[str, Mapping[str, Costs]]) -> None:
        self.space = space
        self.values = values
        self.factor: Costs = {}
        """Measured over estimated, where the sum of parts was found to be off."""
        self._saved: dict[tuple[str, int, str], float] = {}

    @classmethod
    def measure(
        cls,
        space: Space,
        names: Sequence[str],
        batches: Sequence[Mapping[str, Tensor]],
        repeats: int,
        known: dict[str, Any],
        done: Callable[[], None] = lambda: None,
    ) -> "Table":
        """Build and measure what `known` does not hold yet; `known` is filled, and `done` called after each."""
        original = counted_for(names, space.model, batches)
        for kind, indices in space.kinds.items():
            row = known.setdefault(kind, {})
            place = space.places[indices[0]]
            for choice, width in enumerate(place.widths):
                if str(width) not in row:
                    structure = tuple(choice if index in indices else full for index, full in enumerate(space.full))
                    built = space.build(structure)
                    costs = {name: value / original[name] for name, value in counted_for(names, built, batches).items()}
                    if "latency" in names:
                        same = structure == space.full
                        costs["latency"] = 1.0 if same else measured_ratio(built, space.model, batches, repeats)
                    row[str(width)] = {name: costs[name] for name in names}
                done()
        return cls(space, known)

    def of(self, structure: Structure) -> Costs:
        """Estimated costs of a structure."""
        names = next(iter(next(iter(self.values.values())).values()))
        return {name: self._of(structure, name) * self.factor.get(name, 1.0) for name in names}

    def saved(self, index: int, choice: int, name: str) -> float:
        """What a place at a choice saves of the whole original cost; never less at a narrower width."""
        place = self.space.places[index]
        key = (place.kind, choice, name)
        if key not in self._saved:
            row = self.values[place.kind]
            most = max(1.0 - row[str(width)][name] for width in place.widths[choice:])
            self._saved[key] = most / len(self.space.kinds[place.kind])
        return self._saved[key]

    def _of(self, structure: Structure, name: str) -> float:
        return 1.0 - sum(self.saved(index, choice, name) for index, choice in enumerate(structure))
