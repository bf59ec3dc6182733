"""The place of the base Transformer among the Auto classes of transformers."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from effitrans.models.backbone import EffitransModel
from effitrans.models.classification import (
    EffitransForImageClassification,
    EffitransForQuestionAnswering,
    EffitransForSequenceClassification,
    EffitransForTokenClassification,
)
from effitrans.models.configuration import EffitransConfig
from effitrans.models.language import EffitransForCausalLM, EffitransForMaskedLM, EffitransForSeq2SeqLM

AUTO_CLASSES = {
    AutoModel: EffitransModel,
    AutoModelForSequenceClassification: EffitransForSequenceClassification,
    AutoModelForTokenClassification: EffitransForTokenClassification,
    AutoModelForQuestionAnswering: EffitransForQuestionAnswering,
    AutoModelForImageClassification: EffitransForImageClassification,
    AutoModelForMaskedLM: EffitransForMaskedLM,
    AutoModelForCausalLM: EffitransForCausalLM,
    AutoModelForSeq2SeqLM: EffitransForSeq2SeqLM,
}


def register() -> None:
    """Make `AutoConfig`, and `from_pretrained` and `from_config` of the Auto models, know the base Transformer.

    `import effitrans` sees to it; it may be called again.
    """
    AutoConfig.register(EffitransConfig.model_type, EffitransConfig, exist_ok=True)
    for auto_class, model_class in AUTO_CLASSES.items():
        auto_class.register(EffitransConfig, model_class, exist_ok=True)
