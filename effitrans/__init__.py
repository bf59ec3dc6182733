"""effitrans: make a Transformer smaller and faster, and prove it.

The verbs and their configs are imported when first used, so that `import effitrans` stays light. The import
alone is enough for transformers to load effitrans checkpoints:

    import effitrans
    from transformers import AutoModelForSequenceClassification
    model = AutoModelForSequenceClassification.from_pretrained("runs/quickstart/model")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from effitrans import registration, versions

if TYPE_CHECKING:
    from effitrans.attention import (
        BlockSparse,
        ByLength,
        Full,
        Hybrid,
        Kernel,
        Linear,
        Linformer,
        Local,
        Nystrom,
        Performer,
        Strided,
        swap_attention,
    )
    from effitrans.distillation import Distillation, Linearization, distill, linearize, make_student
    from effitrans.errors import CheckpointError, UsageError
    from effitrans.evaluation import Cost, Record, attention_error, evaluate
    from effitrans.exporting import export
    from effitrans.inference import optimize
    from effitrans.models import EffitransConfig
    from effitrans.pruning import (
        FFNPruning,
        HeadPruning,
        HiddenPruning,
        Importance,
        L0Pruning,
        LayerPruning,
        Pruning,
        Scores,
        Search,
        Sparsity,
        VocabularyPruning,
        measure_importance,
        prune,
        prune_vocabulary,
    )
    from effitrans.quantization import Int8, quantize
    from effitrans.recipes import run
    from effitrans.reporting import report
    from effitrans.tasks import Task, load_task
    from effitrans.training import Training, train

__version__ = "0.1.0"

_EXPORTS: dict[str, tuple[str, ...]] = {
    "effitrans.attention": (
        "BlockSparse",
        "ByLength",
        "Full",
        "Hybrid",
        "Kernel",
        "Linear",
        "Linformer",
        "Local",
        "Nystrom",
        "Performer",
        "Strided",
        "swap_attention",
    ),
    "effitrans.distillation": ("Distillation", "Linearization", "distill", "linearize", "make_student"),
    "effitrans.errors": ("CheckpointError", "UsageError"),
    "effitrans.evaluation": ("Cost", "Record", "attention_error", "evaluate"),
    "effitrans.exporting": ("export",),
    "effitrans.models": ("EffitransConfig",),
    "effitrans.pruning": (
        "FFNPruning",
        "HeadPruning",
        "HiddenPruning",
        "Importance",
        "L0Pruning",
        "LayerPruning",
        "Pruning",
        "Scores",
        "Search",
        "Sparsity",
        "VocabularyPruning",
        "measure_importance",
        "prune",
        "prune_vocabulary",
    ),
    "effitrans.quantization": ("Int8", "quantize"),
    "effitrans.recipes": ("run",),
    "effitrans.reporting": ("report",),
    "effitrans.inference": ("optimize",),
    "effitrans.tasks": ("Task", "load_task"),
    "effitrans.training": ("Training", "train"),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = sorted([*_MODULE_OF, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'effitrans' has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__


versions.check_versions()
registration.install()
