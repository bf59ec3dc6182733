"""The base Transformer."""


def register() -> None:
    """Put the models on the Auto classes."""
