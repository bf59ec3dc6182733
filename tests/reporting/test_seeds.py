"""The page of a study."""

import re

import numpy as np
import pytest

from effitrans.evaluation.record import Quality, StudyPlace
from effitrans.reporting import report, scorecard
from tests.evaluation.records import make_record

N = 1821


def seeded(variant, accuracy, seed, right=True):
    rng = np.random.default_rng(seed)
    bits = rng.permutation(N) < round(accuracy * N)
    record = make_record(variant, accuracy=accuracy, baseline=("teacher", 0.9))
    score = Quality(value=float(bits.mean()), ci95=(accuracy - 0.014, accuracy + 0.014), n=N)
    place = StudyPlace(name="study", variant=variant, baseline="none", seed=seed)
    changes = {"quality": {"accuracy": score}, "study": place, "right": np.packbits(bits).tobytes().hex()}
    return record.model_copy(update=changes if right else {**changes, "right": None})


@pytest.fixture
def records():
    """Three seeds of two variants; the better one is 2 points better."""
    return [
        seeded(name, level + 0.001 * seed, seed) for seed in range(3) for name, level in (("none", 0.87), ("kd", 0.89))
    ]


def test_the_page_has_one_row_a_variant(records, tmp_path):
    report(records, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    table = re.search(r'<table id="results">.*?</table>', page, re.DOTALL).group()
    assert table.count("<tr") == 1 + 2
    assert "89.1 %" in table
    assert "+2.0" in table
    assert "3 seeds" in table
    assert page.count("<circle") == 6


def test_the_terminal_names_the_best_variant(records, capsys):
    from rich.console import Console

    Console(width=200).print(scorecard(records))
    printed = capsys.readouterr().out
    assert "Best of 2 variants: kd, Accuracy 89.1 %" in printed
    assert "+2.0 against none" in printed


def test_where_right_and_wrong_are_unknown_the_interval_is_that_of_the_seeds(records, tmp_path):
    unknown = [record.model_copy(update={"right": None}) for record in records]
    report(unknown, tmp_path / "report.html")
    # All three differences are the same but for rounding, so the seeds alone leave no doubt.
    assert "+1.9 to +2.1" in (tmp_path / "report.html").read_text()
    report(records, tmp_path / "paired.html")
    assert "+1.9 to +2.1" not in (tmp_path / "paired.html").read_text()


def test_several_seeds_are_all_named(records, tmp_path):
    report(records, tmp_path / "report.html")
    assert "| Seed | 0 |" in (tmp_path / "report.md").read_text()
