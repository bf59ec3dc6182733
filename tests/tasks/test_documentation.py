"""The examples in the docstrings are right."""

import doctest
import importlib

import pytest

MODULES = ("task", "padding", "batching", "processors")


@pytest.mark.parametrize("module", MODULES)
def test_examples(module):
    result = doctest.testmod(importlib.import_module(f"effitrans.tasks.{module}"))
    assert result.attempted
    assert not result.failed
