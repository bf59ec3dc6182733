"""What can be known beforehand is refused before the first step, by a dry run too."""

import copy
import json
from pathlib import Path

import pytest

from effitrans.errors import UsageError
from effitrans.files import cache_directory
from effitrans.recipes import check_recipe, check_study, load_recipe, load_study, run
from effitrans.skeleton import duplicate
from effitrans.tasks import load_task
from effitrans.tasks.loading import load_for_task, skeleton_for_task

TRAIN = {"train": {"epochs": 1}}


@pytest.fixture
def recipe(tiny_task: Path, tiny_teacher: Path) -> dict:
    return {"name": "tiny", "task": str(tiny_task), "model": str(tiny_teacher), "steps": [TRAIN]}


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    """A step that is begun fails the test."""

    def begun(*_, **__):
        raise AssertionError("a step was begun")

    monkeypatch.setattr("effitrans.recipes.runner.load_for_task", begun)


GONE = "/nowhere/model"
STEPS = {
    "student-too-deep": ([TRAIN, {"distill": {"student": "layers=9"}}], "step 2 (distill)", "layers"),
    "student-not-there": ([TRAIN, {"distill": {"student": GONE}}], "step 2 (distill)", GONE),
    "teacher-not-there": ([TRAIN, {"distill": {"student": "layers=2", "teachers": {GONE: 1}}}], "step 2", GONE),
    "student-of-a-student": (
        [TRAIN, {"prune": {"keep_layers": 2}}, {"swap": {"attention": "local", "layers": "0,3"}}],
        "step 3 (swap)",
        "layer 3",
    ),
    "every-head": ([TRAIN, {"prune": {"heads": 1.0}}], "step 2 (prune)", "layer"),
    "operator-that-cannot": ([TRAIN, {"swap": {"attention": "local", "layers": "7"}}], "step 2 (swap)", "7"),
    "linearized-layer": ([TRAIN, {"linearize": {"layers": "7"}}], "step 2 (linearize)", "7"),
    "quantized-twice": ([{"quantize": {}}, {"quantize": {}}], "step 2 (quantize)", "quantized"),
    "trained-after-quantize": ([{"quantize": {}}, TRAIN], "step 2 (train)", "quantize last"),
    "pruned-after-quantize": ([{"quantize": {}}, {"prune": {"heads": 0.5}}], "step 2 (prune)", "quantize"),
    "pruned-after-search-and-quantize": (
        [TRAIN, {"search": {"parameters": 0.5}}, {"quantize": {}}, {"prune": {"heads": 0.5}}],
        "step 4 (prune)",
        "quantize last",
    ),
    "trained-after-search-and-quantize": (
        [TRAIN, {"search": {"parameters": 0.5}}, {"quantize": {}}, TRAIN],
        "step 4 (train)",
        "quantize last",
    ),
    "group-size": ([TRAIN, {"quantize": {"scheme": "rtn", "group_size": 48}}], "step 2", "48"),
    "skip-nothing": ([TRAIN, {"quantize": {"skip": ["decodr"]}}], "step 2 (quantize)", "decodr"),
    "corpus": ([TRAIN, {"prune_vocabulary": {"corpus": "ssst2"}}], "step 2", "sst2"),
}


@pytest.mark.parametrize("case", STEPS)
def test_steps(recipe, tmp_path, case):
    steps, *fragments = STEPS[case]
    recipe["steps"] = steps
    with pytest.raises(UsageError) as refused:
        run(recipe, tmp_path / "out")
    for fragment in fragments:
        assert fragment in str(refused.value)
    assert not (tmp_path / "out").exists()


TASK = {
    "f1-of-three-labels": (("metrics: [accuracy]", "metrics: [accuracy, f1]"), "f1_macro"),
    "split": (("test: test.jsonl", "other: test.jsonl"), "'test'"),
    "file": (("test: test.jsonl", "test: tset.jsonl"), "tset.jsonl"),
}


@pytest.mark.parametrize("case", TASK)
def test_task(recipe, tiny_task, tmp_path, case):
    change, message = TASK[case]
    tiny_task.write_text(tiny_task.read_text().replace(*change))
    recipe["model"] = {"base": {"hidden_size": 16, "num_attention_heads": 2}}
    if case == "f1-of-three-labels":
        for file in tiny_task.parent.glob("*.jsonl"):
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            file.write_text("\n".join(json.dumps({**row, "label": "abc"[i % 3]}) for i, row in enumerate(rows)))
    with pytest.raises(UsageError, match=message):
        run(recipe, tmp_path / "out")


def test_model_head_and_missing_packages(recipe, monkeypatch):
    with pytest.raises(UsageError, match=GONE):
        check_recipe(load_recipe({**recipe, "model": GONE}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    for step, package in (
        ({"search": {"parameters": 0.5, "sampler": "tpe"}}, "optuna"),
        ({"linearize": {"lora_rank": 4}}, "peft"),
        ({"train": {"tracking": "wandb"}}, "wandb"),
    ):
        with pytest.raises(UsageError, match=package):
            check_recipe(load_recipe({**recipe, "steps": [step]}))


def test_after_a_search_only_settings_are_known(recipe):
    steps = [TRAIN, {"search": {"parameters": 0.5}}, {"swap": {"attention": "local", "layers": "3"}}, {"quantize": {}}]
    check_recipe(load_recipe({**recipe, "steps": steps}))


def test_caches_and_space(recipe, tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    cached = {"distill": {"student": "layers=2", "cache": {"folder": str(file / "cache")}}}
    with pytest.raises(UsageError, match=r"teacher's cache .* cannot be written"):
        check_recipe(load_recipe({**recipe, "steps": [cached]}))
    usage = type("Usage", (), {"free": 100})
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda place: usage)
        with pytest.raises(UsageError, match="GB free"):
            check_recipe(load_recipe(recipe), tmp_path / "out")
    monkeypatch.setenv("EFFITRANS_CACHE", str(file))
    with pytest.raises(UsageError, match="EFFITRANS_CACHE"):
        check_recipe(load_recipe(recipe))
    assert cache_directory("x").parent == file


def test_variants_of_a_study(recipe):
    study = {k: v for k, v in recipe.items() if k != "steps"}
    study["common"] = [TRAIN, {"prune": {"keep_layers": 2}}]
    study["variants"] = {"a": [{"distill": {"student": "layers=2"}}]}
    check_study(load_study(copy.deepcopy(study)))
    study["variants"]["b"] = [{"distill": {"student": "layers=3"}}]
    with pytest.raises(UsageError, match=r"variant 'b': distill: .*3"):
        check_study(load_study(study))


def test_a_skeleton_is_the_model_without_weights(tiny_teacher, tiny_task, tmp_path):
    from effitrans import Int8, checkpoint, prune, quantize, swap_attention
    from effitrans.attention import Local
    from effitrans.pruning import Pruning

    task = load_task(tiny_task)
    loaded = load_for_task(tiny_teacher, task)
    small = quantize(swap_attention(prune(loaded.model, Pruning(heads=0.5)), Local(window=4)), Int8())
    checkpoint.save(small, tmp_path / "small", loaded.processor)
    for spec in (tiny_teacher, tmp_path / "small", "base:hidden_size=16,num_attention_heads=2"):
        full, skeleton = load_for_task(spec, task).model, skeleton_for_task(spec, task).model
        tensors = skeleton.state_dict()
        assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in full.state_dict().items()}
        assert [type(m) for m in skeleton.modules()] == [type(m) for m in full.modules()]
        assert getattr(skeleton, "is_quantized", False) is getattr(full, "is_quantized", False)
        assert sum(tensor.untyped_storage().nbytes() for tensor in tensors.values()) < 8 * len(tensors)
        again = duplicate(skeleton)
        assert not {id(p) for p in again.parameters()} & {id(p) for p in skeleton.parameters()}
