"""What the server that forks the commands imports beforehand, and how briefly they measure what a model costs."""

from functools import partial

import effitrans.cli
import effitrans.distillation
import effitrans.exporting
import effitrans.pruning
import effitrans.quantization
import effitrans.recipes  # takes the class itself, before commands get one with brief defaults
import effitrans.reporting  # noqa: F401
from effitrans import evaluation

brief = {
    "batches": (1,),
    "lengths": ("data",),
    "min_repeats": 2,
    "min_seconds": 0.0,
    "max_seconds": 1.0,
    "memory": False,
    "flops": False,
}
evaluation.Cost = partial(evaluation.Cost, **brief)  # type: ignore[misc, assignment]
