"""What the generators that draw their rows have in common."""

from typing import Annotated

from pydantic import Field

from effitrans.config import Config, Seed

Rows = Annotated[int, Field(ge=1, le=10**6)]
"""A number of rows, all of which are held in memory."""


class Drawn(Config):
    """A seed and the number of rows of each split."""

    seed: Seed = 0
    """Seed of the data."""
    train_rows: Rows = 4000
    """Rows of `train`."""
    validation_rows: Rows = 500
    """Rows of `validation`."""
    test_rows: Rows = 500
    """Rows of `test`."""
