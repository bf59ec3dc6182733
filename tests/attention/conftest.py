"""The suite is about the forms for long inputs, which its short ones would not reach."""

import pytest

from effitrans.attention import hybrid


@pytest.fixture(autouse=True)
def _blocks_for_short_inputs(monkeypatch):
    monkeypatch.setattr(hybrid, "SHORT", 0)
