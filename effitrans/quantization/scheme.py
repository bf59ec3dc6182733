"""What every quantization scheme is: a config that says which modules it takes, and does it.

A scheme is one file in `effitrans/quantization/schemes` and one line in `SCHEMES` there. Its class holds the settings,
its `name`, what it uses data for, what it refuses, and `apply`.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator
from torch import nn
from transformers import PreTrainedModel

from effitrans.config import Config, Count, Seed
from effitrans.errors import UsageError
from effitrans.layers import parse_layers
from effitrans.quantization.calibration import CalibrationData
from effitrans.quantization.replacement import QuantizationResult, Replacement, install, int8_replacements
from effitrans.quantization.selection import Selection, Target, select

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


DataUse = Literal["nothing", "calibration", "training"]


class Scheme(Config):
    """Base of the schemes: which modules are taken, the bound on what it may cost, the calibration examples."""

    verb: ClassVar[str] = "quantize"
    name: ClassVar[str]
    """The name in the registry, on the command line and in recipes."""
    uses_data_for: ClassVar[DataUse] = "nothing"
    """What the scheme cannot do without data. A bound needs calibration data with any scheme."""

    embeddings: bool = True
    """Store embedding tables in int8. An output layer tied to a table is quantized only together with it."""
    skip: tuple[int | str, ...] = HEADS_AND_TABLES
    """Modules to leave as they are: a full path, or one dotted part of paths, with `*` and `?` as wildcards; or the
    numbers of layers, counted from 0 over the model (`0-1,5`). What you pass replaces the default, which names task
    heads. A name that matches nothing is refused."""
    max_error: Annotated[float, Field(gt=0)] | None = None
    """Largest relative error (L2) of the model's output on the calibration data. The most sensitive layers are kept in
    floating point until it holds. Default: no bound."""
    max_drop: Annotated[float, Field(ge=0)] | None = None
    """Largest loss of the task's first metric on the validation split, in points (0.3: from 90.0 to 89.7 %; metrics
    that are no proportions, such as a perplexity, in hundredths). Layers are kept as under `max_error`."""
    calibration_examples: Count = 128
    """Number of calibration examples, for schemes that calibrate and for a bound."""
    batch_size: Count = 16
    """Examples per calibration batch; bounds the memory. A DataLoader has its own."""
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

    def select(self, model: nn.Module) -> Selection:
        """The modules that are quantized and the paths of those that are left.

        Raises:
            UsageError: a name to skip matches nothing, layers are stored sparsely, or what `check` refuses.
        """
        selection = select(
            model, self.name, embeddings=self.embeddings, skip=self.skip, must_match="skip" in self.model_fields_set
        )
        self.check(selection)
        return selection

    def check(self, selection: Selection) -> None:
        """Refuse what the structure of a model already tells that the scheme cannot quantize.

        Raises:
            UsageError: with the layer and the remedy.
        """

    def apply(self, model: PreTrainedModel, data: CalibrationData) -> QuantizationResult:
        """Quantize `model` in place.

        Raises:
            UsageError: what `select` refuses; too little calibration data, or data that are not finite. The model is
                then untouched.
        """
        raise NotImplementedError


class LinearScheme(Scheme):
    """Base of the schemes with a format of their own for linear layers.

    Embedding tables, and output layers tied to them, are stored in int8.
    """

    def check(self, selection: Selection) -> None:
        require_linears(self, selection)

    def apply(self, model: PreTrainedModel, data: CalibrationData) -> QuantizationResult:
        selection = self.select(model)
        replacements, notes = self.replace_linears(model, selection.untied, data)
        tables = int8_replacements(selection.tables, {})
        install(model, tables)
        return QuantizationResult([*replacements, *tables], selection.left, notes)

    def replace_linears(
        self, model: PreTrainedModel, targets: list[Target], data: CalibrationData
    ) -> tuple[list[Replacement], dict[str, Any]]:
        """Replace linear layers in place; gives the replacements, and facts for the model's history."""
        replacements = [Replacement.of(target, self.build(target.module)) for target in targets]
        install(model, replacements)
        return replacements, {}

    def build(self, linear: nn.Module) -> nn.Module:
        """The quantized module of one `nn.Linear` or `Conv1D`."""
        raise NotImplementedError


def require_linears(config: Scheme, selection: Selection) -> None:
    """Refuse a selection of tables, and layers tied to them, alone."""
    if not selection.untied:
        raise UsageError(
            f"{config.name} has a format for linear layers, and skip={', '.join(map(str, config.skip))} leaves none: "
            "use int8-dynamic for tables alone"
        )
