"""Two processes give the result of one with as many examples a step, with every part that has state of its own."""

import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from tests.distillation.distributed_run import RUNS, STEPS, run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_equal_one(name, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               "-m", "tests.distillation.distributed_run", str(tmp_path / "two"), name]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    single = run(name, tmp_path / "one", gradient_accumulation=2)
    assert single.steps == STEPS
    parts = [sorted(path.name for path in (tmp_path / side / "cache").rglob("*.*")) for side in ("one", "two")]
    assert parts[0] == parts[1]
    assert ("cached" in name) == (len(parts[0]) > 2)
    with safe_open(tmp_path / "two" / "result.safetensors", framework="pt") as stored:
        assert float(stored.metadata()["loss"]) == pytest.approx(single.loss, rel=1e-3)
        for key, expected in single.model.state_dict().items():
            torch.testing.assert_close(stored.get_tensor(key), expected, rtol=1e-3, atol=2e-5, msg=key)
