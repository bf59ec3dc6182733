"""What each pass of a recipe gained and lost: quality, time and size from one step to the next."""

from collections.abc import Sequence
from dataclasses import dataclass

from effitrans.evaluation.comparison import Comparison, headline_shape, latency_at
from effitrans.evaluation.record import Record
from effitrans.reporting import format
from effitrans.reporting.svg import Drawing, text_width
from effitrans.tasks.metrics import describe

WIDTH, TOP, ROW, BAR = 340, 30, 28, 14
SIZE = 12.5


@dataclass(frozen=True)
class Stage:
    """One step on one scale."""

    name: str
    value: float
    text: str
    """The value as it is read."""
    change: str
    """The change from the step before, as it is read; empty for the first."""
    worse: bool


def steps(comparison: Comparison) -> list[Record]:
    """The records that are steps of one recipe, in order; none if there are fewer than two."""
    found = [record for record in comparison.records if record.step is not None]
    found.sort(key=lambda record: record.step.index if record.step else 0)
    return found if len(found) > 1 else []


def waterfalls(comparison: Comparison) -> list[Drawing]:
    """A drawing each for quality, time and size, as far as every step has the figure."""
    records = steps(comparison)
    if not records:
        return []
    entry = describe(comparison.metric)
    drawings = [_draw(entry.label, _quality_stages(comparison, records), from_zero=False)]
    times = time_stages(comparison, records)
    if times:
        shape = headline_shape(comparison.records)
        drawings.append(_draw(f"Time at {format.shape(*shape)}" if shape else "Time", times))
    sizes = size_stages(records)
    if sizes:
        drawings.append(_draw("Size on disk", sizes))
    return drawings


def _quality_stages(comparison: Comparison, records: Sequence[Record]) -> list[Stage]:
    name = comparison.metric
    higher = describe(name).higher_is_better
    stages: list[Stage] = []
    for record in records:
        value = record.quality[name].value
        change, worse = "", False
        if stages:
            difference = value - stages[-1].value
            change = format.quality(name, difference, sign=True) if difference else "same"
            worse = difference != 0 and (difference < 0) == higher
        stages.append(Stage(_label(record), value, format.quality(name, value), change, worse))
    return stages


def time_stages(comparison: Comparison, records: Sequence[Record]) -> list[Stage]:
    """Time relative to the baseline at the main shape; empty unless it is known for every step.

    Steps before the baseline was made stand for no time of their own and are left out.
    """
    shape = headline_shape(comparison.records)
    stages: list[Stage] = []
    for record in records:
        row = latency_at(record, shape) if shape else None
        ratio = 1.0 if record is comparison.baseline else row.ratio_to_baseline if row else None
        if ratio is None:
            if stages:
                return []
            continue
        stages.append(_ratio_stage(stages, record, ratio, f"{format.times(ratio)}×"))
    return stages if len(stages) > 1 else []


def size_stages(records: Sequence[Record]) -> list[Stage]:
    """Bytes on disk; empty unless they are known for every step."""
    stages: list[Stage] = []
    for record in records:
        size = record.cost.bytes_on_disk if record.cost else None
        if size is None:
            return []
        stages.append(_ratio_stage(stages, record, float(size), format.scaled(size, "B")))
    return stages


def _ratio_stage(stages: Sequence[Stage], record: Record, value: float, text: str) -> Stage:
    if not stages:
        return Stage(_label(record), value, text, "", False)
    change = round(100 * (value / stages[-1].value - 1))
    return Stage(_label(record), value, text, format.minus(f"{change:+d} %") if change else "same", change > 0)


def _label(record: Record) -> str:
    return record.step.name if record.step else record.model


def _draw(title: str, stages: Sequence[Stage], from_zero: bool = True) -> Drawing:
    """Bars from the value before a step to the value after it, over grey ground where the scale has a zero."""
    height = TOP + ROW * len(stages) + 2
    changes = "; ".join(f"{stage.name} {stage.text} {stage.change}".strip() for stage in stages)
    drawing = Drawing(WIDTH, height, f"{title} from step to step", changes)
    value_x = WIDTH - max(text_width(stage.change, SIZE) for stage in stages) - 12
    left = max(text_width(stage.name, SIZE) for stage in stages) + 12
    right = value_x - 1.18 * max(text_width(stage.text, SIZE) for stage in stages) - 10
    values = [stage.value for stage in stages]
    low = 0.0 if from_zero else min(values)
    span = max(values) - low or 1.0

    def x(value: float) -> float:
        return left + (value - low) / span * (right - left)

    drawing.text(0, 14, title, SIZE, "muted")
    for index, stage in enumerate(stages):
        y = TOP + ROW * index
        drawing.text(0, y + 11, stage.name, SIZE)
        before = x(stages[index - 1].value) if index else x(stage.value)
        start, end = sorted((before, x(stage.value)))
        if from_zero:
            drawing.rect(left, y, start - left, BAR, "line")
        drawing.rect(start - 0.75, y, end - start + 1.5, BAR, _fill(index, stage))
        if index + 1 < len(stages):
            drawing.line(x(stage.value), y + BAR, x(stage.value), y + ROW, "muted", 0.75)
        drawing.text(value_x, y + 11, stage.text, SIZE, anchor="end", weight=600)
        if stage.change:
            drawing.text(WIDTH, y + 11, stage.change, SIZE, _fill(index, stage), "end")
    return drawing


def _fill(index: int, stage: Stage) -> str:
    return "muted" if index == 0 or stage.change == "same" else "loss" if stage.worse else "accent"
