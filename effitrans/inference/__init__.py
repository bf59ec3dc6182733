"""Running a model as fast as it can be run: compiled, without padding, with operators as exact as the weights are."""

from effitrans.inference.compiling import optimize

__all__ = ["optimize"]
