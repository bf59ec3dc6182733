"""Run a recipe: every step leaves a checkpoint and a record, and an interrupted run can be resumed.

`run` fills a folder:

DIR/recipe.yaml            the resolved recipe
DIR/steps/NN-name/         the model after each step, with record.json and step.json (what it was made from)
DIR/work/NN-name/          training checkpoints of the step in progress, removed when it is done
DIR/model/                 the result, with its model card
DIR/records/NN-name.json   the records
DIR/report.html, report.md drawn from the records

`run_for_model` runs it in DIR.partial, and leaves the result alone: DIR is the model folder. Passes on the command line
are such recipes.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from effitrans import __version__, checkpoint
from effitrans.errors import UsageError
from effitrans.evaluation import Record, evaluate
from effitrans.evaluation.record import StepPlace
from effitrans.files import (
    claimed,
    output_directory,
    sha256_json,
    write_text,
)
from effitrans.processes import is_main_process, wait_for_everyone
from effitrans.recipes.check import check_recipe
from effitrans.recipes.schema import Recipe, Step, load_recipe
from effitrans.recipes.steps import VERBS, Context
from effitrans.tasks import load_task
from effitrans.tasks.loading import Loaded, is_saved, load_for_task
from effitrans.yaml_files import dump_yaml

logger = logging.getLogger(__name__)

ORIGINAL = "original"
"""Name of the step that scores the model as it came, where no step trains a teacher first."""


@dataclass(frozen=True)
class RunResult:
    """What a run left: its folder and one record per step, in order."""

    directory: Path
    records: list[Record]


def run(
    recipe: Recipe | str | Path | Mapping[str, Any],
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    rescore: bool = False,
    assignments: Iterable[str] = (),
) -> RunResult:
    """Run a recipe from its first unfinished step to the report.

    Args:
        recipe: a recipe, its file, its name or its mapping.
        output: the output folder (layout in the module's docstring).
        resume: resume an interrupted run of the same recipe. Finished steps are not run again; a training step
            continues from its last checkpoint.
        overwrite: replace the folder.
        rescore: score finished steps again; implies `resume`. A resumed run whose `evaluate` settings have changed
            does so by itself.
        assignments: `path=value` changes, see `load_recipe`.

    Raises:
        UsageError: a bad recipe; what `check_recipe` refuses; a folder in the way; `resume` with a recipe that has
            changed.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, assignments)
    resume = resume or rescore
    with claimed(output, overwrite or resume) as output:
        check_recipe(recipe, output)
        return run_checked(recipe, output, resume=resume, rescore=rescore)


def run_checked(recipe: Recipe, output: Path, *, resume: bool, rescore: bool = False) -> RunResult:
    """As `run`, without the check that comes first, in a folder that this process holds."""
    job = _Job(recipe, output)
    job.run(resume, rescore, output / "tensorboard")
    if is_main_process():
        job.finish()
    wait_for_everyone()
    return RunResult(output, job.records())


def run_for_model(recipe: Recipe, output: str | Path, *, resume: bool = False, overwrite: bool = False) -> Record:
    """Run a recipe for its last model, which is compared with the one that the recipe starts from.

    Args:
        recipe: a recipe. No step but the last is scored; one that trains its first model is compared with nothing.
        output: the model folder, with its record and card. `<output>.partial` holds the steps while they run.
        resume: resume an interrupted run of the same recipe.
        overwrite: replace the folder.

    Raises:
        UsageError: as `run`.
    """
    with claimed(output, overwrite) as output:
        check_recipe(recipe, output)
        job = _Job(recipe, output.with_name(f"{output.name}.partial"), result=output.name)
        job.run(resume, False, output.with_name(f"{output.name}.tensorboard"))
        record = Record.load(job.folder(job.last) / "record.json")
        if is_main_process():
            with output_directory(output, overwrite) as folder:
                job.copy_result(folder, record)
            shutil.rmtree(job.output)
        wait_for_everyone()
    return record


@dataclass
class _Plan:
    """One step with its place in the run."""

    number: int
    step: Step | None
    key: str

    @property
    def label(self) -> str:
        return f"{self.number:02d}-{self.step.name if self.step else ORIGINAL}"


class _Job:
    """The folders of one run and the steps that fill them."""

    def __init__(self, recipe: Recipe, output: Path, *, result: str | None = None) -> None:
        """With the name of a result, it alone is scored."""
        self.recipe = recipe
        self.output = output
        self.result = result
        self.task = load_task(recipe.fields.task)
        self.steps = self._plan()
        self.last = len(self.steps) - 1
        self.scoring = sha256_json(recipe.fields.evaluate.model_dump(mode="json"))
        self.baseline = next(
            (i for i, plan in enumerate(self.steps) if plan.step is None or plan.step.verb == "train"), None
        )

    def run(self, resume: bool, rescore: bool, tensorboard: Path) -> None:
        """Every step that is not done yet."""
        if is_main_process():
            self.prepare(resume)
        wait_for_everyone()
        if self.recipe.fields.threads:
            torch.set_num_threads(self.recipe.fields.threads)
        if any(getattr(step.config, "tracking", None) == "tensorboard" for step in self.recipe.steps):
            os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(tensorboard))
        for index in range(len(self.steps)):
            self.ensure(index, rescore)

    def _plan(self) -> list[_Plan]:
        """The steps, each with a key over everything that decides its result."""
        fields = self.recipe.fields
        steps: list[Step | None] = list(self.recipe.steps)
        if self.result is None and not any(step.verb == "train" for step in self.recipe.steps):
            steps.insert(0, None)
        base = {
            "effitrans": __version__,
            "task": self.task.model_dump(mode="json"),
            "data": self.task.fingerprint("train"),
            "model": fields.model,
            "seed": fields.seed,
        }
        first = 1 if steps[0] is not None else 0
        return [
            _Plan(first + i, step, sha256_json([base, [s.plain if s else ORIGINAL for s in steps[: i + 1]]]))
            for i, step in enumerate(steps)
        ]

    def folder(self, index: int) -> Path:
        return self.output / "steps" / self.steps[index].label

    def is_done(self, index: int) -> bool:
        return (self.folder(index) / "step.json").is_file()

    def _store(self, index: int, folder: Path) -> None:
        """Mark a step as done: what it was made from, and the settings that its record was scored with."""
        plan = self.steps[index]
        values = {"key": plan.key, "scored": self.scoring, "step": plan.step and plan.step.plain}
        write_text(folder / "step.json", json.dumps(values))

    def _stored(self, index: int) -> dict[str, Any]:
        return json.loads((self.folder(index) / "step.json").read_text())

    def prepare(self, resume: bool) -> None:
        """Make the folder anew, or refuse to resume in one that holds the steps of another recipe."""
        if not resume:
            shutil.rmtree(self.output, ignore_errors=True)
        for index, plan in enumerate(self.steps):
            if self.is_done(index) and self._stored(index)["key"] != plan.key:
                raise UsageError(
                    f"cannot resume in {self.output}: step {plan.label} was made from another recipe, data set or "
                    "version of effitrans. Run without --resume into another folder, or with --overwrite."
                )
        write_text(self.output / "recipe.yaml", dump_yaml(self.recipe.plain()))

    def load(self, index: int) -> Loaded:
        """The model that step `index` left, from disk, so that a resumed run sees just what an undisturbed one does."""
        return load_for_task(self.folder(index), self.task)

    def ensure(self, index: int, rescore: bool = False) -> None:
        """Run a step unless it is done: work, checkpoint, record, then one rename."""
        plan = self.steps[index]
        total = self.steps[-1].number
        if self.is_done(index):
            rescore = rescore or self._stored(index)["scored"] != self.scoring
            logger.info("step %d/%d %s: done before%s", plan.number, total, plan.label, ", scoring" if rescore else "")
            if rescore and is_main_process():
                self._score(index, self.folder(index)).save(self.folder(index) / "record.json")
                self._store(index, self.folder(index))
            return
        logger.info("step %d/%d %s", plan.number, total, plan.label)
        work = self.output / "work" / plan.label
        result = self._execute(index, work)
        if is_main_process():
            with output_directory(self.folder(index), overwrite=True) as folder:
                checkpoint.save(result.model, folder, result.processor, overwrite=True)
                if self.result is None or index == self.last:
                    self._score(index, folder).save(folder / "record.json")
                self._store(index, folder)
            shutil.rmtree(work, ignore_errors=True)
        wait_for_everyone()

    def _execute(self, index: int, work: Path) -> Loaded:
        step = self.steps[index].step
        current = self.load(index - 1) if index else self._start(new_head=step is not None and step.verb == "train")
        if step is None:
            return current
        work.mkdir(parents=True, exist_ok=True)
        context = Context(self.task, current, self._teacher(index), self.recipe.fields.seed, work, any(work.iterdir()))
        return VERBS[step.verb].run(step.config, context)

    def _start(self, new_head: bool = False) -> Loaded:
        """The model that the recipe starts from."""
        fields = self.recipe.fields
        return load_for_task(fields.model, self.task, seed=fields.seed, new_head=new_head)

    def _teacher(self, index: int) -> Callable[[], Loaded]:
        """Loads the model that students learn from: the baseline, else the one that the recipe starts from."""
        if self.baseline is not None and index > self.baseline:
            return partial(self.load, self.baseline)
        return self._start

    def _compared_with(self, index: int) -> Path | None:
        """The folder of the model that a step is compared with, if there is one."""
        if self.baseline is not None:
            return self.folder(self.baseline) if index > self.baseline else None
        model = self.recipe.fields.model
        return Path(checkpoint.require_model(model)) if is_saved(model) else None

    def _score(self, index: int, folder: Path) -> Record:
        """Score the model of a step as it lies on disk, against the baseline once there is one."""
        settings, plan = self.recipe.fields.evaluate, self.steps[index]
        record = evaluate(
            folder,
            self.task,
            split=settings.split,
            baseline=self._compared_with(index),
            cost=settings.cost,
            limit=settings.limit,
            optimize=settings.optimize,
            seed=self.recipe.fields.seed,
            name=self.result or plan.label,
        )
        name, verb = (plan.step.name, plan.step.verb) if plan.step else (ORIGINAL, ORIGINAL)
        provenance = record.provenance.model_copy(update={"recipe_sha256": self.recipe.sha256})
        place = StepPlace(index=plan.number, name=name, verb=verb) if self.result is None else None
        return record.model_copy(update={"step": place, "provenance": provenance})

    def records(self) -> list[Record]:
        """What the steps left, in order."""
        return [Record.load(self.folder(i) / "record.json") for i in range(len(self.steps))]

    def finish(self) -> None:
        """The result, its card, the records and the report, drawn from what the steps left."""
        from effitrans.reporting import report

        records = self.records()
        for plan, record in zip(self.steps, records, strict=True):
            record.save(self.output / "records" / f"{plan.label}.json")
        with output_directory(self.output / "model", overwrite=True) as folder:
            self.copy_result(folder, records[-1], records[self.baseline or 0])
        report([self.output], self.output / "report.html")
        shutil.rmtree(self.output / "work", ignore_errors=True)

    def copy_result(self, folder: Path, record: Record, baseline: Record | None = None) -> None:
        """The model of the last step, with its record and card."""
        from effitrans.reporting import write_card

        last = self.folder(self.last)
        shutil.copytree(last, folder, ignore=shutil.ignore_patterns("step.json"), dirs_exist_ok=True)
        write_card(folder, record, checkpoint.load_config(folder), baseline=baseline)
