"""A run that was killed, interrupted or stopped goes on as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import transformers
from datasets import Dataset
from safetensors.torch import load_file, save_file

from effitrans import Distillation, Training, UsageError, distill, prune, train
from effitrans.pruning import Pruning
from effitrans.training.checkpoints import complete_checkpoints, is_complete, mark_complete
from effitrans.training.data import SeededRows
from effitrans.training.trainer import Trainer
from tests.training.helpers import SIZES, assert_same_weights, bert, sentences, splits
from tests.training.kills import RUNS, SETTINGS, at_step, in_save

_UNDISTURBED = {}


@pytest.fixture
def undisturbed(tmp_path):
    """Name of a run -> its result when nothing happens."""

    def result(name):
        if name not in _UNDISTURBED:
            _UNDISTURBED[name] = RUNS[name](tmp_path / "undisturbed")
        return _UNDISTURBED[name]

    return result


def _assert_same(resumed, undisturbed):
    assert resumed.history == undisturbed.history
    assert (resumed.steps, resumed.loss, resumed.best) == (undisturbed.steps, undisturbed.loss, undisturbed.best)
    assert_same_weights(resumed.model, undisturbed.model)


class Stop(Exception):
    """Stands for whatever ends a run."""


def _stop():
    raise Stop


@pytest.mark.parametrize(
    ("run", "when", "number"),
    [
        pytest.param("train", "save", 15, id="train-while-saving"),
        pytest.param("distill", "step", 22, id="distill-between-checkpoints", marks=pytest.mark.slow),
    ],
)
def test_sigkill(run, when, number, tmp_path, undisturbed):
    output = tmp_path / "killed"
    command = [sys.executable, "-m", "tests.training.kills", str(output), run, when, str(number)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    if when == "save":
        assert not is_complete(output / "checkpoints" / f"checkpoint-{number}")
    _assert_same(RUNS[run](output, resume=True), undisturbed(run))


POINTS = {
    "before-any": (at_step, 3),
    "inside-epoch": (at_step, 11),
    "end-of-epoch": (at_step, 12),
    "save-of-epoch": (in_save, 12),
    "second-epoch": (at_step, 13),
    "last-save": (in_save, 36),
}
FAST = {("train", "save-of-epoch"), ("train", "last-save"), ("distill", "inside-epoch"), ("masked", "second-epoch")}


@pytest.mark.parametrize(
    ("run", "when", "number"),
    [
        pytest.param(run, *POINTS[point], id=f"{run}-{point}", marks=() if (run, point) in FAST else pytest.mark.slow)
        for run in RUNS
        for point in POINTS
    ],
)
def test_stopped_anywhere(run, when, number, tmp_path, undisturbed):
    undo = when(number, _stop)
    try:
        with pytest.raises(Stop):
            RUNS[run](tmp_path / "stopped")
    finally:
        undo()
    _assert_same(RUNS[run](tmp_path / "stopped", resume=True), undisturbed(run))


@pytest.mark.parametrize("step", [7, pytest.param(12, marks=pytest.mark.slow)], ids=["inside-epoch", "end-of-epoch"])
def test_ctrl_c_writes_a_checkpoint(step, tmp_path, undisturbed):
    undo = at_step(step, lambda: os.kill(os.getpid(), signal.SIGINT))
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(KeyboardInterrupt):
            RUNS["train"](tmp_path / "run")
    finally:
        undo()
    assert signal.getsignal(signal.SIGINT) is handler
    assert complete_checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"checkpoint-{step}"
    resumed, expected = RUNS["train"](tmp_path / "run", resume=True), undisturbed("train")
    # The mean of the training loss was logged once more, when the checkpoint was written.
    assert [entry for entry in resumed.history if "eval_loss" in entry] == [
        entry for entry in expected.history if "eval_loss" in entry
    ]
    assert resumed.best == expected.best
    assert_same_weights(resumed.model, expected.model)


def test_resuming_a_finished_run_gives_its_result(tmp_path, undisturbed):
    RUNS["distill"](tmp_path / "run")
    _assert_same(RUNS["distill"](tmp_path / "run", resume=True), undisturbed("distill"))


@pytest.mark.slow
def test_resuming_without_a_checkpoint_starts_at_the_beginning(tmp_path, undisturbed):
    _assert_same(RUNS["train"](tmp_path / "new", resume=True), undisturbed("train"))


@pytest.mark.slow
def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    config = Training(epochs=30, batch_size=16, learning_rate=0.05, early_stopping=2)
    first = train(bert(), splits(), config, output_dir=tmp_path)
    again = train(bert(), splits(), config, output_dir=tmp_path, resume=True)
    assert first.steps < 180
    _assert_same(again, first)


@pytest.mark.slow
def test_damaged_checkpoints_are_passed_over(tmp_path, undisturbed):
    RUNS["train"](tmp_path / "run")
    last = complete_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    weights = last / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    _assert_same(RUNS["train"](tmp_path / "run", resume=True), undisturbed("train"))


def test_at_most_three_checkpoints_are_kept(tmp_path):
    result = RUNS["train"](tmp_path / "run")
    assert result.checkpoints == (tmp_path / "run" / "checkpoints").resolve()
    assert 1 <= len(complete_checkpoints(result.checkpoints)) <= 3


def test_checkpoints_hold_the_student_and_not_the_teacher(tmp_path):
    result = RUNS["distill"](tmp_path / "run")
    stored = load_file(complete_checkpoints(result.checkpoints)[-1] / "model.safetensors")
    extra = {name for name in stored if name not in result.model.state_dict()}
    assert {name.split(".")[0] for name in extra} == {"distillation_objectives"}
    assert len([name for name in extra if name.endswith("weight")]) == 3


def test_a_folder_with_another_run_is_refused(tmp_path):
    train(bert(), splits(), Training(max_steps=2), output_dir=tmp_path)
    with pytest.raises(UsageError, match="holds the checkpoints of another run"):
        train(bert(), splits(), Training(max_steps=2), output_dir=tmp_path)


def test_resuming_with_other_settings_is_refused(tmp_path):
    train(bert(), splits(), Training(max_steps=2), output_dir=tmp_path)
    with pytest.raises(UsageError, match=r"learning_rate was 5e-05 and is now 0\.1"):
        train(bert(), splits(), Training(max_steps=2, learning_rate=0.1), output_dir=tmp_path, resume=True)


def test_resuming_with_other_data_is_refused(tmp_path):
    train(bert(), splits(), Training(max_steps=2), output_dir=tmp_path)
    for part in ("training", "validation"):
        data = {**splits(), {"training": "train", "validation": "validation"}[part]: sentences(40, seed=9)}
        with pytest.raises(UsageError, match=f"another {part} data than the run in"):
            train(bert(), data, Training(max_steps=2), output_dir=tmp_path, resume=True)


def test_resuming_with_a_model_of_another_structure_is_refused(tmp_path):
    train(bert(), splits(), Training(max_steps=2), output_dir=tmp_path)
    for model in (bert(dropout=0.2), bert(num_labels=3)):
        with pytest.raises(UsageError, match="another model than the run in"):
            train(model, splits(), Training(max_steps=2), output_dir=tmp_path, resume=True)


def test_resuming_under_another_teacher_is_refused(tmp_path):
    config = Distillation(max_steps=2)
    distill(bert(), bert(seed=1), splits(), config, output_dir=tmp_path)
    with pytest.raises(UsageError, match="another teacher than the run in"):
        distill(bert(), bert(seed=2), splits(), config, output_dir=tmp_path, resume=True)


def test_resume_needs_a_folder():
    with pytest.raises(UsageError, match="output_dir"):
        train(bert(), splits(), Training(max_steps=2), resume=True)


def test_random_choices_depend_on_seed_epoch_and_example_alone():
    """Rows are read ahead of the model, so what is drawn must not come from the state that a checkpoint holds."""

    def drawn(indices, epoch=0, seed=1):
        seeded = SeededRows(rows, lambda features: [{**row, "drawn": torch.rand(()).item()} for row in features], seed)
        seeded.set_epoch(epoch)
        return [row["drawn"] for row in seeded.__getitems__(indices)]

    rows = sentences(12)
    first = drawn([4, 9])
    torch.rand(3)
    assert drawn([9, 4]) == first[::-1]
    assert drawn([9]) == first[1:]
    assert len({*first, *drawn([4, 9], epoch=1), *drawn([4, 9], seed=2)}) == 6


def test_masks_are_drawn_anew_in_training_and_held_in_validation(tmp_path, monkeypatch):
    seen = {True: [], False: []}
    original = Trainer.mean_loss

    def mean_loss(self, model, inputs):
        rows = inputs["labels"].tolist()
        seen[model.training] += [[(i, label) for i, label in enumerate(row) if label != -100] for row in rows]
        return original(self, model, inputs)

    monkeypatch.setattr(Trainer, "mean_loss", mean_loss)
    RUNS["masked"](tmp_path / "run")
    for training, labels in seen.items():
        count = len(labels) // SETTINGS["epochs"]
        epochs = [sorted(labels[start : start + count]) for start in range(0, len(labels), count)]
        assert len(epochs) == 3
        assert (epochs[0] == epochs[1] == epochs[2]) is not training


@pytest.mark.slow
def test_the_folder_may_be_moved(tmp_path, undisturbed):
    undo = at_step(27, _stop)
    try:
        with pytest.raises(Stop):
            RUNS["train"](tmp_path / "here")
    finally:
        undo()
    shutil.move(tmp_path / "here", tmp_path / "there")
    _assert_same(RUNS["train"](tmp_path / "there", resume=True), undisturbed("train"))


def _vit(seed=0):
    torch.manual_seed(seed)
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **SIZES)
    return transformers.ViTForImageClassification(config)


def _images(count=32):
    pixels = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = [int(image.mean() > 0) for image in pixels]
    return {
        part: Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": labels}) for part in ("train", "validation")
    }


def test_families_whose_saved_names_differ_resume(tmp_path):
    """transformers writes the weights of ViT under other names than the model has."""
    config = Training(epochs=2, batch_size=8, learning_rate=2e-3)
    undisturbed = train(_vit(), _images(), config, output_dir=tmp_path / "undisturbed")
    undo = at_step(6, _stop)
    try:
        with pytest.raises(Stop):
            train(_vit(), _images(), config, output_dir=tmp_path / "stopped")
    finally:
        undo()
    _assert_same(train(_vit(), _images(), config, output_dir=tmp_path / "stopped", resume=True), undisturbed)
    # A finished run is not run again, so all weights are those of the checkpoint.
    _assert_same(train(_vit(seed=1), _images(), config, output_dir=tmp_path / "stopped", resume=True), undisturbed)


def test_the_best_state_of_such_a_family_comes_back():
    config = Training(max_steps=1, batch_size=8, learning_rate=1e-3, scheduler="constant", warmup_ratio=0, eval_every=1)
    first = train(_vit(), _images(), config)
    model = _vit()

    def spoil():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(3.0)
            model.classifier.bias[2] = 1e4  # the class that no image has

    undo = at_step(2, spoil)
    try:
        result = train(model, _images(), config.model_copy(update={"max_steps": 2}))
    finally:
        undo()
    assert (result.steps, result.best["step"]) == (2, 1)
    assert_same_weights(model, first.model)


def test_checkpoints_of_a_pruned_model_can_be_loaded(tmp_path):
    model = prune(_vit(), Pruning(heads=0.5))
    result = train(model, _images(), Training(max_steps=1, batch_size=8), output_dir=tmp_path)
    folder = complete_checkpoints(result.checkpoints)[-1]
    assert_same_weights(transformers.ViTForImageClassification.from_pretrained(folder), model)


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    config = Training(max_steps=2)
    train(bert(), splits(), config, output_dir=tmp_path)
    (weights,) = (tmp_path / "checkpoints" / "checkpoint-2").glob("*.safetensors")
    tensors = {name: tensor.clone() for name, tensor in load_file(weights).items()}  # the file itself is written anew
    tensors["other"] = tensors.pop("classifier.bias")
    save_file(tensors, weights, metadata={"format": "pt"})
    mark_complete(weights.parent)
    with pytest.raises(UsageError, match=r"lacks classifier\.bias and has other besides"):
        train(bert(), splits(), config, output_dir=tmp_path, resume=True)


def test_tied_weights_are_stored_once_and_come_back(tmp_path):
    rows = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 8, "labels": [[1, 2, 3]] * 8})
    config = Training(max_steps=2, batch_size=4, learning_rate=1e-2)

    def gpt2():
        torch.manual_seed(0)
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "bos_token_id": 0, "eos_token_id": 0}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=9, **sizes))

    first = train(gpt2(), rows, config, output_dir=tmp_path)
    again = train(gpt2(), rows, config, output_dir=tmp_path, resume=True)
    assert_same_weights(again.model, first.model)
    assert again.model.lm_head.weight is again.model.transformer.wte.weight


assert SETTINGS["save_every"] == 5  # the step numbers above are chosen around it
