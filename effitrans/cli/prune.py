"""`effitrans prune`: remove heads, FFN neurons, sublayers, layers and tokens for real, or search for what to remove."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import typer

from effitrans.cli import options
from effitrans.cli.app import start
from effitrans.cli.registered import command_class
from effitrans.errors import UsageError

ModelArgument = Annotated[str, typer.Argument(help="Folder or hub name.", show_default=False)]

REMOVED = "What is removed, or kept (--keep-...)"
SEARCHED = "A search for what to remove"


def _option(name: str, text: str, panel: str, **more: Any) -> Any:
    return typer.Option(name, help=text, rich_help_panel=panel, show_default=False, **more)


ASKED = "effitrans.prune"
"""Key of the context's `meta` under which the units that the options ask for lie: step -> setting -> value."""


def _facts() -> dict[str, str]:
    from effitrans.pruning.importance import IMPORTANCE

    return {"methods": ", ".join(IMPORTANCE)}


class Command(command_class(_facts)):
    """The command with one option per pruning unit, which are looked up when the command is run or explained."""

    def get_params(self, ctx: Any) -> list[Any]:
        return [*super().get_params(ctx), *unit_options()]


@cache
def unit_options() -> list[Any]:
    """The options that ask for units: those of a function with a parameter per unit."""
    from effitrans.pruning.units import UNITS

    def asked(**values: Any) -> None: ...

    parameters = [
        inspect.Parameter(
            unit.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=typer.Option(
                None,
                unit.option,
                help=unit.help,
                rich_help_panel=REMOVED,
                show_default=False,
                expose_value=False,
                callback=_keeper(unit),
            ),
            annotation=unit.value | None,
        )
        for unit in UNITS.values()
    ]
    asked.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    asked.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    app = typer.Typer(add_completion=False)
    app.command()(asked)
    return [option for option in typer.main.get_command(app).params if option.name in UNITS]  # type: ignore[attr-defined]


def _keeper(unit: Any) -> Callable[..., None]:
    def keep(context: typer.Context, value: Any) -> None:
        if value is not None and value != 0:
            context.meta.setdefault(ASKED, {}).setdefault(unit.step, {})[unit.setting] = value

    return keep


def command(
    context: typer.Context,
    model: ModelArgument,
    output: options.Output,
    task: Annotated[str | None, typer.Option("--task", "-t", help="Built-in task or task YAML.")] = None,
    sparsity: Annotated[
        float | None, _option("--sparsity", "Fraction of single weights of the linear layers removed.", REMOVED)
    ] = None,
    pattern: Annotated[
        str | None, _option("--pattern", "N of every M consecutive weights are kept, written N:M (2:4).", REMOVED)
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="Importance criterion: {methods}; or l0, learned gates. Default: magnitude, of a search taylor.",
        ),
    ] = None,
    scope: Annotated[
        str, typer.Option("--scope", help="layer: the same fraction of each layer; global: ranked over all layers.")
    ] = "layer",
    prune_steps: Annotated[
        int, typer.Option("--steps", help="Number of steps, with a share of the recovery after each.", min=1)
    ] = 1,
    schedule: Annotated[str, typer.Option("--schedule", help="linear or cubic, over the steps.")] = "linear",
    latency: Annotated[
        float | None, _option("--latency", "At most this share of the original latency.", SEARCHED)
    ] = None,
    memory: Annotated[
        float | None, _option("--memory", "At most this share or number of bytes of memory while it runs.", SEARCHED)
    ] = None,
    parameters: Annotated[
        float | None, _option("--parameters", "At most this share or number of parameters.", SEARCHED)
    ] = None,
    weight_bytes: Annotated[
        float | None, _option("--bytes", "At most this share or number of bytes of weights.", SEARCHED)
    ] = None,
    min_quality: Annotated[
        float | None,
        _option("--min-quality", "The fastest with at least this share of the original first metric.", SEARCHED),
    ] = None,
    batch: Annotated[int, typer.Option("--batch", help="Examples per timed batch.", rich_help_panel=SEARCHED)] = 32,
    length: Annotated[
        str, typer.Option("--length", help="Tokens per timed example, or data.", rich_help_panel=SEARCHED)
    ] = "128",
    sampler: Annotated[
        str, typer.Option("--sampler", help="evolution, or of Optuna: tpe, nsga2.", rich_help_panel=SEARCHED)
    ] = "evolution",
    evaluations: Annotated[
        int, typer.Option("--evaluations", help="Structures built and scored.", rich_help_panel=SEARCHED)
    ] = 96,
    recover: Annotated[
        float, typer.Option("--recover", help="Epochs of distillation from the unpruned model.", min=0)
    ] = 0.0,
    learning_rate: options.LearningRate = 1e-4,
    split: options.Split = "test",
    cost: options.Measured = True,
    seed: options.Seed = 0,
    optimize: options.Optimize = None,
    resume: options.Resume = False,
    overwrite: options.Overwrite = False,
) -> None:
    """Prune a model and, on request, let it recover under the unpruned one.

    [bold]Examples[/]

      effitrans prune runs/teacher --task sst2 --heads 0.5 --ffn 0.5 --method taylor --recover 1 --output runs/pruned

      effitrans prune runs/teacher --task sst2 --keep-layers 3 --output runs/shallow

      effitrans prune runs/teacher --task sst2 --pattern 2:4 --method wanda --recover 1 --output runs/sparse

      effitrans prune runs/teacher --vocab sst2 --output runs/fewer-tokens

      effitrans prune runs/teacher --task sst2 --latency 0.5 --recover 2 --output runs/half-the-time
    """
    start()
    options.refuse_optimize(context)
    from effitrans.cli.one_pass import run_pass

    asked: dict[str, dict[str, Any]] = context.meta.get(ASKED, {})
    fields, vocab = asked.get("prune", {}), asked.get("prune_vocabulary", {}).get("corpus")
    goals = {"latency": latency, "memory": memory, "parameters": parameters, "bytes": weight_bytes}
    goals |= {"min_quality": min_quality}
    goals = {name: value for name, value in goals.items() if value is not None}
    single = {name: value for name, value in {"sparsity": sparsity, "pattern": pattern}.items() if value is not None}
    if goals and fields:
        raise UsageError(
            f"--{next(iter(goals)).replace('_', '-')} searches for what to remove: leave out "
            + ", ".join(f"--{name.replace('_', '-')}" for name in fields)
        )
    if not task and not vocab:
        raise UsageError("--task TASK is required: the result is scored on it (or --vocab TASK)")
    ranked = not goals and method != "l0"
    options.refuse_idle(
        context, not goals, "without a budget such as --latency", "batch", "length", "sampler", "evaluations"
    )
    options.refuse_idle(
        context, not fields or not ranked, "without --heads, --ffn and the like", "prune_steps", "schedule"
    )
    options.refuse_idle(context, prune_steps == 1, "without --steps above 1", "schedule")
    options.refuse_idle(context, not ((ranked and fields) or single), "where nothing is ranked", "scope")
    options.refuse_idle(context, bool(vocab) and not (fields or goals or single), "with --vocab alone", "method")
    options.refuse_idle(context, not recover, "without --recover", "learning_rate")
    chosen = {} if method is None else {"method": method}
    distilled: dict[str, Any] = {"epochs": recover / prune_steps, "learning_rate": learning_rate, "seed": seed}
    steps: list[tuple[str, dict[str, Any]]] = []
    if method == "l0":
        steps.append(("learn_gates", {**_of_gates(fields, goals, single), "seed": seed}))
    elif goals:
        shape = {
            "batch": batch,
            "length": int(length) if length.isdigit() else length,
            "evaluations": evaluations,
            "sampler": sampler,
        }
        steps.append(("search", {**goals, **shape, **chosen, "seed": seed}))
    elif fields or not (vocab or single):
        if prune_steps > 1:
            fields |= {"steps": prune_steps, "schedule": schedule}
            fields |= {"recover": recover / prune_steps, "learning_rate": learning_rate} if recover else {}
        steps.append(("prune", {**fields, **chosen, "scope": scope, "seed": seed}))
    if single:
        steps.append(("sparsify", {**single, **chosen, "scope": scope, "seed": seed}))
    if recover:
        steps.append(("distill", distilled))
    if vocab:
        # Last, since student and teacher must read the same tokens.
        steps.append(("prune_vocabulary", {"corpus": vocab}))
    run_pass(
        steps,
        model=model,
        task=task or str(vocab),
        output=output,
        overwrite=overwrite,
        resume=resume,
        seed=seed,
        split=split,
        cost=cost,
        optimize=optimize,
    )


def _of_gates(fields: dict[str, Any], goals: dict[str, Any], single: dict[str, Any]) -> dict[str, Any]:
    """The targets of learned gates, with what they have no use for refused."""
    if other := [name for name in (*fields, *goals, *single) if name not in ("heads", "ffn")]:
        raise UsageError(f"--method l0 learns gates on --heads and --ffn: leave out --{other[0].replace('_', '-')}")
    return fields
