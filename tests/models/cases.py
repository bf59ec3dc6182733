"""The models that the shared suites run over, and inputs for them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from effitrans.models import (
    EffitransConfig,
    EffitransForCausalLM,
    EffitransForImageClassification,
    EffitransForMaskedLM,
    EffitransForQuestionAnswering,
    EffitransForSeq2SeqLM,
    EffitransForSequenceClassification,
    EffitransForTokenClassification,
    EffitransModel,
)
from effitrans.models.configuration import POSITIONS

VOCABULARY = 37
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "hidden_dropout": 0.0,
    "classifier_dropout": 0.0,
    "num_labels": 3,
}


def build(model_class: type[PreTrainedModel], form: str = "encoder", *, seed: int = 0, **options: Any) -> Any:
    """A tiny model in evaluation mode. Weights are larger than at a real start, so that attention, positions and
    padding all show in the outputs."""
    torch.manual_seed(seed)
    attention = options.pop("attn_implementation", "sdpa")
    options = {**SIZES, "form": form, **options}
    if form == "encoder-decoder":
        options.setdefault("num_decoder_layers", 3)
    model = model_class._from_config(EffitransConfig(**options), attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed" in name or "bias" in name.split("."):
                parameter.normal_(std=0.3)
            elif parameter.dim() == 2:
                parameter.mul_(2)
    model.tie_weights()
    return model.eval()


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    """[batch, length] tokens other than padding, which is 0."""
    return torch.randint(1, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def text(batch: int = 3, length: int = 7) -> dict[str, Tensor]:
    """Sentences of different lengths, padded on the right."""
    mask = torch.arange(length) < torch.tensor([[length], [length - 2], [length - 5]])[:batch]
    return {"input_ids": tokens(batch, length) * mask, "attention_mask": mask.long()}


def _label_positions(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"start_positions": torch.tensor([0, 2, 1]), "end_positions": torch.tensor([1, 3, 1])}


def _own_tokens(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}


def _classes(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"labels": torch.tensor([0, 2, 1])}


def _token_classes(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"labels": (inputs["input_ids"] % 3).masked_fill(inputs["attention_mask"] == 0, -100)}


def _targets(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"labels": tokens(3, 5, seed=4)}


def _pair() -> dict[str, Tensor]:
    return {**text(), "decoder_input_ids": tokens(3, 5, seed=2)}


def _images() -> dict[str, Tensor]:
    return {"pixel_values": torch.rand(3, 2, 4, 6, generator=torch.Generator().manual_seed(3))}


@dataclass(frozen=True)
class Case:
    """A model class in one form, its inputs, and its labels (None: it has no loss)."""

    name: str
    model_class: type[PreTrainedModel]
    auto_class: str
    form: str
    inputs: Callable[[], dict[str, Tensor]] = text
    labels: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, **options: Any) -> Any:
        return build(self.model_class, self.form, **{**self.options, **options})

    def labelled(self) -> dict[str, Tensor]:
        inputs = self.inputs()
        return {**inputs, **(self.labels(inputs) if self.labels else {})}


_IMAGE = {"image_size": (4, 6), "num_channels": 2, "patch_size": 2}
CASES = [
    Case("model-encoder", EffitransModel, "AutoModel", "encoder"),
    Case("model-decoder", EffitransModel, "AutoModel", "decoder"),
    Case("model-encoder-decoder", EffitransModel, "AutoModel", "encoder-decoder", _pair),
    Case("masked-lm", EffitransForMaskedLM, "AutoModelForMaskedLM", "encoder", text, _own_tokens),
    Case("causal-lm", EffitransForCausalLM, "AutoModelForCausalLM", "decoder", text, _own_tokens),
    Case("seq2seq-lm", EffitransForSeq2SeqLM, "AutoModelForSeq2SeqLM", "encoder-decoder", _pair, _targets),
    *(
        Case(f"{name}-{form}", model_class, auto_class, form, inputs, labels, options)
        for form in ("encoder", "decoder")
        for name, model_class, auto_class, inputs, labels, options in (
            (
                "sequence-classification",
                EffitransForSequenceClassification,
                "AutoModelForSequenceClassification",
                text,
                _classes,
                {},
            ),
            (
                "token-classification",
                EffitransForTokenClassification,
                "AutoModelForTokenClassification",
                text,
                _token_classes,
                {},
            ),
            (
                "question-answering",
                EffitransForQuestionAnswering,
                "AutoModelForQuestionAnswering",
                text,
                _label_positions,
                {},
            ),
            (
                "image-classification",
                EffitransForImageClassification,
                "AutoModelForImageClassification",
                _images,
                _classes,
                _IMAGE,
            ),
        )
    ),
]
CASE_IDS = [case.name for case in CASES]
TRAINABLE = [case for case in CASES if case.labels]
TRAINABLE_IDS = [case.name for case in TRAINABLE]
READS_TOKENS = [case for case in CASES if "image_size" not in case.options]
READS_TOKENS_IDS = [case.name for case in READS_TOKENS]
ALL_POSITIONS = list(POSITIONS)


def output_of(outputs: Any) -> Tensor:
    """The main output of any of the models."""
    for name in ("logits", "start_logits", "last_hidden_state"):
        if name in outputs:
            return outputs[name]
    raise AssertionError(f"no output in {list(outputs)}")
