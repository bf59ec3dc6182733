"""BLEU and chrF by sacrebleu (Post 2018), resampled through its own per-sentence statistics."""

from importlib import import_module
from typing import Any, ClassVar

import numpy as np
from datasets import Features

from effitrans.errors import UsageError
from effitrans.tasks.metrics.base import ExampleMetric
from effitrans.tasks.metrics.text import as_list, text_features
from effitrans.versions import check_versions


class _Sacrebleu(ExampleMetric):
    scorer: ClassVar[str]

    def __init__(self, **options: Any):
        super().__init__(**options)
        check_versions("translation")
        try:
            self._scorer = getattr(import_module("sacrebleu.metrics"), self.scorer)()
        except ImportError:
            raise UsageError(f"metric {self.name!r} needs sacrebleu: pip install 'effitrans[translation]'") from None

    @property
    def signature(self) -> str:
        """sacrebleu's signature (tokenizer, smoothing, version), to be quoted with the score."""
        return str(self._scorer.get_signature())

    def arrow_types(self) -> list[Features]:
        return text_features()

    def statistics(self, *inputs: Any) -> np.ndarray:
        predictions, references = list(inputs[0]), [as_list(reference) for reference in inputs[1]]
        most = max(map(len, references), default=1)
        # sacrebleu wants one stream a reference; None says that an example has fewer.
        streams = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
        return np.asarray(self._scorer._extract_corpus_statistics(predictions, streams), dtype=float)

    def value(self, sums: np.ndarray) -> np.ndarray:
        rows = np.rint(sums.reshape(-1, sums.shape[-1])).astype(int).tolist()
        scores = [self._scorer._compute_score_from_stats(row).score for row in rows]
        return np.array(scores).reshape(sums.shape[:-1])


class Bleu(_Sacrebleu):
    """Corpus BLEU, 0 to 100, with sacrebleu's default tokenizer (13a)."""

    name = "bleu"
    scorer = "BLEU"


class Chrf(_Sacrebleu):
    """Corpus chrF2, 0 to 100."""

    name = "chrf"
    scorer = "CHRF"
