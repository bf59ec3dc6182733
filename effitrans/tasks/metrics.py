"""The metrics each task kind may name. `effitrans.evaluation` computes them; tasks only check the names."""

CLASSIFICATION = (
    "accuracy",
    "f1",
    "f1_macro",
    "precision",
    "recall",
    "mcc",
    "roc_auc",
    "cross_entropy",
    "calibration_error",
)

METRIC_NAMES: dict[str, tuple[str, ...]] = {
    "sequence-classification": CLASSIFICATION,
    "image-classification": CLASSIFICATION,
    "regression": ("pearson", "spearman", "mse"),
    "embedding": ("spearman", "pearson", "mse"),
    "token-classification": ("entity_f1", "accuracy", "f1_macro", "cross_entropy"),
    "question-answering": ("f1_span", "exact_match", "cross_entropy"),
    "causal-lm": ("perplexity", "bits_per_byte", "cross_entropy"),
    "masked-lm": ("perplexity", "cross_entropy"),
    "seq2seq-lm": ("bleu", "chrf", "rouge_l", "exact_match", "perplexity", "cross_entropy"),
}
"""Task kind -> the metrics that are defined for it."""

HUB_PREFIX = "evaluate:"
"""`evaluate:NAME` is a metric of the hub, which any kind may name; it is looked for when it is computed."""
