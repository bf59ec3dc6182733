"""The configuration of the base Transformer."""

import copy
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from effitrans.errors import UsageError, unknown_name

FORMS = ("encoder", "decoder", "encoder-decoder")
POSITIONS = ("sinusoidal", "learned", "rotary", "alibi", "relative")
ACTIVATIONS = ("gelu", "relu", "swiglu")
NORMS = ("pre", "post")
NORM_TYPES = ("layer_norm", "rms_norm")

_LARGEST = {"vocab_size": 2**24, "num_hidden_layers": 2**12, "num_decoder_layers": 2**12}
"""Largest sizes that are believed; 2^20 for the others."""


class EffitransConfig(PreTrainedConfig):
    """Shape and options of the base Transformer. The defaults build a small pre-norm encoder.

    Raises `UsageError` (a `ValueError`) for an unknown option or sizes that do not fit together.

    >>> config = EffitransConfig(form="decoder", hidden_size=64, num_attention_heads=8, num_key_value_heads=2)
    >>> config.head_dim, config.intermediate_size, config.is_encoder_decoder
    (8, 256, False)
    """

    model_type: ClassVar[str] = "effitrans"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values"]

    form: str = "encoder"
    """"encoder" (sees both ways), "decoder" (causal) or "encoder-decoder"."""
    vocab_size: int = 32000
    """Number of tokens. Unused where `image_size` is set."""
    hidden_size: int = 256
    """Width of the residual stream."""
    intermediate_size: int | None = None
    """Width of the feed-forward networks; default 4 times `hidden_size` (swiglu: 8/3 times, in steps of 8, so that
    its three matrices hold as many weights as the two of the others)."""
    num_hidden_layers: int = 4
    """Number of layers; of the encoder, if there are an encoder and a decoder."""
    num_decoder_layers: int | None = None
    """Number of layers of the decoder of an encoder-decoder; default `num_hidden_layers`."""
    num_attention_heads: int = 4
    """Number of query heads."""
    num_key_value_heads: int | None = None
    """Number of key/value heads, each shared by a group of query heads; default `num_attention_heads`."""
    head_dim: int | None = None
    """Features of a head; default `hidden_size / num_attention_heads`."""
    hidden_act: str = "gelu"
    """Activation of the feed-forward networks: "gelu", "relu" or "swiglu" (gated SiLU)."""
    position: str | None = None
    """"sinusoidal" and "learned" are added to the embeddings; "rotary" turns queries and keys; "alibi" and
    "relative" (T5 buckets) are biases on the attention scores. Default "rotary", and "learned" for images, where a
    pixel means nothing without its place."""
    norm: str = "pre"
    """"pre": normalise what enters a sublayer, and once at the end; "post": normalise after each residual sum."""
    norm_type: str = "layer_norm"
    """"layer_norm" or "rms_norm"."""
    norm_eps: float = 1e-5
    """Added to the variance in the norms."""
    hidden_dropout: float = 0.1
    """Dropout on the embeddings and on what each sublayer adds to the residual stream."""
    attention_dropout: float = 0.0
    """Dropout on the attention weights."""
    classifier_dropout: float = 0.1
    """Dropout before a classification head."""
    initializer_range: float = 0.02
    """Standard deviation of embeddings (of tokens, positions and patches) and of heads at the start. The default suits
    models that see many steps; one that sees few of them, as a small translator, learns sooner from
    `hidden_size ** -0.5`, at which embeddings are as large as what the first layers add to them."""
    max_position_embeddings: int | None = None
    """Longest sequence of sinusoidal and learned positions; the other kinds have no limit. Default 512, for images
    the number of patches."""
    rope_theta: float = 10000.0
    """Base of the wavelengths of rotary positions."""
    relative_attention_num_buckets: int = 32
    """Number of distances that relative positions tell apart."""
    relative_attention_max_distance: int = 128
    """Distance in tokens from which on all share the last bucket."""
    image_size: int | list[int] | tuple[int, int] | None = None
    """Height and width in pixels (one number: square). Set, the model reads images instead of tokens."""
    num_channels: int = 1
    """Channels of an image."""
    patch_size: int = 1
    """Side in pixels of the squares an image is cut into; 1 reads it as a sequence of pixels."""
    tie_word_embeddings: bool = True
    """One matrix serves the embeddings (of encoder and decoder) and the language modelling head."""
    use_cache: bool = True
    """Whether decoders return the key/value cache."""
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    decoder_start_token_id: int | None = None
    """First token given to the decoder of an encoder-decoder; default `bos_token_id`, else `pad_token_id`."""

    def __post_init__(self, **kwargs: Any) -> None:
        if self.position is None:
            self.position = "rotary" if self.image_size is None else "learned"
        _check_names(self)
        self.is_encoder_decoder = self.form == "encoder-decoder"
        if self.is_encoder_decoder:
            self.num_decoder_layers = self.num_decoder_layers or self.num_hidden_layers
            if self.decoder_start_token_id is None:
                self.decoder_start_token_id = self.pad_token_id if self.bos_token_id is None else self.bos_token_id
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        _check_numbers(self)
        if isinstance(self.image_size, tuple):
            self.image_size = list(self.image_size)  # as JSON gives it back
        if self.image_size is not None:
            _check_image(self)
        if self.max_position_embeddings is None:
            self.max_position_embeddings = self.num_patches or 512
        if self.head_dim is None:
            self.head_dim = _default_head_dim(self)
        if self.intermediate_size is None:
            gated = self.hidden_act == "swiglu"
            self.intermediate_size = 8 * round(self.hidden_size / 3) if gated else 4 * self.hidden_size
        _check_shapes(self)
        super().__post_init__(**kwargs)

    @property
    def image_shape(self) -> tuple[int, int] | None:
        """(height, width) in pixels; None for a model of tokens."""
        if self.image_size is None:
            return None
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        height, width = self.image_size
        return height, width

    @property
    def num_patches(self) -> int | None:
        """Length of the sequence that an image becomes; None for a model of tokens."""
        if self.image_shape is None:
            return None
        height, width = self.image_shape
        return (height // self.patch_size) * (width // self.patch_size)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The config of one side. Caches size themselves by it, so the decoder's tells its own number of layers."""
        if not (decoder and not encoder and self.is_encoder_decoder):
            return self
        assert self.num_decoder_layers is not None
        config = copy.copy(self)
        config.num_hidden_layers = self.num_decoder_layers
        return config


def _check_names(config: EffitransConfig) -> None:
    options = {"form": FORMS, "hidden_act": ACTIVATIONS, "position": POSITIONS, "norm": NORMS, "norm_type": NORM_TYPES}
    for name, valid in options.items():
        if getattr(config, name) not in valid:
            raise unknown_name(name, str(getattr(config, name)), valid)
    if config.num_decoder_layers is not None and config.form != "encoder-decoder":
        raise UsageError(
            f"num_decoder_layers={config.num_decoder_layers} with form {config.form!r}: only an encoder-decoder has "
            "a second stack; set num_hidden_layers"
        )


def _check_numbers(config: EffitransConfig) -> None:
    counts = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    counts += ("num_channels", "patch_size")
    optional = ("intermediate_size", "num_decoder_layers", "head_dim", "max_position_embeddings")
    for name in (*counts, *(name for name in optional if getattr(config, name) is not None)):
        value = getattr(config, name)
        largest = _LARGEST.get(name, 2**20)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= largest:
            raise UsageError(f"{name} must be a whole number from 1 to {largest}, received {value!r}")
    for name in ("hidden_dropout", "attention_dropout", "classifier_dropout"):
        value = getattr(config, name)
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise UsageError(f"{name} must be a number from 0 up to, not including, 1, received {value!r}")
    for name in ("norm_eps", "rope_theta", "initializer_range"):
        value = getattr(config, name)
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise UsageError(f"{name} must be a number above 0, received {value!r}")


def _default_head_dim(config: EffitransConfig) -> int:
    if config.hidden_size % config.num_attention_heads:
        raise UsageError(
            f"hidden_size {config.hidden_size} does not divide into {config.num_attention_heads} attention heads: "
            "choose a multiple of num_attention_heads, or set head_dim"
        )
    return config.hidden_size // config.num_attention_heads


def _check_shapes(config: EffitransConfig) -> None:
    if config.num_attention_heads % config.num_key_value_heads:  # type: ignore[operator]
        raise UsageError(
            f"{config.num_attention_heads} attention heads do not divide into groups for "
            f"{config.num_key_value_heads} key/value heads: num_key_value_heads must divide num_attention_heads"
        )
    if config.position == "rotary" and config.head_dim % 2:  # type: ignore[operator]
        raise UsageError(
            f"rotary positions turn pairs of features, so head_dim must be even, received {config.head_dim}: "
            "change num_attention_heads or head_dim, or choose another position"
        )
    buckets, distance = config.relative_attention_num_buckets, config.relative_attention_max_distance
    if config.position == "relative" and (buckets < 4 or buckets % 2 or distance <= buckets // 2):
        raise UsageError(
            "relative positions need an even relative_attention_num_buckets of at least 4 and a "
            f"relative_attention_max_distance above half of it, received {buckets} and {distance}"
        )
    if config.image_size is None:
        _check_tokens(config)
    elif config.position in ("sinusoidal", "learned") and config.num_patches > config.max_position_embeddings:  # type: ignore[operator]
        raise UsageError(
            f"the images give {config.num_patches} patches, more than max_position_embeddings "
            f"{config.max_position_embeddings}: leave it out, or enlarge patch_size"
        )


def _check_tokens(config: EffitransConfig) -> None:
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        value = getattr(config, name)
        for token in value if isinstance(value, list | tuple) else [value]:
            if token is not None and not 0 <= token < config.vocab_size:
                raise UsageError(
                    f"{name} {token} is no token of a vocabulary of {config.vocab_size}: "
                    f"give a number from 0 to {config.vocab_size - 1}, or None"
                )
    if config.is_encoder_decoder and (config.pad_token_id is None or config.decoder_start_token_id is None):
        raise UsageError("an encoder-decoder needs a pad_token_id, with which it fills the decoder's inputs")


def _check_image(config: EffitransConfig) -> None:
    size = config.image_size
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise UsageError(f"image_size must be one number or (height, width) in pixels, received {size!r}")
    if config.is_encoder_decoder:
        raise UsageError("an encoder-decoder reads tokens: image_size goes with form 'encoder' or 'decoder'")
    if any(side % config.patch_size for side in sides):
        raise UsageError(f"an image of {sides[0]} x {sides[1]} does not cut into patches of side {config.patch_size}")
