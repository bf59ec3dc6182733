"""The committed table of operators and families says what the code does."""

from pathlib import Path

import pytest

from tests.architectures.families import FAMILIES, THROUGH_INTERFACE
from tests.attention.matrix import page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "attention.md"


@pytest.mark.skipif(THROUGH_INTERFACE != FAMILIES, reason="this version of transformers allows less")
def test_the_committed_page_is_current():
    remedy = "run `python -m tests.attention.matrix > docs/attention.md`"
    assert PAGE.read_text(encoding="utf-8") == page(), remedy
