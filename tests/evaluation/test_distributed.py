"""Two processes score as one does."""

import json
import subprocess
import sys

import pytest

from effitrans.evaluation import Record, evaluate

pytestmark = pytest.mark.slow


def test_two_processes_give_the_numbers_of_one(tiny_teacher, tiny_task):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "effitrans", "eval", str(tiny_teacher), "--task", str(tiny_task), "--no-cost"]
    options = ["--baseline", str(tiny_teacher), "--batch-size", "3", "--json"]
    ended = subprocess.run([*command, *options], capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    two = Record.parse(json.loads(ended.stdout))
    one = evaluate(tiny_teacher, tiny_task, baseline=tiny_teacher, cost=None, batch_size=3)
    assert two.quality == one.quality
    assert two.confusion == one.confusion
    assert two.fidelity == one.fidelity
