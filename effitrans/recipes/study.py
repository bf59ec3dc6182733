"""A study: the same job done by several variants, each with several seeds, on one page with intervals over the seeds.

    name: distillation
    task: sst2
    model: minilm
    common:                      # run once; every variant starts from the result
      - train: {name: teacher, epochs: 3}
    variants:                    # each the steps of a recipe, run with every seed
      no teacher: [{distill: {student: layers=3, alpha: 0}}]
      response: [{distill: {student: layers=3}}]
    baseline: no teacher         # what the others are compared with
    seeds: [0, 1, 2]

DIR/study.yaml                 the study
DIR/common/                    the run of the common steps
DIR/runs/VARIANT-SEED/         the run of one variant while it is in progress
DIR/records/VARIANT-SEED.json  the record of each result
DIR/report.html, report.md     drawn from the records
"""

import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pydantic

from effitrans.config import Config, Seed, Threads
from effitrans.errors import UsageError, unknown_name
from effitrans.evaluation import Cost, Record
from effitrans.evaluation.record import StudyPlace
from effitrans.files import claimed, sha256_json, write_text
from effitrans.processes import is_main_process, wait_for_everyone
from effitrans.recipes.check import check_steps, steps_of
from effitrans.recipes.library import find_recipe
from effitrans.recipes.runner import run_checked
from effitrans.recipes.schema import Evaluation, Recipe, load_recipe, read_file
from effitrans.tasks import load_task
from effitrans.yaml_files import dump_yaml

logger = logging.getLogger(__name__)


class Variant(Config):
    """One of the ways that are compared."""

    steps: tuple[dict[str, Any], ...] = pydantic.Field(min_length=1)
    """Steps as in a recipe."""
    model: str | dict[str, Any] | None = None
    """What it starts from (default: the result of the common steps, or the study's model)."""


class Study(Config):
    """A study whose every variant was checked."""

    name: str
    """Name of the study, used in the report."""
    description: str = ""
    """What it asks, in one or two sentences."""
    task: str | dict[str, Any]
    """Name of a built-in task, a task YAML, or the task itself."""
    model: str | dict[str, Any]
    """What the common steps start from."""
    common: tuple[dict[str, Any], ...] = ()
    """Steps that are run once, with the first seed."""
    variants: dict[str, Variant] = pydantic.Field(min_length=1)
    """Name -> its steps, as a list or as `{steps: ..., model: ...}`."""
    baseline: str | None = None
    """Variant that the others are compared with (default: none)."""
    seeds: tuple[Seed, ...] = pydantic.Field(default=(0, 1, 2), min_length=1)
    """Seeds of every variant."""
    threads: Threads | None = None
    """CPU threads. Default: torch's."""
    evaluate: Evaluation = Evaluation()
    """How the results are scored."""
    keep_models: bool = False
    """Keep the models of all variants, and not their records alone."""

    @pydantic.field_validator("variants", mode="before")
    @classmethod
    def _lists_are_steps(cls, variants: Any) -> Any:
        if not isinstance(variants, Mapping):
            raise UsageError(f"variants: expected names with steps, received {variants!r}")
        return {str(k): {"steps": v} if isinstance(v, list | tuple) else v for k, v in variants.items()}

    @pydantic.model_validator(mode="after")
    def _check(self) -> Self:
        if self.baseline is not None and self.baseline not in self.variants:
            raise unknown_name("baseline of the study", self.baseline, self.variants)
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds: each may stand once, received {list(self.seeds)}")
        files = [_file_name(name) for name in self.variants]
        if twice := sorted({name for name in files if files.count(name) > 1}):
            raise UsageError(f"variants: several would be stored as {', '.join(twice)}: choose names that differ more")
        # Every step of every variant is checked before anything runs.
        self.preparation()
        list(self.runs(Path()))
        return self

    def preparation(self) -> Recipe | None:
        """The recipe of the common steps; None where there are none."""
        if not self.common:
            return None
        return self._recipe(self.name, self.model, self.common, self.seeds[0], cost=None)

    def runs(self, common_model: Path | None) -> Iterator["Run"]:
        """Every variant with every seed, seed by seed, so that an unfinished study has seen all variants."""
        for seed in self.seeds:
            for name, variant in self.variants.items():
                model = variant.model or (str(common_model) if common_model and self.common else self.model)
                recipe = self._recipe(name, model, variant.steps, seed, self.evaluate.cost)
                yield Run(name, seed, recipe)

    def _recipe(self, name: str, model: Any, steps: tuple[dict[str, Any], ...], seed: int, cost: Cost | None) -> Recipe:
        evaluation = self.evaluate.model_copy(
            update={"cost": cost, "optimize": self.evaluate.optimize if cost else None}
        )
        return load_recipe(
            {
                "name": name,
                "task": self.task,
                "model": model,
                "steps": [dict(step) for step in steps],
                "seed": seed,
                "threads": self.threads,
                "evaluate": evaluation.model_dump(mode="json"),
            }
        )


@dataclass(frozen=True)
class Run:
    """One variant with one seed."""

    variant: str
    seed: int
    recipe: Recipe

    @property
    def label(self) -> str:
        return f"{_file_name(self.variant)}-{self.seed}"


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()


def load_study(source: str | Path | Mapping[str, Any]) -> Study:
    """Read and check a study.

    Args:
        source: a file, the name of a study that comes with effitrans, or the mapping itself.

    Raises:
        UsageError: no such study, not YAML, an unknown key or a bad value, also within the steps of a variant.
    """
    values = dict(source) if isinstance(source, Mapping) else read_file(find_recipe(source, "studies"))
    return Study.parse(values, "study")


def run_study(
    study: Study | str | Path | Mapping[str, Any],
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> list[Record]:
    """Run what is not finished of a study, and draw its page.

    Args:
        study: a study, its file, its name or its mapping.
        output: the output folder (layout in the module's docstring).
        resume: go on in a folder that an earlier run left. Variants and seeds may have been added to the study;
            what has a record is not run again.
        overwrite: replace the folder.

    Returns:
        A record per variant and seed.

    Raises:
        UsageError: a bad study; what `check_study` refuses; a folder in the way; `resume` where a variant has changed
            since.
    """
    study = study if isinstance(study, Study) else load_study(study)
    with claimed(output, overwrite or resume) as output:
        check_study(study, output)
        return _run_claimed(study, output, resume)


def check_study(study: Study, output: Path | None = None) -> None:
    """Refuse a study of which a variant cannot come to its end; see `check_recipe`.

    Args:
        study: the study.
        output: the folder that it will fill; None leaves the space on the disk unchecked.

    Raises:
        UsageError: with the name of the variant.
    """
    task, split = load_task(study.task), study.evaluate.split
    preparation, common = study.preparation(), None
    if preparation is not None:
        common = check_steps(task, study.model, steps_of(preparation), split=split, output=output)
    for one in study.runs(None):
        if one.seed == study.seeds[0]:
            model = study.variants[one.variant].model or (study.model if preparation is None else common)
            try:
                check_steps(task, model, steps_of(one.recipe), split=split, output=output)
            except UsageError as error:
                raise UsageError(f"variant {one.variant!r}: {error}") from error


def _run_claimed(study: Study, output: Path, resume: bool) -> list[Record]:
    if is_main_process():
        if not resume:
            shutil.rmtree(output, ignore_errors=True)
        write_text(output / "study.yaml", dump_yaml(study.model_dump(mode="json")))
    wait_for_everyone()
    preparation = study.preparation()
    common = output / "common" / "model"
    if preparation is not None:
        run_checked(preparation, output / "common", resume=resume)
    runs = list(study.runs(common))
    for number, one in enumerate(runs, 1):
        logger.info("run %d/%d: %s, seed %d", number, len(runs), one.variant, one.seed)
        _ensure(study, one, output)
    records = [Record.load(_record_file(output, one)) for one in runs]
    if is_main_process():
        from effitrans.reporting import report

        report(records, output / "report.html", title=study.name)
    wait_for_everyone()
    return records


def _record_file(output: Path, one: Run) -> Path:
    return output / "records" / f"{one.label}.json"


def _ensure(study: Study, one: Run, output: Path) -> None:
    """Run one variant with one seed unless its record is there; keep the record, and the model on request."""
    file, folder = _record_file(output, one), output / "runs" / one.label
    # What it starts from, and not where that lies: the folder of the study may have been moved since.
    origin = study.variants[one.variant].model or [study.model, study.common]
    key = sha256_json({**one.recipe.plain(), "model": origin})
    if file.is_file():
        if Record.load(file).provenance.recipe_sha256 != key:
            raise UsageError(
                f"cannot resume in {output}: {one.variant!r} was run with other settings. Choose another folder, or "
                f"remove {file} to have it run again."
            )
        return
    record = run_checked(one.recipe, folder, resume=folder.exists()).records[-1]
    if is_main_process():
        _keep(study, one, record, key, file)
        if not study.keep_models:
            shutil.rmtree(folder)
    wait_for_everyone()


def _keep(study: Study, one: Run, record: Record, key: str, file: Path) -> None:
    """Store the record of a finished run under the name of its variant."""
    place = StudyPlace(name=study.name, variant=one.variant, baseline=study.baseline, seed=one.seed)
    provenance = record.provenance.model_copy(update={"recipe_sha256": key})
    record.model_copy(update={"model": one.variant, "study": place, "step": None, "provenance": provenance}).save(file)
