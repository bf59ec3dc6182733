"""The configs of the quantization schemes, and the registry that the command line and recipes read."""

from pydantic import field_validator

from effitrans.config import Config

HEADS_AND_TABLES = (
    "classifier",
    "score",
    "qa_outputs",
    "embed_patches",
    "relative_attention_bias",
    "position_bias",
)
"""What `Int8` leaves as it is: task heads (few bytes, and every error there lands on the prediction), the projection
of raw pixels, and tables of attention biases (a number for each head, not a vector for each token)."""


class Int8(Config):
    """Scheme `int8-dynamic`: int8 weights, int8 activations quantized while the model runs, an integer product.

    Weights have one scale for each output channel (symmetric), activations one scale and one zero point for each
    token (asymmetric), embeddings one scale for each row. No calibration data are needed. Biases, norms and the
    arithmetic between the products keep the model's floating-point type.
    """

    embeddings: bool = True
    """Store embedding tables in int8. An output layer tied to a table is quantized only together with it."""
    skip: tuple[str, ...] = HEADS_AND_TABLES
    """Modules to leave as they are: a full path, or one dotted part of paths, with `*` and `?` as wildcards. What
    you pass replaces the default, which names task heads. A name that matches nothing is refused."""

    @field_validator("skip", mode="before")
    @classmethod
    def _one_name(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


SCHEMES: dict[str, type[Config]] = {
    "int8-dynamic": Int8,
}
"""Scheme name, as recipes and `--scheme` write it -> config class. A new scheme is one line here and one in
`effitrans.quantization.quantize.METHODS`."""
