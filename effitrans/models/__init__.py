"""The base Transformer: a transformers model of effitrans's own, as encoder, decoder or encoder-decoder."""

from effitrans.models.backbone import EffitransModel, EffitransPreTrainedModel
from effitrans.models.classification import (
    EffitransForImageClassification,
    EffitransForQuestionAnswering,
    EffitransForSequenceClassification,
    EffitransForTokenClassification,
)
from effitrans.models.configuration import EffitransConfig
from effitrans.models.language import EffitransForCausalLM, EffitransForMaskedLM, EffitransForSeq2SeqLM
from effitrans.models.registry import register

__all__ = [
    "EffitransConfig",
    "EffitransForCausalLM",
    "EffitransForImageClassification",
    "EffitransForMaskedLM",
    "EffitransForQuestionAnswering",
    "EffitransForSeq2SeqLM",
    "EffitransForSequenceClassification",
    "EffitransForTokenClassification",
    "EffitransModel",
    "EffitransPreTrainedModel",
    "register",
]

register()
