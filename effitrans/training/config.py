"""The settings of a training run."""

from typing import ClassVar, Literal

from pydantic import Field

from effitrans.config import Config, Count, Epochs, Rate, Seed


class Training(Config):
    """How a model is trained. Every field has a default; `Training()` fine-tunes for three epochs in fp32."""

    verb: ClassVar[str] = "train"

    epochs: Epochs = 3.0
    """Passes over the training data (default 3). `max_steps` overrides it."""
    max_steps: Count | None = None
    """Optimizer steps to run, whatever the number of epochs (default: none, `epochs` decides)."""
    batch_size: Count = 32
    """Examples a device sees in one forward pass (default 32)."""
    gradient_accumulation: Count = 1
    """Forward passes whose gradients make one optimizer step (default 1). 4 x 8 equals 1 x 32, but for
    objectives of distillation that relate the examples of a batch (rkd, sentence_embedding)."""
    learning_rate: Rate = 5e-5
    """Peak learning rate of AdamW (default 5e-5)."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay; biases and norms have none (default 0.01)."""
    warmup_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of the steps in which the learning rate rises from 0, at most all but the last (default 0.1)."""
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """How the learning rate goes on after the warmup (default: linear to 0)."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients with a larger L2 norm are scaled down to it; 0 turns that off (default 1)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the matrix products (autocast; the weights stay as they are). fp16 needs a GPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    group_by_length: bool = True
    """Put examples of similar length into one batch, so that little of it is padding (default true)."""
    eval_every: Count | None = None
    """Steps between two evaluations on the validation data, each followed by a checkpoint (default: each epoch)."""
    save_every: Count | None = None
    """Steps between additional checkpoints, so that an interrupted run loses little (default: none)."""
    keep_best: bool = True
    """Return the state that did best on the validation data, by the task's first metric where it is computed from
    class scores or numbers, else by the loss (default true). False returns the last state."""
    early_stopping: Count | None = None
    """Stop after this many evaluations without a better one (default: never)."""
    max_train_examples: Count | None = None
    """Use the first examples only (default: all)."""
    max_eval_examples: Count | None = None
    """Use the first validation examples only (default: all)."""
    seed: Seed = 0
    """Of the order of the data, dropout and newly made weights (default 0)."""
    log_every: Count = 50
    """Steps between two logged values of the training loss (default 50)."""
    tracking: Literal["none", "tensorboard", "wandb", "trackio"] = "none"
    """Where the curves are sent besides the log (extra `tracking`)."""
