"""Jobs that are killed again and again, and come to the result that they would have come to undisturbed."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from effitrans.checkpoint import load_model
from tests.kills.driver import run_until
from tests.kills.jobs import check_whole, outcome, small_model

KILLS = {"passes": 24, "swapped": 20, "search": 20, "cache": 20, "conversion": 20, "saving": 20}
"""Job -> how often it is killed, two times in three before a file operation and else after a random time."""


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_killed_jobs_come_to_the_same_result(name, tmp_path):
    undisturbed = tmp_path / "undisturbed"
    _, operations, seconds = run_until(name, undisturbed)
    expected = outcome(undisturbed)
    generator, kills, folder = random.Random(name), 0, tmp_path / "killed"
    while True:
        moment = {"operation": generator.randint(1, operations)}
        if generator.random() < 1 / 3:
            moment = {"seconds": generator.uniform(0, 0.9 * seconds)}
        killed, *_ = run_until(name, folder, **moment) if kills < KILLS[name] else run_until(name, folder)
        kills += killed
        if killed:
            check_whole(folder)
            continue
        assert outcome(folder) == expected, f"after {kills} kills, the last run until {moment}"
        assert leftovers(folder) == leftovers(undisturbed)
        shutil.rmtree(folder)
        if kills >= KILLS[name]:
            return


def leftovers(folder: Path) -> set[str]:
    """Hidden files, which are what is only there for a while."""
    return {str(path.relative_to(folder)) for path in (folder / "result").parent.rglob(".*")}


@pytest.mark.slow
def test_a_model_that_is_saved_over_another_is_one_of_the_two(tmp_path):
    models = [small_model(seed) for seed in range(5)]
    _, operations, _ = run_until("saving", tmp_path / "undisturbed")
    seen = set()
    for operation in range(operations // 5, operations, 5):
        killed, *_ = run_until("saving", tmp_path / "killed", operation=operation)
        assert killed
        found = load_model(tmp_path / "killed" / "result" / "model").state_dict()
        (one,) = (i for i, m in enumerate(models) if all(torch.equal(found[k], v) for k, v in m.state_dict().items()))
        seen.add(one)
    assert len(seen) > 1
