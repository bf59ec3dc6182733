"""Compare attention operators: the same model with each of them, trained alike, and what each costs by length.

A study (`study`) whose variants differ in nothing but a swap before training: one seed gives all of them the same
initial weights, what an operator itself learns aside, and the same order of data. The study's page says besides what
quality costs, and how time and memory grow. Beside it stands

DIR/lengths.json   time and memory of every operator at every length, and where the figures come from
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from effitrans.attention import AttentionOperator, OperatorConfig, Site, operator_config, swap_attention
from effitrans.errors import UsageError
from effitrans.evaluation import Record
from effitrans.evaluation.provenance import provenance
from effitrans.evaluation.scaling import LENGTHS, LengthCost, exponents, measure_scaling
from effitrans.files import claimed, write_text
from effitrans.processes import is_main_process
from effitrans.recipes.study import Study, run_study
from effitrans.reporting import report
from effitrans.reporting.scaling import scaling_sections
from effitrans.tasks import load_task
from effitrans.tasks.loading import load_for_task


def attention_study(
    task: str | dict[str, Any],
    variants: Mapping[str, OperatorConfig],
    *,
    model: str | dict[str, Any] = "base",
    seeds: Sequence[int] = (0, 1, 2),
    training: Mapping[str, Any] | None = None,
    split: str = "test",
    limit: int | None = None,
) -> Study:
    """The study that trains `model` with each operator.

    Args:
        task: built-in name, task YAML or mapping.
        variants: name -> operator; the first is the baseline.
        model: what all start from, usually a base Transformer.
        seeds: of every variant.
        training: fields of the `train` step.
        split, limit: what is scored.

    Raises:
        UsageError: a bad setting.
    """
    return Study.parse(
        {
            "name": f"attention on {task['name'] if isinstance(task, dict) else Path(task).stem}",
            "description": "The same model with different attention operators, trained alike.",
            "task": task,
            "model": model,
            "variants": {
                name: [
                    {"swap": {"attention": config.name, **config.model_dump(mode="json", exclude_defaults=True)}},
                    {"train": dict(training or {})},
                ]
                for name, config in variants.items()
            },
            "baseline": next(iter(variants)),
            "seeds": list(seeds),
            "evaluate": {"split": split, "limit": limit, "cost": None},
        },
        "attention study",
    )


def compare_attention(
    study: Study,
    variants: Mapping[str, OperatorConfig],
    output: str | Path,
    *,
    lengths: Sequence[int] = LENGTHS,
    repeats: int = 3,
    resume: bool = False,
    overwrite: bool = False,
) -> tuple[list[Record], list[LengthCost]]:
    """Run an attention study, then measure its operators by length; layout in the module's docstring.

    Args:
        study: of `attention_study`.
        variants: the operators that it was made from.
        output: the output folder.
        lengths: where the operators are measured; none: nowhere.
        repeats: rounds of the timing.
        resume, overwrite: as for `run_study`. With `resume`, lengths that were measured are not measured again.

    Raises:
        UsageError: an operator that the model's layers cannot take, before anything runs.
    """
    with claimed(output, overwrite or resume) as output:
        site = common_site(study, variants)
        records = run_study(study, output, resume=resume, overwrite=overwrite)
        if not lengths or not is_main_process():
            return records, []
        cells = draw_with_lengths(study.name, records, variants, site, output, lengths=lengths, repeats=repeats)
        return records, cells


def draw_with_lengths(
    title: str,
    records: Sequence[Record],
    variants: Mapping[str, OperatorConfig],
    site: Site,
    output: Path,
    *,
    lengths: Sequence[int] = LENGTHS,
    repeats: int = 3,
) -> list[LengthCost]:
    """Measure a study's operators by length and draw its page with what they cost.

    Args:
        title: of the page.
        records: of the study, in the order of the page.
        variants: the operators that its variants were given.
        site: where they are measured, as of `common_site`.
        output: the study's folder; lengths that were measured there are not measured again.
        lengths, repeats: as for `compare_attention`.
    """
    cells = _measured(variants, site, lengths, repeats, output / "lengths.json")
    report(records, output / "report.html", title=title, sections=scaling_sections(records, cells))
    return cells


def operators_of(study: Study) -> dict[str, OperatorConfig]:
    """The operators of an attention study: what the first step of each variant swaps in.

    Raises:
        UsageError: a variant that does not begin with a swap.
    """
    found: dict[str, OperatorConfig] = {}
    for name, variant in study.variants.items():
        settings = dict(variant.steps[0].get("swap") or {})
        if "attention" not in settings:
            raise UsageError(f"variant {name!r} of {study.name} does not begin with a swap of attention")
        found[name] = operator_config(settings.pop("attention"), settings)
    return found


def common_site(study: Study, variants: Mapping[str, OperatorConfig]) -> Site:
    """The attention site of the model's first layer.

    Raises:
        UsageError: an operator that the model cannot take.
    """
    task, sites = load_task(study.task), []
    for name, config in variants.items():
        model = load_for_task(study.model, task, seed=study.seeds[0], new_head=True).model
        try:
            swapped = swap_attention(model, config, inplace=True)
        except UsageError as error:
            raise UsageError(f"variant {name!r}: {error}; leave it out, or choose another model") from None
        sites.append(next(module.site for module in swapped.modules() if isinstance(module, AttentionOperator)))
    return sites[0]


def _measured(
    variants: Mapping[str, OperatorConfig], site: Site, lengths: Sequence[int], repeats: int, file: Path
) -> list[LengthCost]:
    threads = torch.get_num_threads()
    asked = {
        "threads": threads,
        "repeats": repeats,
        "site": site.model_dump(mode="json"),
        "lengths": list(lengths),
        "operators": {name: {"attention": c.name, **c.model_dump(mode="json")} for name, c in variants.items()},
    }
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if {name: known.get(name) for name in asked} == asked:
        cells, origin = [LengthCost(**cell) for cell in known["cells"]], known["provenance"]
    else:
        cells = measure_scaling(variants, site, lengths, repeats=repeats)
        origin = provenance(device=torch.device("cpu"), threads=threads, dtype=torch.float32, seed=0).model_dump(
            mode="json"
        )
    values = {**asked, "provenance": origin, "exponents": exponents(cells)}
    values["cells"] = [cell.model_dump(mode="json") for cell in cells]
    write_text(file, json.dumps(values, indent=1) + "\n")
    return cells


def parse_variants(names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, OperatorConfig]:
    """Operators from `NAME` or `LABEL=NAME`, with settings `LABEL.FIELD`.

    >>> sorted(parse_variants(["full", "near=local"], {"near.window": 8}))
    ['full', 'near']

    Raises:
        UsageError: an unknown operator or setting, or a label that stands twice.
    """
    chosen = [(label.strip(), (name or label).strip()) for label, _, name in (text.partition("=") for text in names)]
    labels = [label for label, _ in chosen]
    if len(set(labels)) < len(labels):
        raise UsageError(f"variants: each may stand once, received {', '.join(labels)}: give labels, near=local")
    own: dict[str, dict[str, Any]] = {label: {} for label in labels}
    for key, value in settings.items():
        label, _, field = key.partition(".")
        if label not in own or not field:
            raise UsageError(f"setting {key!r}: expected VARIANT.FIELD=VALUE with a variant of {', '.join(labels)}")
        own[label][field] = value
    return {label: operator_config(name, own[label]) for label, name in chosen}
