"""A command that is one pass: load, run the step of that verb, save the model with its record and card."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effitrans.cli.app import err, out
from effitrans.errors import UsageError
from effitrans.files import claimed, output_directory
from effitrans.processes import is_main_process, wait_for_everyone


def run_steps(
    steps: list[tuple[str, Mapping[str, Any]]],
    *,
    model: str,
    task: str,
    output: Path,
    teacher: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    seed: int = 0,
    split: str = "test",
    optimize: bool | None = None,
    compare: bool = True,
    assignments: list[str] | None = None,
) -> None:
    """Run steps one after the other on one model, then score the result against the model it came from.

    Args:
        steps: (verb, fields) as a recipe holds them.
        model: the model to work on, as `load_for_task` takes it.
        seed: of new weights and of every step that gives none.
        output: the model folder to be made. While the steps run, checkpoints lie in `<output>.partial`.
        teacher: the model to learn from and to be compared with. Default: `model` as it came.
        compare: whether the result is compared with the teacher (not for a first training).
        assignments: `key=value` changes to the base Transformer (`--model base`).
    """
    from effitrans import checkpoint
    from effitrans.checkpoint import require_model
    from effitrans.evaluation import Cost, evaluate
    from effitrans.recipes.check import check_steps
    from effitrans.recipes.steps import VERBS, Context
    from effitrans.reporting import scorecard, write_card
    from effitrans.tasks import load_task
    from effitrans.tasks.loading import base_overrides, load_for_task, parse_assignment

    loaded_task = load_task(task)
    spec: str | dict[str, Any] = model
    overrides = base_overrides(model)
    if assignments:
        if overrides is None:
            raise UsageError("--set gives settings of the base Transformer; it goes with --model base")
        overrides.update(parse_assignment(text) for text in assignments)
    if overrides is not None:
        spec = {"base": overrides}
    configs = [(verb, VERBS[verb].parse(dict(values), verb).seeded(seed)) for verb, values in steps]
    source = teacher or (model if overrides is None else None)
    with claimed(output, overwrite) as output:
        named = [(f"{verb}: " if len(configs) > 1 else "", verb, config) for verb, config in configs]
        check_steps(loaded_task, spec, named, split=split, teacher=teacher, output=output)
        work = output.with_name(output.name + ".partial")
        if not resume and is_main_process():
            shutil.rmtree(work, ignore_errors=True)
        wait_for_everyone()
        if any(getattr(config, "tracking", None) == "tensorboard" for _, config in configs):
            os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(output.with_name(output.name + ".tensorboard")))
        current = load_for_task(spec, loaded_task, seed=seed, new_head=not compare)
        baseline = load_for_task(teacher or spec, loaded_task, seed=seed) if compare else None
        for number, (verb, config) in enumerate(configs):
            folder = work / f"{number}-{verb}"
            folder.mkdir(parents=True, exist_ok=True)
            context = Context(loaded_task, current, baseline or current, seed, folder, resume=any(folder.iterdir()))
            current = VERBS[verb].run(config, context)
        if not is_main_process():
            return
        with output_directory(output, overwrite) as temporary:
            checkpoint.save(current.model, temporary, current.processor, overwrite=True)
            record = evaluate(
                temporary,
                loaded_task,
                split=split,
                baseline=require_model(source) if compare and source else None,
                cost=Cost(),
                optimize=optimize,
                seed=seed,
                name=output.name,
            )
            record.save(temporary / "record.json")
            write_card(temporary, record, checkpoint.load_config(temporary))
        shutil.rmtree(work, ignore_errors=True)
    out.print(scorecard([record]))
    err.print(f"wrote {output}")


def print_json(value: Any) -> None:
    """One JSON document on stdout, and nothing else."""
    out.print(json.dumps(value, indent=2), markup=False)
