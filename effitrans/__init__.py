"""effitrans: make a Transformer smaller and faster, and prove it.

The verbs and their configs are imported when first used, so that `import effitrans` stays light. The import
alone is enough for transformers to load effitrans checkpoints:

    import effitrans
    from transformers import AutoModelForSequenceClassification
    model = AutoModelForSequenceClassification.from_pretrained("runs/quickstart/model")
"""

from typing import TYPE_CHECKING

from effitrans import registration, versions
from effitrans.lazy import exports

if TYPE_CHECKING:
    from effitrans.attention import (
        BlockSparse,
        ByLength,
        Full,
        Hybrid,
        Kernel,
        Linformer,
        Local,
        Nystrom,
        Performer,
        Strided,
        swap_attention,
    )
    from effitrans.checkpoint import load_model, save
    from effitrans.distillation import (
        AttentionTransfer,
        Augmentation,
        Distillation,
        Linearization,
        SequenceLevel,
        TeacherCache,
        WordReplacement,
        distill,
        linearize,
        make_student,
    )
    from effitrans.errors import CheckpointError, RunFailed, TrainingDiverged, UsageError, VersionError, WrongResult
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
    from effitrans.quantization import (
        AWQ,
        FP4,
        GPTQ,
        NF4,
        QAT,
        RTN,
        Int8,
        Int8QAT,
        Int8Smooth,
        Int8Static,
        LLMInt8,
        quantize,
    )
    from effitrans.recipes import run
    from effitrans.reporting import report
    from effitrans.tasks import Task, load_task
    from effitrans.training import Training, TrainResult, train

__version__ = "0.1.0"

__all__, __getattr__ = exports(
    __name__,
    {
        # Linear, which would hide that of torch.nn, comes from effitrans.attention.
        ".attention": (
            "BlockSparse",
            "ByLength",
            "Full",
            "Hybrid",
            "Kernel",
            "Linformer",
            "Local",
            "Nystrom",
            "Performer",
            "Strided",
            "swap_attention",
        ),
        ".checkpoint": ("load_model", "save"),
        ".distillation": (
            "AttentionTransfer",
            "Augmentation",
            "Distillation",
            "Linearization",
            "SequenceLevel",
            "TeacherCache",
            "WordReplacement",
            "distill",
            "linearize",
            "make_student",
        ),
        ".errors": ("CheckpointError", "RunFailed", "TrainingDiverged", "UsageError", "VersionError", "WrongResult"),
        ".evaluation": ("Cost", "Record", "attention_error", "evaluate"),
        ".exporting": ("export",),
        ".models": ("EffitransConfig",),
        ".pruning": (
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
        ".quantization": (
            "AWQ",
            "FP4",
            "GPTQ",
            "NF4",
            "QAT",
            "RTN",
            "Int8",
            "Int8QAT",
            "Int8Smooth",
            "Int8Static",
            "LLMInt8",
            "quantize",
        ),
        ".recipes": ("run",),
        ".reporting": ("report",),
        ".inference": ("optimize",),
        ".tasks": ("Task", "load_task"),
        ".training": ("TrainResult", "Training", "train"),
    },
)


def __dir__() -> list[str]:
    return __all__


versions.check_versions()
registration.install()
