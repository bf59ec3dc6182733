"""Whatever a user brings, a command ends within bounds, with a documented exit code and one message."""

import random
import shutil
from pathlib import Path

import pytest

from effitrans import (
    FFNPruning,
    Int8,
    checkpoint,
    prune,
    quantize,
    swap_attention,
)
from effitrans.attention import Local
from tests.fuzz.commands import complaints, run
from tests.fuzz.inputs import KINDS

BLOCK, BLOCKS = 15, 16
"""Inputs a test, and tests a kind; the first block of every kind has a few inputs and is not slow."""
FEW = 3


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory, tiny_teacher: Path) -> Path:
    """A folder of models: as trained, and after each kind of pass."""
    folder = tmp_path_factory.mktemp("fuzz") / "assets"
    shutil.copytree(tiny_teacher, folder / "teacher")
    model, tokenizer = checkpoint.load_model(folder / "teacher", None), checkpoint.load_processor(folder / "teacher")
    passes = {
        "int8": quantize(model, Int8()),
        "pruned": prune(model, FFNPruning(ratio=0.5)),
        "local": swap_attention(model, Local(window=4)),
    }
    for name, result in passes.items():
        checkpoint.save(result, folder / name, tokenizer)
    return folder


def _try(kind: str, seed: int, folder: Path, task: Path) -> tuple[list[str], str]:
    """Make one input in a new folder, run its command, and say what is wrong with how it ended."""
    folder.mkdir()
    shutil.copytree(task, folder / "task")
    arguments = KINDS[kind](random.Random(f"{kind}-{seed}"), folder)
    outcome = run(arguments, folder)
    shutil.rmtree(folder)
    shown = f"{kind} {seed}: effitrans {' '.join(arguments)[:300]}\n{outcome.code}: {outcome.text[-600:]}"
    return complaints(outcome), shown


@pytest.mark.parametrize("block", [0, *(pytest.param(block, marks=pytest.mark.slow) for block in range(1, BLOCKS + 1))])
@pytest.mark.parametrize("kind", KINDS)
def test_every_input_ends_as_documented(kind, block, assets, tiny_task, tmp_path):
    (tmp_path / "assets").symlink_to(assets)
    seeds = range(FEW) if block == 0 else range(block * BLOCK, (block + 1) * BLOCK)
    failures = []
    for seed in seeds:
        wrong, shown = _try(kind, seed, tmp_path / f"{kind}-{seed}", tiny_task.parent)
        if wrong:
            failures.append(f"{', '.join(wrong)}: {shown}")
    assert not failures, "\n\n".join(failures)
