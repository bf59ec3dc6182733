"""Commands and the folders that they write: one process at a time, and only where that is possible."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.test_files import held

COMMANDS = {
    "run": ["run", "RECIPE"],
    "run-resume": ["run", "RECIPE", "--resume"],
    "train": ["train", "--model", "MODEL", "--task", "TASK"],
    "train-resume": ["train", "--model", "MODEL", "--task", "TASK", "--resume"],
    "distill": ["distill", "--teacher", "MODEL", "--student", "layers=1", "--task", "TASK"],
    "prune": ["prune", "MODEL", "--task", "TASK", "--heads", "0.5"],
    "quantize": ["quantize", "MODEL"],
    "quantize-task": ["quantize", "MODEL", "--task", "TASK", "--overwrite"],
    "swap": ["swap", "MODEL", "--attention", "linear"],
    "linearize": ["linearize", "MODEL", "--task", "TASK"],
    "export": ["export", "MODEL"],
    "compare-models": ["compare", "models", "MODEL", "--task", "TASK"],
    "compare-recipes": ["compare", "recipes", "STUDY"],
    "compare-attention": ["compare", "attention", "--task", "TASK"],
}


@pytest.fixture
def places(tiny_teacher, tiny_task, tmp_path) -> dict[str, str]:
    """What the words in capitals stand for."""
    start = {"name": "tiny", "task": str(tiny_task), "model": str(tiny_teacher)}
    step = {"quantize": {"scheme": "int8-dynamic"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**start, "steps": [step]}))
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({**start, "variants": {"int8": [step]}}))
    found = {"MODEL": tiny_teacher, "TASK": tiny_task, "RECIPE": tmp_path / "recipe.yaml"}
    return {name: str(path) for name, path in {**found, "STUDY": tmp_path / "study.yaml"}.items()}


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    """A folder that another process writes."""
    folder = tmp_path_factory.mktemp("outputs") / "out"
    with held(folder):
        yield folder
        assert [path.name for path in folder.parent.iterdir()] == [".out.lock"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_another_process_writes(effitrans, places, taken, command):
    outcome = effitrans(*(places.get(word, word) for word in COMMANDS[command]), "--output", taken)
    assert outcome.code == 2, outcome.err
    assert "another run is writing" in outcome.err
    assert "on " in outcome.err


@pytest.mark.parametrize("output", ["/dev/null", "/dev/null/out", "/proc/out"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_where_nothing_can_be_written(effitrans, places, command, output):
    outcome = effitrans(*(places.get(word, word) for word in COMMANDS[command]), "--output", output)
    assert outcome.code == 2, outcome.err
    assert f"output {output}" in outcome.err


@pytest.mark.slow
def test_two_runs_at_once_leave_one_result(places, tmp_path):
    command = [sys.executable, "-m", "effitrans", "quantize", places["MODEL"], "--output", str(tmp_path / "out")]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [(process.communicate()[1], process.returncode) for process in both]
    assert sorted(code for _, code in ends) == [0, 2], ends
    assert (tmp_path / "out" / "config.json").is_file()


def test_the_tilde_is_the_home_folder(effitrans, places, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "model").symlink_to(places["MODEL"])
    assert effitrans("quantize", "~/model", "--output=~/int8").code == 0
    assert (home / "int8" / "config.json").is_file()
    recipe = Path(places["RECIPE"])
    (home / "recipe.yaml").write_text(recipe.read_text().replace(places["MODEL"], "~/model"))
    assert effitrans("run", "~/recipe.yaml", "--dry-run").code == 0
