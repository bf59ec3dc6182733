"""Accuracy against the share of the encoder removed, in one shot and without recovery, for every importance method.

    python benchmarks/pruning_curves.py runs/sst2/steps/01-teacher sst2 --output reports/pruning/curves
    python benchmarks/pruning_curves.py MODEL TASK --output DIR --methods taylor,wanda --seeds 0,1 --ratios 0.3,0.5
    python benchmarks/pruning_curves.py --output DIR          # only draws again what is there

Importance is measured once for each method and seed, where the seed draws the calibration examples (methods that look
at no data are measured once, `random` draws its numbers from the seed), and serves all ratios. A ratio is the share of
the parameters of the encoder's layers that goes, their norms and biases counted, embeddings and task head not. Heads
and FFN neurons each give the same share, so no method decides between the two kinds; within a kind all layers are
ranked together, and every layer keeps one head and eight neurons at least. Heads are few, so their number is rounded
first and the neurons make up for it.

Every point is one file in `DIR/points`; those that exist are not computed again. The page `DIR/curves.md` and the
picture `DIR/curves.svg` are drawn from them alone. Intervals are Student's t over the seeds, 95 %.
"""

import argparse
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from effitrans.architectures import adapter
from effitrans.evaluation import evaluate
from effitrans.evaluation.record import Interval
from effitrans.files import write_text
from effitrans.pruning import IMPORTANCE, Importance, Pruning, Scores, measure_importance, prune_units
from effitrans.pruning.units.heads import head_sites
from effitrans.pruning.units.neurons import ffn_sites
from effitrans.reporting.lengths import spread_out
from effitrans.reporting.plot import BOTTOM, HEIGHT, LEFT, TOP, Axis, axes
from effitrans.reporting.svg import Drawing, text_width
from effitrans.tasks import Task, load_task
from effitrans.tasks.loading import Loaded, load_for_task

logger = logging.getLogger("effitrans.benchmarks")

RATIOS = tuple(tenth / 10 for tenth in range(1, 10))
UNPRUNED = "unpruned"
WIDTH, SIZE = 640, 12.5
STROKES = ("accent", "loss", "ink", "muted")
DASHES = ("", "5 3")
DODGE = 3.0
"""Pixels between the points of two methods, so that their intervals can be told apart."""


@dataclass(frozen=True)
class Shares:
    """The fractions of heads and neurons that go."""

    heads: float
    ffn: float


def encoder_parameters(model: PreTrainedModel) -> int:
    """Parameters of all layers, shared ones once."""
    owned = {id(p): p.numel() for layer in adapter(model).layers for p in layer.module.parameters()}
    return sum(owned.values())


def shares(model: PreTrainedModel, ratio: float) -> Shares:
    """What has to go of heads and of neurons so that `ratio` of the encoder's parameters goes.

    Raises:
        SystemExit: norms and the last unit of every layer leave less than that to remove.
    """
    layers = adapter(model).layers
    heads, neurons = head_sites(layers), ffn_sites(layers)
    of_heads, of_neurons = (sum(site.parameters_of(range(site.units)) for site in s) for s in (heads, neurons))
    target = ratio * encoder_parameters(model)
    units = sum(site.units for site in heads)
    wanted = min(round(target / (of_heads + of_neurons) * units), units - len(heads))
    ffn = (target - wanted / units * of_heads) / of_neurons
    most = 1 - sum(min(8, site.units) for site in neurons) / sum(site.units for site in neurons)
    if ffn > most:
        raise SystemExit(f"a ratio of {ratio:g} cannot be reached with one head and eight neurons left in each layer")
    return Shares(wanted / units, ffn)


class Study:
    """One model on one task; points go to a folder and are computed once.

    Args:
        loaded: the model and its processor.
        task: with a test and a train split.
        folder: of the results.
        examples: calibration examples of a seed.
        limit: test examples that are scored; None: all.
    """

    def __init__(self, name: str, loaded: Loaded, task: Task, folder: Path, examples: int, limit: int | None) -> None:
        self.loaded, self.task, self.folder = loaded, task, folder
        self.examples, self.limit = examples, limit
        self.total = encoder_parameters(loaded.model)
        self._check_settings({"model": name, "parameters": self.total, "task": task.name, "examples": examples})

    def _check_settings(self, settings: dict[str, Any]) -> None:
        settings |= {
            "limit": self.limit,
            "weights": _sum(self.loaded.model),
            "fingerprint": self.task.fingerprint("test"),
        }
        file = self.folder / "settings.json"
        if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != settings:
            raise SystemExit(f"{self.folder} holds the curves of another model, task or setting: name another folder")
        write_text(file, json.dumps(settings, indent=1) + "\n")

    def run(self, methods: Iterable[str], seeds: Sequence[int], ratios: Sequence[float]) -> None:
        """Compute what is not there yet."""
        self._point(UNPRUNED, 0, 0.0, None)
        for method in methods:
            criterion = IMPORTANCE[method]
            for seed in seeds if criterion.needs_data or criterion.seeded else seeds[:1]:
                missing = [ratio for ratio in ratios if not self._file(method, seed, ratio).is_file()]
                scores = self._scores(method, seed) if missing else None
                for ratio in missing:
                    self._point(method, seed, ratio, scores)

    def _file(self, method: str, seed: int, ratio: float) -> Path:
        return self.folder / "points" / f"{method}-seed{seed}-{round(100 * ratio):02d}.json"

    def _scores(self, method: str, seed: int) -> Scores:
        logger.info("measuring %s, seed %d", method, seed)
        examples = {"calibration_examples": self.examples} if IMPORTANCE[method].needs_data else {}
        config = Importance(method=method, seed=seed, **examples)
        return measure_importance(self.loaded.model, config, self.task, processor=self.loaded.processor)

    def _point(self, method: str, seed: int, ratio: float, scores: Scores | None) -> None:
        file = self._file(method, seed, ratio)
        if file.is_file():
            return
        model = self.loaded.model
        if scores is not None:
            given = shares(model, ratio)
            config = Pruning(heads=given.heads, ffn=given.ffn, scope="global", method=method, seed=seed)
            model = prune_units(model, config, scores=scores)
        record = evaluate(model, self.task, processor=self.loaded.processor, cost=None, limit=self.limit, cache=False)
        metric = self.task.metrics[0]
        left = adapter(model).layers
        point = {
            "method": method,
            "seed": seed,
            "ratio": ratio,
            "removed": 1 - encoder_parameters(model) / self.total,
            "parameters": model.num_parameters(),
            "metric": metric,
            **record.quality[metric].model_dump(mode="json"),
            "heads": [site.num_heads for layer in left for site in layer.attention],
            "neurons": [layer.feed_forward.width for layer in left],
            "task": record.task.model_dump(mode="json"),
            "provenance": record.provenance.model_dump(mode="json"),
        }
        write_text(file, json.dumps(point, indent=1) + "\n")
        logger.info("%s, seed %d, %.0f %%: %s %.4f", method, seed, 100 * ratio, metric, point["value"])


def _sum(model: PreTrainedModel) -> float:
    """A number that tells models of the same shape apart."""
    with torch.no_grad():
        return float(sum(parameter.double().abs().sum() for parameter in model.parameters()))


Curves = dict[str, dict[float, list[float]]]
"""Method -> ratio -> the value of each seed, both in the order in which the page shows them."""


def curves_of(points: Sequence[dict[str, Any]]) -> Curves:
    """The curves in points, methods from the best mean over all ratios on."""
    found: Curves = {}
    for point in sorted(points, key=lambda p: (p["ratio"], p["seed"])):
        if point["method"] != UNPRUNED:
            found.setdefault(point["method"], {}).setdefault(point["ratio"], []).append(point["value"])
    return dict(sorted(found.items(), key=lambda item: -_mean_of(item[1])))


def _mean_of(curve: dict[float, list[float]]) -> float:
    return float(np.mean([np.mean(values) for values in curve.values()]))


def interval(values: Sequence[float]) -> Interval | None:
    """Student's t interval of the mean, 95 %; null for a single value."""
    from scipy.stats import t

    if len(values) < 2:
        return None
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return float(np.mean(values)) - half, float(np.mean(values)) + half


def page(points: Sequence[dict[str, Any]]) -> str:
    """The Markdown page."""
    curves = curves_of(points)
    first = points[0]
    ratios = sorted({ratio for curve in curves.values() for ratio in curve})
    whole = next((p for p in points if p["method"] == UNPRUNED), None)
    lines = [
        "| Method | Seeds | " + " | ".join(f"{100 * ratio:.0f} %" for ratio in ratios) + " | Mean |",
        "| --- |" + " ---: |" * (len(ratios) + 2),
    ]
    for method, curve in curves.items():
        cells = [_cell(curve.get(ratio, [])) for ratio in ratios]
        seeds = max(len(values) for values in curve.values())
        lines.append(f"| {method} | {seeds} | {' | '.join(cells)} | {100 * _mean_of(curve):.1f} |")
    pruned = [p for p in points if p["method"] != UNPRUNED]
    off = max((abs(p["removed"] - p["ratio"]) for p in pruned), default=0.0)
    opening = (
        f"{first['metric']} on {first['task']['name']}/{first['task']['split']}, {first['n']} examples, in per cent."
    )
    if whole is not None:
        low, high = whole["ci95"]
        opening += f" Unpruned: {100 * whole['value']:.1f} ({100 * low:.1f}–{100 * high:.1f} over examples)."
    text = (
        "Columns: share of the parameters of the encoder's layers that was removed in one shot, without any training "
        "afterwards (heads and neurons in equal parts, ranked over all layers within each kind; the share that really "
        f"went differs from the one asked for by at most {100 * off:.2f} points). In brackets: half of the 95 % "
        "interval of the mean over the seeds (Student's t); methods without data have one value. Mean: over the "
        "columns."
    )
    parts = ["# Pruning in one shot, without recovery", opening, "![Curves](curves.svg)", "\n".join(lines), text]
    return "\n\n".join(parts) + "\n"


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = interval(values)
    mean = f"{100 * np.mean(values):.1f}"
    return mean if spread is None else f"{mean} (±{50 * (spread[1] - spread[0]):.1f})"


def picture(points: Sequence[dict[str, Any]]) -> Drawing:
    """The curves, each with bars for its intervals, named at their right ends."""
    curves = curves_of(points)
    metric = points[0]["metric"]
    whole = next((p["value"] for p in points if p["method"] == UNPRUNED), None)
    drawing = Drawing(WIDTH, HEIGHT, f"{metric} against the share of the encoder removed, in one shot")
    margin = 30 + max(text_width(name, SIZE) for name in curves)
    values = [100 * p["value"] for p in points]
    room = 0.04 * (max(values) - min(values) or 1)
    last = max(ratio for curve in curves.values() for ratio in curve)
    x_axis = Axis(0.0, 100 * last, LEFT, WIDTH - margin)
    y_axis = Axis(min(values) - room, max(values) + room, HEIGHT - BOTTOM, TOP)
    axes(drawing, x_axis, y_axis, "Share of the encoder's parameters removed, %", f"{metric}, %")
    if whole is not None:
        drawing.line(LEFT, y_axis(100 * whole), x_axis.end, y_axis(100 * whole), "muted", 1, "2 3")
    ends = [y_axis(100 * float(np.mean(list(curve.values())[-1]))) for curve in curves.values()]
    heights = spread_out(ends, SIZE + 3)
    for index, ((method, curve), end, height) in enumerate(zip(curves.items(), ends, heights, strict=True)):
        stroke, dash = STROKES[index % len(STROKES)], DASHES[index // len(STROKES) % len(DASHES)]
        means = [(100 * ratio, 100 * float(np.mean(of_seeds))) for ratio, of_seeds in curve.items()]
        start = [] if whole is None else [(x_axis(0.0), y_axis(100 * whole))]
        aside = DODGE * (index - (len(curves) - 1) / 2)
        drawing.path([*start, *((x_axis(x) + aside, y_axis(y)) for x, y in means)], stroke, 1.75, dash)
        for (x, mean), of_seeds in zip(means, curve.values(), strict=True):
            spread = interval(of_seeds)
            if spread is not None:
                bottom, top = (min(max(100 * value, y_axis.low), y_axis.high) for value in spread)
                drawing.line(x_axis(x) + aside, y_axis(bottom), x_axis(x) + aside, y_axis(top), stroke, 1)
            drawing.circle(
                x_axis(x) + aside, y_axis(mean), 2.5, stroke, tip=f"{method}, {x:.0f} % removed: {mean:.1f} %"
            )
        drawing.line(x_axis.end + 12, end, x_axis.end + 20, height, stroke, 0.75, dash)
        drawing.text(x_axis.end + 23, height + 4, method, SIZE, stroke)
    return drawing


def draw(folder: Path) -> None:
    """Write the page and the picture from the points of a folder.

    Raises:
        SystemExit: no pruned model is among the records.
    """
    files = sorted((folder / "points").glob("*.json"))
    points = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    if not any(point["method"] != UNPRUNED for point in points):
        raise SystemExit(f"{folder / 'points'} holds no points: give a model and a task")
    write_text(folder / "curves.md", page(points))
    write_text(folder / "curves.svg", picture(points).svg(standalone=True) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="folder or hub name of a fine-tuned model; without one: draw only")
    parser.add_argument("task", nargs="?", help="built-in task or task YAML")
    parser.add_argument("--output", type=Path, required=True, help="folder of the points, the page and the picture")
    parser.add_argument("--methods", default=",".join(IMPORTANCE), help=f"of {', '.join(IMPORTANCE)}")
    parser.add_argument("--seeds", default="0,1,2", help="of the calibration examples")
    parser.add_argument("--ratios", default=",".join(map(str, RATIOS)), help="shares of the encoder's parameters")
    parser.add_argument("--examples", type=int, default=512, help="calibration examples")
    parser.add_argument("--limit", type=int, help="score the first so many test examples")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.model is not None:
        if options.task is None:
            parser.error("name the task as well")
        methods = options.methods.split(",")
        if unknown := [name for name in methods if name not in IMPORTANCE]:
            parser.error(f"unknown method {unknown[0]!r}: choose from {', '.join(IMPORTANCE)}")
        torch.set_num_threads(options.threads)
        task = load_task(options.task)
        loaded = load_for_task(options.model, task)
        study = Study(options.model, loaded, task, options.output, options.examples, options.limit)
        study.run(methods, [int(s) for s in options.seeds.split(",")], [float(r) for r in options.ratios.split(",")])
    draw(options.output)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    main()
