"""The base Transformer without a task head: stacks of layers, and the encoder, decoder or both that they form.

How weights start: embeddings of tokens, positions and patches with one standard deviation (0.02), so that none drowns
the others and a tied head does not begin by repeating its input; linear layers N(0, 1/fan_in), which keeps signals at
their size; with pre-norm, the last matrix of each residual branch is further divided by the square root of the number
of branches (Radford et al. 2019), so that deep stacks start near the identity.

Shapes: B batch, L length, S encoder length, C hidden size.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPastAndCrossAttentions, Seq2SeqModelOutput
from transformers.utils.generic import ModelOutput, can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from effitrans.errors import UsageError
from effitrans.models.attention import EffitransAttention
from effitrans.models.cache import CACHE, past_length, self_attention_cache, takes_cache
from effitrans.models.configuration import FORMS, EffitransConfig
from effitrans.models.images import PatchEmbedding
from effitrans.models.layers import EffitransLayer, EffitransMLP, make_norm
from effitrans.models.positions import (
    AlibiBias,
    LearnedPositions,
    RelativeBias,
    SinusoidalPositions,
    alibi_slopes,
    position_ids_from,
    rotary_angles,
    sinusoidal_table,
)


class EffitransPreTrainedModel(PreTrainedModel):
    """What all models of the family share: loading, initialisation, what transformers may do with them."""

    config_class = EffitransConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["EffitransLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["cache", "past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": EffitransLayer,
        "attentions": OutputRecorder(EffitransAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(EffitransAttention, index=1, layer_name="cross_attn"),
    }
    forms: ClassVar[tuple[str, ...]] = FORMS
    """Values of `config.form` that the class can be built with."""

    config: EffitransConfig

    def __init__(self, config: EffitransConfig) -> None:
        if config.form not in self.forms:
            raise UsageError(
                f"{type(self).__name__} is built from form {' or '.join(map(repr, self.forms))}, the config says "
                f"{config.form!r}: set form, or choose the class of another task"
            )
        super().__init__(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, LearnedPositions):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, RelativeBias):
            init.normal_(module.weight, std=self.config.hidden_size**-0.5)
        elif isinstance(module, SinusoidalPositions):
            init.copy_(module.table, sinusoidal_table(*module.table.shape, std=self.config.initializer_range))
        elif isinstance(module, AlibiBias):
            init.copy_(module.slopes, alibi_slopes(self.config.num_attention_heads))


class EffitransStack(EffitransPreTrainedModel):
    """The encoder or the decoder: embeddings, layers and, with pre-norm, a last norm.

    Args:
        config: of the whole model.
        is_causal: a decoder, whose tokens see only those before them, and which may have a cache.
        has_cross: a decoder that attends to an encoder.
    """

    def __init__(self, config: EffitransConfig, *, is_causal: bool, has_cross: bool = False) -> None:
        super().__init__(config)
        self.is_causal = is_causal
        self.has_cross = has_cross
        self.gradient_checkpointing = False
        if config.image_size is None:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        else:
            self.embed_patches = PatchEmbedding(config)
            self._input_embed_layer = "embed_patches"
        assert config.max_position_embeddings is not None
        self.embed_positions: SinusoidalPositions | LearnedPositions | None = None
        if config.position == "sinusoidal":
            self.embed_positions = SinusoidalPositions(
                config.max_position_embeddings, config.hidden_size, config.initializer_range
            )
        elif config.position == "learned":
            self.embed_positions = LearnedPositions(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        count = config.num_decoder_layers if has_cross else config.num_hidden_layers
        assert count is not None
        self.layers = nn.ModuleList(
            EffitransLayer(config, index, is_causal=is_causal, has_cross=has_cross) for index in range(count)
        )
        self.norm = make_norm(config) if config.norm == "pre" else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PatchEmbedding):
            # Pixels lie between 0 and 1, so they vary by about a third.
            _init_linear(module.projection, gain=3 * self.config.initializer_range)
        elif isinstance(module, EffitransAttention | EffitransMLP):
            branches = len(self.layers) * (3 if self.has_cross else 2) if self.config.norm == "pre" else 1
            for name, linear in module.named_children():
                if isinstance(linear, nn.Linear):
                    _init_linear(linear, gain=branches**-0.5 if name in ("o_proj", "down_proj") else 1.0)

    @takes_cache
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run the stack on exactly one of `input_ids`, `inputs_embeds` and `pixel_values`."""
        embeds_BLC = self._embed(input_ids, inputs_embeds, pixel_values)
        if self.is_causal and use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
            if self.has_cross:
                past_key_values = EncoderDecoderCache(past_key_values, DynamicCache(config=self.config))
        cache = None if past_key_values is None else self_attention_cache(past_key_values)
        mask = self._self_mask(embeds_BLC, attention_mask, cache, position_ids)
        encoder_mask = self._cross_mask(embeds_BLC, encoder_attention_mask, encoder_hidden_states)
        past = 0 if cache is None else past_length(cache)
        if position_ids is None:
            position_ids = position_ids_from(attention_mask, embeds_BLC.shape[1], past, embeds_BLC.device)
        angles = None
        if self.config.position == "rotary":
            assert self.config.head_dim is not None
            angles = rotary_angles(position_ids, self.config.head_dim, self.config.rope_theta)
        hidden_states = embeds_BLC
        if self.embed_positions is not None:
            self.embed_positions.check_length(past + embeds_BLC.shape[1])
            hidden_states = hidden_states + self.embed_positions(position_ids).to(hidden_states.dtype)
        hidden_states = self.dropout(hidden_states)
        for layer in self.layers:
            # What needs gradients goes by position: reentrant checkpointing looks for it there.
            hidden_states = layer(
                hidden_states,
                mask,
                encoder_hidden_states,
                encoder_mask,
                position_embeddings=angles,
                position_ids=position_ids,
                **{CACHE: past_key_values},  # under its own name, as checkpointing takes it away
                **kwargs,
            )
        if self.norm is not None:
            hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=hidden_states,
            **{CACHE: past_key_values},  # type: ignore[arg-type]
        )

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None, pixel_values: Tensor | None) -> Tensor:
        given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "pixel_values": pixel_values}
        received = [name for name, value in given.items() if value is not None]
        wanted = "input_ids" if self.config.image_size is None else "pixel_values"
        if len(received) != 1 or received[0] not in (wanted, "inputs_embeds"):
            raise UsageError(
                f"expected exactly one of {wanted} and inputs_embeds, received {' and '.join(received) or 'neither'}"
            )
        if pixel_values is not None:
            return self.embed_patches(pixel_values)
        return self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

    def _self_mask(
        self, embeds_BLC: Tensor, attention_mask: Tensor | None, cache: Cache | None, position_ids: Tensor | None
    ) -> Any:
        if not self.is_causal:
            return create_bidirectional_mask(
                config=self.config, inputs_embeds=embeds_BLC, attention_mask=attention_mask
            )
        # Only position ids that the caller gave: those that start anew mark texts packed into one sequence.
        return create_causal_mask(
            config=self.config,
            inputs_embeds=embeds_BLC,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: cache},  # type: ignore[arg-type]
        )

    def _cross_mask(self, embeds_BLC: Tensor, mask: Tensor | None, encoder_hidden_states: Tensor | None) -> Any:
        if not self.has_cross:
            return None
        if encoder_hidden_states is None:
            raise UsageError("this decoder attends to an encoder: pass encoder_hidden_states")
        return create_bidirectional_mask(
            config=self.config,
            inputs_embeds=embeds_BLC,
            attention_mask=mask,
            encoder_hidden_states=encoder_hidden_states,
        )


class EffitransModel(EffitransPreTrainedModel):
    """The base Transformer, giving hidden states. `encoder` and `decoder` are its stacks; which there are depends
    on `config.form`.

    >>> import torch
    >>> from effitrans.models import EffitransConfig, EffitransModel
    >>> model = EffitransModel(EffitransConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2)).eval()
    >>> model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state.shape
    torch.Size([1, 3, 32])
    """

    def __init__(self, config: EffitransConfig) -> None:
        super().__init__(config)
        if config.form != "decoder":
            self.encoder = EffitransStack(config, is_causal=False)
        if config.form != "encoder":
            self.decoder = EffitransStack(config, is_causal=True, has_cross=config.form == "encoder-decoder")
        if config.form == "encoder-decoder":
            self._tied_weights_keys = {"decoder.embed_tokens.weight": "encoder.embed_tokens.weight"}
        self.post_init()

    @property
    def stacks(self) -> list[EffitransStack]:
        """The encoder, the decoder, or both in this order."""
        return [getattr(self, name) for name in ("encoder", "decoder") if hasattr(self, name)]

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of what the model reads first: tokens (of the encoder, where there is one) or patches."""
        return self.stacks[0].get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embeddings of all stacks."""
        for stack in self.stacks:
            stack.set_input_embeddings(value)

    @takes_cache
    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        encoder_outputs: ModelOutput | tuple[Any, ...] | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions | Seq2SeqModelOutput:
        """Hidden states [B, L, C] of the (last) stack.

        Args:
            input_ids: [B, L] tokens; of the encoder, if there are an encoder and a decoder.
            attention_mask: [B, past + L], 1 for tokens, 0 for padding, on either side; default: no padding.
            position_ids: [B, L]; default: counted from the attention mask.
            inputs_embeds: [B, L, C] instead of `input_ids`, as the embedding gives them.
            pixel_values: [B, channels, height, width] instead of tokens, if the config has an `image_size`.
            decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds: the same for the decoder of an
                encoder-decoder.
            encoder_outputs: of an earlier run of the encoder, with `last_hidden_state` first.
            past_key_values: cache of a decoder.
            use_cache: whether a decoder returns one; default: as in the config.
        """
        if self.config.form == "encoder-decoder":
            return self._encode_and_decode(
                {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "position_ids": position_ids},
                {"input_ids": decoder_input_ids, "inputs_embeds": decoder_inputs_embeds},
                attention_mask,
                decoder_attention_mask,
                encoder_outputs,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        if any(x is not None for x in (decoder_input_ids, decoder_attention_mask, decoder_inputs_embeds)):
            raise UsageError(f"a model of form {self.config.form!r} takes no decoder_* inputs: pass input_ids")
        if self.config.form == "decoder":
            kwargs.update(past_key_values=past_key_values, use_cache=use_cache)
        return self.stacks[0](
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            **kwargs,
        )

    def _encode_and_decode(
        self,
        inputs: dict[str, Tensor | None],
        decoder_inputs: dict[str, Tensor | None],
        attention_mask: Tensor | None,
        decoder_attention_mask: Tensor | None,
        encoder_outputs: ModelOutput | tuple[Any, ...] | None,
        **kwargs: Any,
    ) -> Seq2SeqModelOutput:
        cache = {name: kwargs.pop(name) for name in ("past_key_values", "use_cache")}
        if encoder_outputs is None:
            encoded = self.encoder(**inputs, attention_mask=attention_mask, **kwargs)
        else:
            encoded = BaseModelOutput(*encoder_outputs) if isinstance(encoder_outputs, tuple) else encoder_outputs
        decoded = self.decoder(
            **decoder_inputs,
            attention_mask=decoder_attention_mask,
            encoder_hidden_states=encoded[0],
            encoder_attention_mask=attention_mask,
            **cache,
            **kwargs,
        )
        return Seq2SeqModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            **{CACHE: getattr(decoded, CACHE)},
            decoder_hidden_states=decoded.hidden_states,
            decoder_attentions=decoded.attentions,
            cross_attentions=decoded.cross_attentions,
            encoder_last_hidden_state=encoded[0],
            encoder_hidden_states=encoded.get("hidden_states"),
            encoder_attentions=encoded.get("attentions"),
        )


def _init_linear(linear: nn.Linear, gain: float = 1.0) -> None:
    init.normal_(linear.weight, std=gain * linear.in_features**-0.5)
    init.zeros_(linear.bias)
