"""`search`: what `prune` runs for a `Search`."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans import __version__
from effitrans.architectures import adapter
from effitrans.checkpoint.accepting import evaluation_mode, takes_models
from effitrans.errors import UsageError
from effitrans.files import sha256_json, write_text
from effitrans.pruning.accepting import refuse_unprunable
from effitrans.pruning.calibration import Batches, criterion_batches
from effitrans.pruning.config import Pruning
from effitrans.pruning.importance import IMPORTANCE
from effitrans.pruning.importance.gates import loss_of
from effitrans.pruning.recording import logger, record
from effitrans.pruning.scores import measured
from effitrans.pruning.search.config import LIMITS, Search
from effitrans.pruning.search.cost import Costs, Table, counted_for, fresh_ratio
from effitrans.pruning.search.evolution import Evolution, pareto
from effitrans.pruning.search.sampling import require_optuna, run
from effitrans.pruning.search.space import Space, Structure
from effitrans.pruning.units.heads import head_sites
from effitrans.pruning.units.neurons import ffn_sites

CORRECTIONS = 4
"""Times that estimates are corrected by a measurement before the best result so far is taken."""

MEASURED = ("latency", "memory")
"""Costs that parts do not simply add up to."""


Found = tuple[Structure, PreTrainedModel, Table, Costs, Costs]
"""A structure, the model built with it, the table, its measured costs, and the limits."""


@takes_models("model")
def search(
    model: PreTrainedModel,
    config: Search,
    data: Any = None,
    *,
    processor: Any = None,
    storage: str | Path | None = None,
    inplace: bool = False,
) -> PreTrainedModel:
    """Find the structure of least loss inside a budget and cut it out of a copy of the model.

    Args:
        model: a floating-point model of a family with an adapter; it is left as it is.
        config: budget and effort.
        data: calibration data with labels, as for `prune`.
        processor: as for `prune`.
        storage: JSON file that keeps measured costs and losses; an interrupted search resumes from it, with the
            result it would have had (but for what is measured after the file's last entry).
        inplace: refused.

    Returns:
        The pruned model. The last entry of its history holds the costs, the Pareto front of all structures that
        were scored, the trajectory of the best loss, and the widths layer by layer.

    Raises:
        UsageError: a budget that cannot be met, with the smallest value that can; as `prune`.
    """
    if inplace:
        raise UsageError("a search returns a copy, as it builds many from the model: leave inplace out")
    refuse_unprunable(model)
    require_optuna(config.sampler)
    if data is None:
        raise UsageError("a search scores structures on labelled calibration data and got none: give a task")
    batches, held_out = _batches(model, config, data, processor)
    job = _Job(model, config, batches, held_out, Path(storage) if storage is not None else None)
    with evaluation_mode(model), _progress(job.total) as tick:
        job.tick = tick
        table = job.table()
        if config.min_quality is not None:
            return job.finish(*job.fastest(table, data, processor))
        return job.finish(*job.inside(table, job.limits()))


def _batches(model: PreTrainedModel, config: Search, data: Any, processor: Any) -> tuple[Batches, Batches]:
    """Batches for importance, and others for the loss of structures."""
    wanted = Pruning(
        heads=0.5,
        # Any criterion with data makes the batches; which one measures does not matter here.
        method="taylor",
        calibration_examples=config.calibration_examples + config.scored_examples,
        batch_size=config.batch_size,
        seed=config.seed,
    )
    batches = list(criterion_batches(model, wanted, data, processor))
    wanted_last = max(1, -(-config.scored_examples // config.batch_size))
    last = min(wanted_last, max(1, len(batches) // 2))
    if len(batches) == 1:
        logger.warning("the calibration data is one batch: importance and losses are measured on the same examples")
        return batches, batches
    return batches[:-last], batches[-last:]


class _Job:
    """One search: what was measured, kept in the storage, and what is left to do."""

    def __init__(
        self, model: PreTrainedModel, config: Search, batches: Batches, held_out: Batches, storage: Path | None
    ) -> None:
        self.model, self.config, self.held_out, self.storage = model, config, held_out, storage
        layers = adapter(model).layers
        sites = [*head_sites(layers), *ffn_sites(layers)]
        scores = measured(config.method, batches, config.seed)(model, sites)
        self.space = Space(
            model,
            {site.name: score for site, score in zip(sites, scores, strict=True)},
            comparable=IMPORTANCE[config.method].additive,
            widths=config.widths,
            multiple_of=config.multiple_of,
            whole=config.whole,
        )
        asked = {
            "latency": config.latency is not None or config.min_quality is not None,
            "memory": config.memory is not None,
        }
        self.names = tuple(name for name in LIMITS if asked.get(name, True))
        self.timed = _timed_batches(model, config, held_out) if any(asked.values()) else []
        with evaluation_mode(model):
            self.original = counted_for(self.names, model, self.timed)
        self.tick = lambda: None
        self.kept: dict[str, Any] = self._load()
        self.trajectory: list[float] = []

    @property
    def total(self) -> int:
        """Steps of the progress bar."""
        return sum(len(self.space.places[i[0]].widths) for i in self.space.kinds.values()) + self.config.evaluations

    def limits(self) -> Costs:
        """The limits as shares of the original.

        Raises:
            UsageError: a limit that is none.
        """
        limits: Costs = {}
        for name in LIMITS:
            value = getattr(self.config, name)
            if value is None:
                continue
            limits[name] = value if name == "latency" or value <= 1 else value / self.original[name]
            if limits[name] >= 1:
                raise UsageError(f"{name}={value:g} is no limit: the model has {self.original[name]:g}. Ask for less")
        return limits

    def _key(self) -> str:
        places = [(place.name, place.widths, place.order) for place in self.space.places]
        shapes = [{name: list(tensor.shape) for name, tensor in batch.items()} for batch in self.held_out]
        settings = self.config.model_dump(
            mode="json", exclude={*LIMITS, "min_quality", "sampler", "evaluations", "population"}
        )
        return sha256_json([__version__, settings, places, shapes, self.timed and self.names])

    def _load(self) -> dict[str, Any]:
        empty: dict[str, Any] = {"key": self._key(), "costs": {}, "losses": {}, "measured": {}}
        if self.storage is None or not self.storage.is_file():
            return empty
        try:
            kept = json.loads(self.storage.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            kept = None
        if not isinstance(kept, dict) or kept.get("key") != empty["key"]:
            raise UsageError(
                f"{self.storage} holds the search of another model, data set or setting: name another file, or "
                "delete it"
            )
        return empty | kept

    def _save(self) -> None:
        self.tick()
        self._store()

    def _store(self) -> None:
        if self.storage is not None:
            write_text(self.storage, json.dumps(self.kept))

    def table(self) -> Table:
        """The costs of all widths, measured where the storage does not hold them."""
        logger.info("measuring the costs of %d kinds of places", len(self.space.kinds))
        return Table.measure(self.space, self.names, self.timed, self.config.repeats, self.kept["costs"], self._save)

    @torch.no_grad()
    def loss(self, structure: Structure) -> float:
        """Mean loss of a structure on the calibration batches that importance did not see."""
        key = _key_of(structure)
        losses = self.kept["losses"]
        if key not in losses:
            built = self.space.build(structure).eval()
            total = sum(float(loss_of(built, batch)) * len(next(iter(batch.values()))) for batch in self.held_out)
            losses[key] = total / sum(len(next(iter(batch.values()))) for batch in self.held_out)
            self._save()
        self.trajectory.append(min([losses[key], *self.trajectory[-1:]]))
        return losses[key]

    def inside(self, table: Table, limits: Costs) -> Found:
        """The best structure whose measured costs are inside the limits."""
        config = self.config
        measured = [name for name in MEASURED if name in limits]
        if measured:
            self._calibrate(table, limits, measured)
        found: tuple[Structure, PreTrainedModel, Costs] | None = None
        attempts = CORRECTIONS if measured else 1
        later = max(config.population, config.evaluations // 8)
        for attempt in range(attempts):
            evaluations = later if attempt else max(config.population, config.evaluations - (attempts - 1) * later)
            structure = self._best(table, limits, evaluations, attempt)
            built = self.space.build(structure)
            costs = self._measured(structure, built)
            logger.info("structure with loss %.4f: %s", self.loss(structure), _shown(costs))
            if all(costs[name] <= most * (1 + self._slack(name)) for name, most in limits.items()):
                if found is None or self.loss(structure) < self.loss(found[0]):
                    found = (structure, built, costs)
                if not measured or any(costs[name] >= limits[name] * (1 - config.tolerance) for name in limits):
                    # It fills the budget, which says more than a loss on a few examples: the search is over.
                    found = (structure, built, costs)
                    break
            self._correct(table, structure, costs, measured)
        if found is None:
            raise UsageError(
                f"no structure was measured inside {_shown(limits)}; the last had {_shown(costs)}. Timing on this "
                "machine may be noisy: raise tolerance or repeats, or the limit"
            )
        return found[0], found[1], table, found[2], limits

    def _calibrate(self, table: Table, limits: Costs, measured: list[str]) -> None:
        """Correct the table by structures of about the cost asked for, before any is scored.

        The parts were measured one kind at a time. Together they save less: what is paid once however many parts are
        narrow (memory that is handed back and fetched anew, say) was counted as saved with each of them.
        """
        for _ in range(CORRECTIONS):
            evolution = Evolution(self.space, table, limits, self.loss, population=self.config.population, seed=0)
            structure = evolution.fitted(self.space.full)
            estimated, costs = table.of(structure), self._measured(structure, self.space.build(structure))
            self._correct(table, structure, costs, measured)
            if all(abs(costs[name] / estimated[name] - 1) <= self.config.tolerance for name in measured):
                return

    @staticmethod
    def _correct(table: Table, structure: Structure, costs: Costs, measured: list[str]) -> None:
        estimated = table.of(structure)
        for name in measured:
            table.factor[name] = table.factor.get(name, 1.0) * costs[name] / estimated[name]

    def _best(self, table: Table, limits: Costs, evaluations: int, attempt: int = 0) -> Structure:
        """The best structure inside limits by estimate, among so many."""
        config = self.config
        seed = config.seed + attempt
        evolution = Evolution(self.space, table, limits, self.loss, population=config.population, seed=seed)
        journal = None if self.storage is None else self.storage.with_suffix(f".optuna-{attempt}.log")
        return run(evolution, config.sampler, evaluations, journal)

    def _slack(self, name: str) -> float:
        return self.config.tolerance if name in MEASURED else 1e-9

    def _measured(self, structure: Structure, built: PreTrainedModel) -> Costs:
        """What a structure costs as a whole."""
        key, known = _key_of(structure), self.kept["measured"]
        if key not in known:
            found = counted_for(self.names, built, self.timed)
            known[key] = {name: value / self.original[name] for name, value in found.items()}
            if "latency" in self.names:
                known[key]["latency"] = fresh_ratio(built, self.model, self.timed, 2 * self.config.repeats)
            self._store()
        return known[key]

    def fastest(
        self, table: Table, data: Any, processor: Any
    ) -> tuple[Structure, PreTrainedModel, Table, Costs, Costs]:
        """The fastest structure that keeps the quality asked for, by bisection over the latency."""
        assert self.config.min_quality is not None
        floor = self.config.min_quality * _quality(self.model, data, processor)
        least = Evolution(self.space, table, {}, self.loss, population=2, seed=0)
        low = table.of(least.narrowest())["latency"]
        high, best = 1.0, None
        rounds = 5
        for number in range(rounds):
            limit = (low + high) / 2
            evaluations = max(self.config.population, self.config.evaluations // rounds)
            structure = self._best(table, {"latency": limit}, evaluations, number)
            built = self.space.build(structure)
            quality = _quality(built, data, processor)
            logger.info("latency %.3f: quality %.4f, at least %.4f asked for", limit, quality, floor)
            if quality >= floor:
                best, high = (structure, built), limit
            else:
                low = limit
        if best is None:
            raise UsageError(
                f"no structure faster than {high:.3f} of the original keeps {self.config.min_quality:g} of its quality "
                "without recovery: set a latency and let the model recover, or lower min_quality"
            )
        return *best, table, self._measured(*best), {}

    def finish(
        self, structure: Structure, built: PreTrainedModel, table: Table, costs: Costs, limits: Costs
    ) -> PreTrainedModel:
        """Record what was found."""
        losses = {tuple(map(int, key.split(","))): loss for key, loss in self.kept["losses"].items()}
        cost = next(iter(limits), "latency")
        points = {known: (table.of(known)[cost], loss) for known, loss in losses.items()}
        front = [{cost: points[known][0], "loss": points[known][1]} for known in pareto(points)]
        record(
            built,
            {"search": self.config.model_dump(mode="json", exclude_none=True)},
            self.model.num_parameters(),
            costs=costs,
            estimated=table.of(structure),
            loss=losses[structure],
            structures=len(losses),
            widths=self.space.widths(structure),
            front=front,
            trajectory=self.trajectory,
        )
        logger.info("found %s with loss %.4f", _shown(costs), losses[structure])
        return built.train(self.model.training)


def _key_of(structure: Structure) -> str:
    return ",".join(map(str, structure))


def _timed_batches(model: PreTrainedModel, config: Search, batches: Batches) -> list[Mapping[str, Tensor]]:
    """What is timed: one batch of the shape asked for, made of real tokens, or the data's own batches.

    Raises:
        UsageError: more tokens than the model takes; batches of another size than asked for.
    """
    from effitrans.evaluation import shapes

    inputs = [shapes.inference_inputs(batch, model) for batch in batches]
    if config.length == "data" or not shapes.can_have_length(inputs[0]):
        return [_resized(batch, config.batch) for batch in inputs[:4]]
    limit = shapes.most_positions(model)
    if limit is not None and config.length > limit:
        raise UsageError(f"length={config.length}: {type(model).__name__} takes at most {limit} tokens")
    return [shapes.fixed_batch(inputs, config.batch, config.length)]


def _resized(batch: Mapping[str, Tensor], size: int) -> dict[str, Tensor]:
    """A batch of `size` examples, repeated or cut."""
    return {
        name: tensor.repeat(-(-size // len(tensor)), *[1] * (tensor.dim() - 1))[:size] for name, tensor in batch.items()
    }


def _quality(model: PreTrainedModel, data: Any, processor: Any) -> float:
    """The first metric of the task on its validation split."""
    from effitrans.evaluation import evaluate
    from effitrans.tasks import load_task, names_task

    if not names_task(data):
        raise UsageError("min_quality is a share of the task's metric: give a task, or set a limit instead")
    task = load_task(data)
    if "validation" not in task.splits:
        raise UsageError(
            f"min_quality is measured on the validation split, and task {task.name!r} has none: set a limit"
        )
    record = evaluate(model, task, split="validation", processor=processor, cost=None)
    return record.quality[task.metrics[0]].value


def _shown(costs: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in costs.items())


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on stderr where that is a terminal; yields what advances it."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc="search", file=sys.stderr, leave=False) as bar:
        yield bar.update
