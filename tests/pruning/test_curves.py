"""The benchmark that draws curves over ratios: every ratio is met, points are kept, and the page says what they say."""

import json
from pathlib import Path

import pytest

from benchmarks import pruning_curves
from effitrans.pruning import Pruning, prune
from effitrans.tasks import load_task
from effitrans.tasks.loading import load_for_task


def run(teacher: Path, task: Path, output: Path, *more: str) -> list[dict]:
    fast = ("--examples", "8", "--threads", "1", "--ratios", "0.3,0.6", "--methods", "taylor,magnitude")
    pruning_curves.main([str(teacher), str(task), "--output", str(output), *fast, *more])
    return [json.loads(file.read_text()) for file in sorted((output / "points").glob("*.json"))]


def test_points_are_met_kept_and_drawn(
    tiny_teacher: Path, tiny_task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = run(tiny_teacher, tiny_task, tmp_path / "curves", "--seeds", "0,1")
    assert len(points) == 1 + 2 * 2 + 2  # unpruned; two seeds for the method with data, one for that without
    for point in points:
        assert point["removed"] == pytest.approx(point["ratio"], abs=0.03)
        assert 0 <= point["value"] <= 1
        assert min(point["heads"]) >= 1
    page = (tmp_path / "curves" / "curves.md").read_text()
    picture = (tmp_path / "curves" / "curves.svg").read_text()
    mean = sum(p["value"] for p in points if p["method"] == "taylor" and p["ratio"] == 0.6) / 2
    assert f"{100 * mean:.1f} (±" in page
    assert picture.count("<path") == 2

    def never(*arguments, **options):
        raise AssertionError("the points are there")

    monkeypatch.setattr(pruning_curves, "prune_units", never)
    assert run(tiny_teacher, tiny_task, tmp_path / "curves", "--seeds", "0,1") == points
    with pytest.raises(SystemExit, match="another model, task or setting"):
        run(tiny_teacher, tiny_task, tmp_path / "curves", "--examples", "9")
    with pytest.raises(SystemExit, match="holds no points"):
        pruning_curves.main(["--output", str(tmp_path / "nothing")])


def test_shares_add_up(tiny_teacher: Path, tiny_task: Path) -> None:
    model = load_for_task(tiny_teacher, load_task(tiny_task)).model
    given = pruning_curves.shares(model, 0.5)
    pruned = prune(model, Pruning(heads=given.heads, ffn=given.ffn, scope="global", multiple_of=1))
    left = pruning_curves.encoder_parameters(pruned) / pruning_curves.encoder_parameters(model)
    assert left == pytest.approx(0.5, abs=0.005)
    with pytest.raises(SystemExit, match="cannot be reached"):
        pruning_curves.shares(model, 0.99)


def test_interval_is_that_of_student() -> None:
    low, high = pruning_curves.interval([0.8, 0.82, 0.84]) or (0, 0)
    assert (low, high) == (pytest.approx(0.82 - 4.3027 * 0.02 / 3**0.5, abs=1e-4), pytest.approx(0.8697, abs=1e-3))
    assert pruning_curves.interval([0.8]) is None
