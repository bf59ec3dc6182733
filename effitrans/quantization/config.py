"""The configs of the quantization schemes, and the registry that the command line and recipes read."""

from typing import Annotated, ClassVar, Literal, Self

import pydantic
from pydantic import Field, field_validator, model_validator

from effitrans.config import Config, Count, Epochs, Rate, Seed, Size
from effitrans.errors import UsageError, unknown_name
from effitrans.layers import parse_layers
from effitrans.quantization.observers import OBSERVERS

HEADS_AND_TABLES = (
    "classifier",
    "score",
    "qa_outputs",
    "embed_patches",
    "relative_attention_bias",
    "position_bias",
)
"""What every scheme leaves as it is: task heads (few bytes, and every error there lands on the prediction), the
projection of raw pixels, and tables of attention biases (a number for each head, not a vector for each token)."""


def _known_observer(name: str) -> str:
    if name not in OBSERVERS:
        raise unknown_name("observer", name, OBSERVERS)
    return name


class Scheme(Config):
    """What all schemes share: which modules are taken, the bound on what it may cost, the calibration examples."""

    verb: ClassVar[str] = "quantize"

    embeddings: bool = True
    """Store embedding tables in int8. An output layer tied to a table is quantized only together with it."""
    skip: tuple[int | str, ...] = HEADS_AND_TABLES
    """Modules to leave as they are: a full path, or one dotted part of paths, with `*` and `?` as wildcards; or the
    numbers of layers, counted from 0 over the model (`0-1,5`). What you pass replaces the default, which names task
    heads. A name that matches nothing is refused."""
    max_error: Annotated[float, Field(gt=0)] | None = None
    """Largest relative error (L2) of the model's output on the calibration data. The layers that cost most stay in
    floating point until it holds. Default: no bound."""
    max_drop: Annotated[float, Field(ge=0)] | None = None
    """Largest loss of the task's first metric on the validation split, in points (0.3: from 90.0 to 89.7 %; metrics
    that are no proportions, such as a perplexity, in hundredths). Layers stay as under `max_error`."""
    calibration_examples: Count = 128
    """Examples that a scheme which measures, or a bound, looks at."""
    batch_size: Count = 16
    """Examples a calibration batch; bounds the memory. A DataLoader has its own."""
    seed: Seed = 0
    """Seed with which the calibration examples are drawn from a task or a data set."""

    @field_validator("skip", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return () if value in ((), []) else parse_layers(value)

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if self.max_error is not None and self.max_drop is not None:
            raise UsageError("max_error and max_drop are two ways to bound the loss: give one of them")
        return self

    @property
    def skipped(self) -> str:
        """`skip` as text, for messages."""
        return ", ".join(map(str, self.skip))

    @property
    def must_match(self) -> bool:
        """Whether a name to skip that matches nothing is a mistake: those of the default are not."""
        return "skip" in self.model_fields_set


class Int8(Scheme):
    """Scheme `int8-dynamic`: int8 weights, int8 activations quantized while the model runs, an integer product.

    Weights have one scale for each output channel (symmetric), activations one scale and one zero point for each
    token (asymmetric), embeddings one scale for each row. No calibration data are needed but for a bound. Biases,
    norms and the arithmetic between the products keep the model's floating-point type.
    """


class Int8Smooth(Scheme):
    """Scheme `int8-smooth`: `int8-dynamic` after SmoothQuant and bias correction, both from calibration data."""

    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    """Shares of the activations' outliers that are moved into the weights; each layer takes the best one, or none."""
    fold: bool = True
    """Fold the factors into the norm or projection before the layer where that leaves the model's function as it
    is; elsewhere the layer keeps them. False: all layers keep them."""
    bias_correction: bool = True
    """Take what rounding the weights changes in the mean output on the calibration data out of the biases."""


class Int8Static(Scheme):
    """Scheme `int8-static`: int8 weights per output channel, activations with one fixed scale and zero point a layer.

    Faster than `int8-dynamic`, as no ranges are looked for while the model runs, and less accurate.
    """

    observer: str = "mse"
    """How the range of a layer's input is chosen: minmax, moving-average, percentile, mse or entropy."""
    smooth: bool = True
    """SmoothQuant first; it matters more here than with `int8-dynamic`."""
    alphas: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    """See `Int8Smooth.alphas`."""
    fold: bool = True
    """See `Int8Smooth.fold`."""
    bias_correction: bool = True
    """Take what rounding the weights changes in the mean output on the calibration data out of the biases."""

    @field_validator("observer")
    @classmethod
    def _known_observer(cls, name: str) -> str:
        return _known_observer(name)


class Trained(Scheme):
    """What the schemes that train share. They distil the model from what it was in floating point."""

    epochs: Epochs = 1.0
    """Passes over the training data."""
    max_steps: Count | None = None
    """Optimizer steps, whatever the number of epochs."""
    learning_rate: Rate = 2e-5
    """Peak learning rate."""
    batch_size: Count = 32
    """Examples a batch, in training and calibration."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the products in training; see `Training.precision`."""
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the floating-point model's answers in the loss, against that of the labels; see `Distillation.alpha`."""

    @model_validator(mode="after")
    def _no_bound(self) -> Self:
        if self.max_error is not None or self.max_drop is not None:
            raise UsageError(f"{scheme_name(self)} trains all layers together: leave max_error and max_drop out")
        return self


class Int8QAT(Trained):
    """Scheme `int8-qat`: train with fake quantization under the floating-point model, then store true int8."""

    activations: Literal["dynamic", "static"] = "dynamic"
    """"dynamic": a range for each token, as `int8-dynamic`. "static": a range for each layer, as `int8-static`, that
    is calibrated first; its step is then learned."""
    steps: Literal["learned", "largest"] = "learned"
    """Steps of the weights: "learned" (LSQ), or always the one that holds the largest weight of a channel."""
    observer: str = "mse"
    """See `Int8Static.observer`; for static activations."""

    @field_validator("observer")
    @classmethod
    def _known_observer(cls, name: str) -> str:
        return _known_observer(name)


class LowBit(Scheme):
    """What the weight-only schemes share: weights of few bits in groups, floating-point activations."""

    bits: Literal[2, 3, 4, 8] = 4
    """Bits a weight. They are stored packed: 3 bits take 3 bits."""
    group_size: Annotated[Size, Field(ge=8)] | None = 64
    """Neighbouring input features that share a scale (bfloat16) and a zero point (`bits` bits); must divide the
    width of every layer. None: one group a row. On CPUs 4 bits run through PyTorch's packed kernel for groups of
    32, 64, 128 and 256."""


class RTN(LowBit):
    """Scheme `rtn`: each weight rounded to the nearest point of its group's grid. Needs no data."""


class GPTQ(LowBit):
    """Scheme `gptq`: weights rounded one input feature after the other, those to come making up for the error."""

    act_order: bool = True
    """Begin with the features whose inputs are largest."""
    damping: Annotated[float, Field(gt=0)] = 0.01
    """Added to the diagonal of the Hessian, as a fraction of its mean."""
    block: Count = 128
    """Features after which the rest of the weight is updated at once; changes the speed alone."""
    scaling: bool = False
    """Scale the input features as `awq` does, before."""


class AWQ(LowBit):
    """Scheme `awq`: features with large inputs are scaled up and groups clipped; weights rounded to the nearest."""


class QAT(Trained):
    """Scheme `qat`: train with weights of few bits under the floating-point model, then store them packed.

    Weights have a learned step (LSQ) and a fixed zero point for each group; activations are floating point. What
    rounding alone cannot do, 2 and 3 bits, is what it is for. It wants a larger learning rate than int8.
    """

    bits: Literal[2, 3, 4, 8] = 2
    """Bits a weight; see `LowBit.bits`."""
    group_size: Annotated[Size, Field(ge=8)] | None = 64
    """See `LowBit.group_size`."""
    learning_rate: Rate = 1e-4
    """Peak learning rate."""


class FourBit(Scheme):
    """What `nf4` and `fp4` share: bitsandbytes' 4-bit weights in blocks, floating-point activations. Need no data."""

    block_size: Literal[32, 64, 128, 256, 512, 1024] = 64
    """Neighbouring weights, row after row, that share a magnitude."""
    double_quantization: bool = True
    """Store the magnitudes in 8 bits too."""


class NF4(FourBit):
    """Scheme `nf4`: 16 values with equal shares of a normal distribution."""


class FP4(FourBit):
    """Scheme `fp4`: 4-bit floating point."""


class LLMInt8(Scheme):
    """Scheme `llm-int8`: int8 weights and activations, input features with outliers in floating point."""

    threshold: Annotated[float, Field(ge=0)] = 6.0
    """Magnitude from which an entry makes its input feature an outlier. 0: there are no outliers."""


SCHEMES: dict[str, type[Scheme]] = {
    "int8-dynamic": Int8,
    "int8-smooth": Int8Smooth,
    "int8-static": Int8Static,
    "int8-qat": Int8QAT,
    "rtn": RTN,
    "gptq": GPTQ,
    "awq": AWQ,
    "qat": QAT,
    "nf4": NF4,
    "fp4": FP4,
    "llm-int8": LLMInt8,
}
"""Scheme name, as recipes and `--scheme` write it -> config class. A new scheme is one line here and one in
`effitrans.quantization.quantize.METHODS`."""


def scheme_name(config: pydantic.BaseModel) -> str:
    """The name of the scheme that a config belongs to."""
    return next(name for name, known in SCHEMES.items() if known is type(config))


def scheme_config(name: str) -> Scheme:
    """The config of the scheme `name` with its defaults.

    Raises:
        UsageError: an unknown scheme, with the nearest one.
    """
    if name not in SCHEMES:
        raise unknown_name("quantization scheme", name, SCHEMES)
    return SCHEMES[name]()
