"""A model inside a latency budget: the searched structure against a uniform one of the same latency.

    python benchmarks/latency_budget.py runs/sst2/steps/01-teacher sst2 --latency 0.5 --output reports/pruning/latency
    python benchmarks/latency_budget.py MODEL TASK --output DIR --seeds 0 --method fisher

1. Search: `prune(model, Search(latency=...))`; then it is timed beside the original in a fresh process, as everything
   below. Wants a quiet machine.
2. Uniform: the same share of heads and of neurons in every layer, the least important by the same criterion on as many
   calibration examples. The share is the smallest at which the model is no faster than the searched one, so that what
   is left of a difference in latency is in favour of uniform pruning.
3. Both recover under the original as their teacher, with every seed.

The records in `DIR/records` are those of one study, whose page is `DIR/report.html`; the models, and what the search
measured, are in `DIR/models`. What is there is not done again.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from effitrans import checkpoint
from effitrans.distillation import Distillation, distill
from effitrans.evaluation import Cost, Record, evaluate
from effitrans.evaluation.record import StudyPlace
from effitrans.pruning import IMPORTANCE, Importance, Pruning, Search, measure_importance, prune_units
from effitrans.pruning.search.search import search
from effitrans.reporting import report
from effitrans.tasks import Task, load_task
from effitrans.tasks.loading import Loaded, load_for_task

logger = logging.getLogger("effitrans.benchmarks")

STUDY = "latency-budget"
UNIFORM, SEARCHED = "uniform", "searched"
STEP = 1 / 100
"""Shares that are told apart."""


class Budget:
    """One model, task and budget; results go to a folder and are computed once."""

    def __init__(self, source: str, task: Task, search: Search, folder: Path) -> None:
        self.source, self.task, self.search, self.folder = source, task, search, folder
        self.original: Loaded = load_for_task(source, task)

    def model(self, name: str) -> Path:
        return self.folder / "models" / name

    def make(self) -> None:
        """The two pruned models, and their records before recovery."""
        self._once(SEARCHED, self._searched)
        target = self._scored(SEARCHED, f"{SEARCHED}, not recovered").cost.latency[0].ratio_to_baseline  # type: ignore[union-attr]
        assert target is not None
        self._once(UNIFORM, lambda: self._uniform(target))
        self._scored(UNIFORM, f"{UNIFORM}, not recovered")

    def recover(self, seeds: Sequence[int], settings: Distillation) -> None:
        """Both models, recovered with every seed."""
        for seed in seeds:
            for name in (UNIFORM, SEARCHED):
                file = self._file(name, seed)
                if file.is_file():
                    continue
                logger.info("recovering %s, seed %d", name, seed)
                pruned = load_for_task(self.model(name), self.task)
                config = settings.model_copy(update={"seed": seed})
                result = distill(pruned.model, self.original.model, self.task, config, processor=pruned.processor)
                record = evaluate(
                    result.model, self.task, processor=pruned.processor, baseline=self.source, cost=None, seed=seed
                )
                self._keep(record, name, seed)

    def draw(self) -> None:
        """The page of all records."""
        records = [Record.load(file) for file in sorted((self.folder / "records").glob("*.json"))]
        report(records, self.folder / "report.html", title=STUDY)

    def _once(self, name: str, make: Callable[[], PreTrainedModel]) -> None:
        if not self.model(name).is_dir():
            checkpoint.save(make(), self.model(name), self.original.processor)

    def _searched(self) -> PreTrainedModel:
        storage = self.folder / "models" / "search.json"
        return search(self.original.model, self.search, self.task, processor=self.original.processor, storage=storage)

    def _uniform(self, target: float) -> PreTrainedModel:
        names = ("method", "seed", *(("calibration_examples",) if IMPORTANCE[self.search.method].needs_data else ()))
        calibration = {name: getattr(self.search, name) for name in names}
        scores = measure_importance(
            self.original.model, Importance(**calibration), self.task, processor=self.original.processor
        )

        def kept(share: float) -> PreTrainedModel:
            return prune_units(
                self.original.model, Pruning(heads=1 - share, ffn=1 - share, **calibration), scores=scores
            )

        low, high = 0.0, 1.0
        while high - low > STEP:
            middle = (low + high) / 2
            tried = self.folder / "models" / "tried"
            checkpoint.save(kept(middle), tried, self.original.processor, overwrite=True)
            latency = self._evaluate(tried, limit=64).cost.latency[0].ratio_to_baseline  # type: ignore[union-attr]
            assert latency is not None
            logger.info("uniform with %.3f kept: latency %.3f of the original, searched %.3f", middle, latency, target)
            low, high = (middle, high) if latency < target else (low, middle)
        return kept(high)

    def _evaluate(self, model: Path, limit: int | None = None) -> Record:
        assert isinstance(self.search.length, int)
        cost = Cost(
            batches=(self.search.batch,), lengths=(self.search.length,), max_seconds=15.0, contexts=(), flops=False
        )
        return evaluate(model, self.task, baseline=self.source, cost=cost, limit=limit)

    def _scored(self, name: str, variant: str) -> Record:
        file = self._file(variant, 0)
        if not file.is_file():
            self._keep(self._evaluate(self.model(name)), variant, 0)
        return Record.load(file)

    def _keep(self, record: Record, variant: str, seed: int) -> None:
        place = StudyPlace(name=STUDY, variant=variant, baseline=UNIFORM, seed=seed)
        file = self._file(variant, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        record.model_copy(update={"model": variant, "study": place}).save(file)

    def _file(self, variant: str, seed: int) -> Path:
        return self.folder / "records" / f"{variant.replace(', ', '-').replace(' ', '-')}-{seed}.json"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or hub name of a fine-tuned model")
    parser.add_argument("task", help="built-in task or task YAML")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--latency", type=float, default=0.5, help="share of the original's latency")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--method", default="taylor", help="importance criterion")
    parser.add_argument("--seeds", default="0,1,2", help="of recovery; nothing: none")
    parser.add_argument("--epochs", type=float, default=3, help="of recovery")
    parser.add_argument("--threads", type=int, default=2, help="of search and recovery")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    search = Search(latency=options.latency, batch=options.batch, length=options.length, method=options.method)
    budget = Budget(options.model, load_task(options.task), search, options.output)
    budget.make()
    recovery = Distillation(
        objective={"response": 1.0, "feature": {"weight": 0.1, "layer_mapping": "skip"}},
        epochs=options.epochs,
        learning_rate=1e-4,
        precision="bf16",
    )
    budget.recover([int(seed) for seed in options.seeds.split(",") if seed], recovery)
    budget.draw()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    main()
