"""The examples in the docstrings are right."""

import doctest
import importlib

import pytest

MODULES = (
    "training.callbacks",
    "training.loop",
    "distillation.loop",
    "distillation.mapping",
    "distillation.objectives.feature",
    "distillation.objectives.response",
    "distillation.student",
)


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"effitrans.{module}"))
    assert result.attempted
    assert not result.failed
