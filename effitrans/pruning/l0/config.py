"""What pruning by learned gates can be asked for."""

from typing import Annotated, ClassVar, Self

import pydantic

from effitrans.config import Config, Count, Epochs, Rate, Seed
from effitrans.training.config import Training

Share = Annotated[float, pydantic.Field(ge=0, lt=1)]


class L0Pruning(Config):
    """Heads and FFN neurons whose gates close while the model is trained: `prune(model, L0Pruning(ratio=0.5), task)`.

    Either `ratio`, one target for heads and neurons together, or one for each kind.
    """

    verb: ClassVar[str] = "prune"

    ratio: Share = 0.0
    """Share of the parameters of heads and FFN neurons together that is to go; the gates decide between the kinds."""
    heads: Share = 0.0
    """Share of the parameters of the attention heads that is to go."""
    ffn: Share = 0.0
    """Share of the parameters of the FFN neurons that is to go."""
    epochs: Epochs = 2.0
    """Passes over the training data, in which weights and gates learn together."""
    max_steps: Count | None = None
    """Optimizer steps, whatever the number of epochs. None: `epochs` decides."""
    batch_size: Count = 32
    """Examples a step."""
    learning_rate: Rate = 5e-5
    """Peak learning rate of the weights."""
    gate_learning_rate: Rate = 0.1
    """Learning rate of gates and multipliers, constant."""
    rise: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.5
    """Share of the steps in which the target rises from 0, linearly."""
    tolerance: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.02
    """The share that went may be this much less than the target."""
    multiple_of: Count = 8
    """FFN widths are rounded up to multiples of this where the FFN has at least twice as many neurons."""
    seed: Seed = 0
    """Of the order of the data, dropout and the noise of the gates."""

    def idle(self) -> dict[str, str]:
        found = {} if self.max_steps is None else {"epochs": "beside max_steps"}
        return found if self.ratio or self.ffn else {**found, "multiple_of": "without ffn"}

    @pydantic.model_validator(mode="after")
    def _one_kind_of_target(self) -> Self:
        if not (self.ratio or self.heads or self.ffn):
            raise ValueError("nothing to prune: set ratio, or heads and ffn, to a share above 0")
        if self.ratio and (self.heads or self.ffn):
            raise ValueError("ratio is the target of heads and neurons together: leave heads and ffn out, or ratio")
        return self

    def training(self) -> Training:
        """The settings of the training run."""
        return Training(
            epochs=self.epochs,
            max_steps=self.max_steps,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            keep_best=False,
            seed=self.seed,
        )
