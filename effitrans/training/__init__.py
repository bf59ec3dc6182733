"""Training on `transformers.Trainer`: settings, order of the data, callbacks, checkpoints that can be resumed."""

from effitrans.training.config import Training
from effitrans.training.loop import TrainResult, fit, train

__all__ = ["TrainResult", "Training", "fit", "train"]
