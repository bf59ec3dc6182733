"""Records made by hand, as fixtures."""

import pytest

from tests.evaluation.records import make_record, make_run


@pytest.fixture
def record():
    return make_record


@pytest.fixture
def run_of_records():
    return make_run()
