"""Studies: variants with several seeds, run once each, on one page."""

import os
import shutil
from pathlib import Path

import pytest

from effitrans.errors import UsageError
from effitrans.evaluation import Record
from effitrans.recipes import list_recipes, load_study, run_study


@pytest.fixture
def study(tiny_task: Path, tiny_teacher: Path) -> dict:
    """A student with and without its teacher."""
    steps = {"student": "layers=2", "max_steps": 3, "batch_size": 8}
    return {
        "name": "tiny",
        "task": str(tiny_task),
        "model": str(tiny_teacher),
        "common": [{"train": {"name": "teacher", "max_steps": 2, "batch_size": 8}}],
        "variants": {
            "no teacher": [{"distill": {**steps, "alpha": 0}}],
            "with the teacher": {"steps": [{"distill": steps}]},
        },
        "baseline": "no teacher",
        "seeds": [0, 1],
        "evaluate": {"cost": None},
    }


def test_every_variant_has_a_record_for_every_seed_and_a_row_on_the_page(study, tmp_path):
    records = run_study(study, tmp_path / "out")
    assert [(r.model, r.study.seed) for r in records] == [
        ("no teacher", 0), ("with the teacher", 0), ("no teacher", 1), ("with the teacher", 1)
    ]  # fmt: skip
    assert all(r.study.baseline == "no teacher" and r.fidelity is not None and r.right for r in records)
    page = (tmp_path / "out" / "report.md").read_text().replace("**", "")
    assert "| no teacher (2 seeds) |" in page
    assert "| with the teacher (2 seeds) |" in page
    assert "Difference, from no teacher" in page
    assert Record.load(tmp_path / "out/records/no-teacher-0.json") == records[0]
    assert not list((tmp_path / "out" / "runs").iterdir())  # models are kept on request only


def test_a_resumed_study_runs_only_what_is_new(study, tmp_path):
    output = tmp_path / "out"
    run_study({**study, "seeds": [0]}, output)
    before = {file: os.stat(file).st_mtime_ns for file in (output / "records").iterdir()}
    assert len(before) == 2
    run_study(study, output, resume=True)
    assert len(list((output / "records").iterdir())) == 4
    assert {file: os.stat(file).st_mtime_ns for file in before} == before


def test_a_variant_that_changed_is_not_mixed_with_its_old_records(study, tmp_path):
    run_study({**study, "seeds": [0]}, tmp_path / "out")
    study["variants"]["no teacher"][0]["distill"]["max_steps"] = 4
    with pytest.raises(UsageError, match=r"'no teacher' was run with other settings.*remove"):
        run_study({**study, "seeds": [0]}, tmp_path / "out", resume=True)


def test_records_of_another_starting_model_are_not_mixed_in(study, tmp_path, tiny_teacher):
    shutil.copytree(tiny_teacher, tmp_path / "other")
    study = {**study, "common": [], "seeds": [0]}
    run_study(study, tmp_path / "out")
    with pytest.raises(UsageError, match="was run with other settings"):
        run_study({**study, "model": str(tmp_path / "other")}, tmp_path / "out", resume=True)


def test_models_are_kept_on_request(study, tmp_path):
    run_study({**study, "seeds": [0], "keep_models": True}, tmp_path / "out")
    assert (tmp_path / "out/runs/with-the-teacher-0/model/config.json").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"baseline": "nobody"}, "baseline of the study 'nobody'"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"variants": {}}, "variants"),
        ({"variants": ["a"]}, "expected names with steps"),
        ({"variants": {"a b": [{"train": {}}], "a-b": [{"train": {}}]}, "baseline": None}, "stored as a-b"),
        ({"variants": {"a": [{"distil": {}}]}, "baseline": None}, "distill"),
        ({"variants": {"a": [{"distill": {"learning_rat": 1}}]}, "baseline": None}, "learning_rate"),
        ({"common": [{"train": {"epoch": 1}}]}, "epochs"),
        ({"task": "no-such-task"}, "no-such-task"),
    ],
)
def test_mistakes_are_found_before_anything_runs(study, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        run_study({**study, **change}, tmp_path / "out")
    assert not (tmp_path / "out" / "records").exists()


def test_an_unknown_study_names_the_nearest():
    with pytest.raises(UsageError, match="study"):
        load_study("no-such-study")


@pytest.mark.parametrize("name", list_recipes("studies"))
def test_studies_that_come_with_effitrans_are_valid(name):
    assert load_study(name).name == name
