"""Heads that classify: whole sequences (or regress), tokens, answer spans, images.

Shapes: B batch, L length, C hidden size, K labels.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import (
    ImageClassifierOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.utils.generic import can_return_tuple

from effitrans.errors import UsageError
from effitrans.models.backbone import EffitransModel, EffitransPreTrainedModel
from effitrans.models.configuration import EffitransConfig


def pool(hidden_states: Tensor, attention_mask: Tensor | None, form: str) -> Tensor:
    """One vector a sequence, [B, C]: the mean over the tokens of an encoder, the last token of a decoder (the only
    one that has seen all). Padding, on whichever side, is left out; a sequence of nothing else gives zeros."""
    if attention_mask is None:
        return hidden_states[:, -1] if form == "decoder" else hidden_states.mean(dim=1)
    if form == "decoder":
        last_B = (attention_mask.cumsum(-1) * attention_mask).argmax(-1)
        return hidden_states[torch.arange(len(hidden_states), device=hidden_states.device), last_B]
    mask_BL1 = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
    # Not a plain product: what stands at padding may be infinite in half precision.
    total_BC = hidden_states.masked_fill(mask_BL1 == 0, 0).sum(dim=1)
    return total_BC / mask_BL1.sum(dim=1).clamp(min=1)


class _Classifier(EffitransPreTrainedModel):
    """A backbone, dropout and one linear layer."""

    forms = ("encoder", "decoder")

    def __init__(self, config: EffitransConfig, outputs: int | None = None) -> None:
        outputs = config.num_labels if outputs is None else outputs
        assert outputs is not None
        super().__init__(config)
        self.model = EffitransModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, outputs)
        self.post_init()

    def _hidden_states(self, **inputs: Any) -> Any:
        return self.model(**inputs, use_cache=False)


class EffitransForSequenceClassification(_Classifier):
    """One label, several (`problem_type="multi_label_classification"`), or numbers (`"regression"`) a sequence."""

    # Its loss is a mean over sequences; Trainer must not divide it by a number of tokens.
    accepts_loss_kwargs: ClassVar[bool] = False

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput:
        """Logits [B, K].

        Args:
            labels: [B] class numbers; [B] or [B, K] numbers for regression; [B, K] of 0.0 and 1.0 for several labels.
                Without a `problem_type` in the config, one label means regression, and the dtype tells the rest.
        """
        outputs = self._hidden_states(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        pooled_BC = pool(outputs.last_hidden_state, attention_mask, self.config.form)
        logits_BK = self.classifier(self.dropout(pooled_BC))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits_BK, config=self.config, **kwargs)
        return SequenceClassifierOutput(
            loss=loss, logits=logits_BK, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class EffitransForTokenClassification(_Classifier):
    """One label a token."""

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> TokenClassifierOutput:
        """Logits [B, L, K]. `labels` are [B, L] class numbers, -100 where there is nothing to predict."""
        outputs = self._hidden_states(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits_BLK = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits_BLK, labels=labels, config=self.config, **kwargs)
        return TokenClassifierOutput(
            loss=loss, logits=logits_BLK, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class EffitransForQuestionAnswering(_Classifier):
    """Where the answer starts and ends in the text."""

    def __init__(self, config: EffitransConfig) -> None:
        super().__init__(config, outputs=2)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        **kwargs: Any,
    ) -> QuestionAnsweringModelOutput:
        """Logits [B, L] of the start and of the end. The two labels [B] are token positions; those past the end of
        the text are left out of the loss."""
        outputs = self._hidden_states(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        start_BL, end_BL = self.classifier(self.dropout(outputs.last_hidden_state)).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_BL, end_BL, start_positions, end_positions, **kwargs)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_BL,
            end_logits=end_BL,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class EffitransForImageClassification(_Classifier):
    """One label an image, which is read as a sequence of patches or pixels."""

    main_input_name = "pixel_values"
    input_modalities = "image"
    accepts_loss_kwargs: ClassVar[bool] = False

    def __init__(self, config: EffitransConfig) -> None:
        if config.image_size is None:
            raise UsageError(
                "EffitransForImageClassification reads images: set image_size (and num_channels, patch_size)"
            )
        super().__init__(config)

    @can_return_tuple
    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Logits [B, K] of images [B, channels, height, width]. `labels` are [B] class numbers."""
        outputs = self._hidden_states(pixel_values=pixel_values, **kwargs)
        logits_BK = self.classifier(self.dropout(pool(outputs.last_hidden_state, None, self.config.form)))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits_BK, config=self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits_BK, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
