"""What the server that forks the commands imports beforehand, and how briefly they measure what a model costs."""

from importlib import import_module

from effitrans.evaluation import Cost

BRIEF = {
    "batches": (1,),
    "lengths": ("data",),
    "min_repeats": 2,
    "min_seconds": 0.0,
    "max_seconds": 1.0,
    "memory": False,
    "flops": False,
}
for name, value in BRIEF.items():
    Cost.model_fields[name].default = value
Cost.model_rebuild(force=True)

for module in (
    "cli",
    "distillation",
    "evaluation.harness",
    "exporting",
    "pruning",
    "quantization",
    "recipes.attention",
    "recipes.runner",
    "reporting",
):
    import_module(f"effitrans.{module}")
