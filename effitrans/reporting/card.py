"""The model card: README.md of a model folder, with evaluation results as the hub reads them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effitrans import __version__
from effitrans.evaluation.comparison import compare_records
from effitrans.evaluation.record import Record
from effitrans.files import write_text
from effitrans.reporting import format, structure, tables, view
from effitrans.reporting.markdown import escape, table
from effitrans.tasks import KINDS
from effitrans.tasks.metrics import describe

LONG = 160
"""Settings of a pass that take more characters than this are folded away."""


def model_card(record: Record, config: Any = None, *, baseline: Record | None = None, name: str | None = None) -> str:
    """The card of the model that a record is about.

    Args:
        record: its evaluation.
        config: its config, for the name of the base model and of the architecture.
        baseline: the record of what it was compared with, for a second row in the table.
        name: of the model. Default: as the record has it.

    Returns:
        Markdown with a YAML head that holds the results as a `model-index`.
    """
    name = name or record.model
    # The record comes last: it is the one that the summary and the marked row are about.
    comparison = compare_records([baseline, record] if baseline is not None and baseline is not record else [record])
    parts = [f"---\n{_front_matter(record, config, name)}\n---", f"# {escape(name)}", _about(record, comparison)]
    parts += ["## Results", table(view.headline(comparison)), _reading(record)]
    parts += ["## Use", _usage(record)]
    if record.structure is not None and record.structure.layers:
        parts.append(escape(f"{record.structure.architecture}: {structure.summary(record.structure)}."))
    if record.history:
        parts += ["## How it was made", _history(record)]
    if record.notes:
        parts += ["## Notes", "\n".join(f"- {escape(note)}" for note in record.notes)]
    facts = [f"| {label} | {escape(value)} |" for label, value in tables.provenance(compare_records([record]))]
    parts += ["## Provenance", "\n".join(["| | |", "| --- | --- |", *facts])]
    return "\n\n".join(parts) + "\n"


def write_card(folder: Path, record: Record, config: Any = None, *, baseline: Record | None = None) -> None:
    """Write the card of the model in a folder.

    Of a task whose split comes from the hub, the main metric also goes into `.eval_results/TASK.yaml`, from which the
    hub takes the results that it shows beside a data set. It knows no results on data of one's own.
    """
    write_text(folder / "README.md", model_card(record, config, baseline=baseline))
    if record.task.dataset is not None:
        write_text(folder / ".eval_results" / f"{record.task.name}.yaml", _hub_results(record, record.task.dataset))


def _hub_results(record: Record, dataset: str) -> str:
    import yaml
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    metric, score = next(iter(record.quality.items()))
    interval = f", 95 % interval {format.quality_interval(metric, score.ci95)}" if score.ci95 else ""
    entry = EvalResultEntry(
        dataset_id=dataset,
        task_id=record.task.name,
        value=round(100 * score.value if describe(metric).percent else score.value, 4),
        date=record.provenance.created,
        notes=f"{describe(metric).label}{interval}, {score.n} examples of {record.task.split}, effitrans {__version__}",
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)


def _front_matter(record: Record, config: Any, name: str) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    kind = KINDS.get(record.task.kind or "")
    hub_task = kind.hub_task if kind is not None else None
    results = [
        EvalResult(
            task_type=hub_task or record.task.kind or "other",
            dataset_type=record.task.name,
            dataset_name=record.task.name,
            dataset_split=record.task.split,
            metric_type=metric.removeprefix("evaluate:"),
            metric_name=describe(metric).label,
            metric_value=round(score.value, 6),
            metric_args={"ci95": [round(end, 6) for end in score.ci95], "n": score.n} if score.ci95 else None,
        )
        for metric, score in record.quality.items()
    ]
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=hub_task,
        base_model=_base_model(config),
        datasets=None,
        tags=["effitrans", *_passes(record)],
        metrics=list(record.quality),
        model_name=name,
        eval_results=results,
    )
    return data.to_yaml()


def _base_model(config: Any) -> str | None:
    """The hub name the model came from; a local folder says nothing to others."""
    origin = str(getattr(config, "name_or_path", "") or getattr(config, "_name_or_path", "") or "")
    return origin if origin.count("/") <= 1 and origin and not Path(origin).exists() else None


def _passes(record: Record) -> list[str]:
    tags = {"prune": "pruned", "quantize": "quantized", "distill": "distilled", "swap": "efficient-attention"}
    verbs = [str(entry.get("verb", "")) for entry in record.history]
    return list(dict.fromkeys(tags[verb] for verb in verbs if verb in tags))


def _about(record: Record, comparison: Any) -> str:
    made = f"Made with effitrans {__version__}."
    return f"{made} {escape(view.lede(comparison, 'It'))}" if record.fidelity is not None else made


def _reading(record: Record) -> str:
    text = f"In brackets: 95 % intervals. {escape(view.how_timed(compare_records([record])))}".rstrip()
    if record.fidelity is not None:
        text += f" Compared on the same examples with {escape(record.fidelity.baseline)}"
        text += (
            f"; predictions agree on {format.percent(record.fidelity.agreement)}" if record.fidelity.agreement else ""
        )
        text += "."
    return text


def _usage(record: Record) -> str:
    kind = KINDS.get(record.task.kind or "")
    auto = kind.auto_class if kind is not None else "AutoModel"
    images = kind is not None and not kind.reads_text
    lines = [f"from transformers import {auto}" + ("" if images else ", AutoTokenizer"), ""]
    lines.append(f'model = {auto}.from_pretrained("path/to/this/folder")')
    if not images:
        lines.append('tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")')
    return "\n".join(["```python", "import effitrans  # teaches transformers to read this checkpoint", *lines, "```"])


def _history(record: Record) -> str:
    lines = []
    for number, entry in enumerate(record.history, 1):
        settings = ", ".join(f"{key}={_brief(value)}" for key, value in (entry.get("config") or {}).items() if value)
        if len(settings) > LONG:
            settings = f"<details><summary>settings</summary>{escape(settings)}</details>"
        else:
            settings = escape(settings)
        lines.append(f"{number}. **{escape(str(entry.get('verb', '?')))}** {settings}".rstrip())
    return "\n".join(lines)


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_brief(inner)}" for key, inner in value.items() if inner) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_brief, value[:8])) + (", …]" if len(value) > 8 else "]")
    return f"{value:g}" if isinstance(value, float) else str(value)
