"""Runs that cannot be, and runs that break: one clear message each, and what was good is kept."""

import importlib.util
import math
import re

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from effitrans import Distillation, Training, UsageError, distill, train
from effitrans.errors import TrainingDiverged
from effitrans.tasks.padding import Padding
from effitrans.training.callbacks import Interrupts
from effitrans.training.checkpoints import complete_checkpoints, is_complete
from tests.training.helpers import assert_same_weights, bert, sentences, splits, weights


def test_integer_weights():
    model = bert()
    model.is_quantized = True
    with pytest.raises(UsageError, match="quantize last"):
        train(model, splits(), Training(max_steps=1))


@pytest.mark.parametrize("part", ["train", "validation"])
def test_empty_data(part):
    data = splits()
    data[part] = data[part].select([])
    with pytest.raises(UsageError, match="data is empty"):
        train(bert(), data, Training(max_steps=1))


def test_data_of_another_type():
    with pytest.raises(UsageError, match="data is a int: expected a task"):
        train(bert(), 3, Training(max_steps=1))


DATA = {
    "texts": (
        Dataset.from_dict({"text": ["a"], "label": [0]}),
        "rows hold text, label and nothing that the model reads",
    ),
    "stream": (sentences(8).to_iterable_dataset(), "cannot train on a IterableDataset.*put into a list"),
    "generator": ((row for row in sentences(8)), "cannot train on a generator.*put into a list"),
    "list-of-texts": (["a fine film"], "no tokenizer: pass the model's own as processor"),
    "loader-as-validation": (
        {"train": sentences(8), "validation": DataLoader(list(sentences(8)))},
        "cannot train on a DataLoader here",
    ),
    "rows-that-differ": ([{"input_ids": [1]}, {"input_ids": "a"}], "rows do not fit together"),
    "splits-without-train": (
        {"test": sentences(8)},
        "cannot train on a dict of test: expected encoded rows as 'train'",
    ),
    "validation-of-texts": ({"train": sentences(8), "validation": [{"text": "a"}]}, "rows hold text"),
    "nothing": ([], "data is empty"),
    "no-splits": ({}, "a dict of nothing"),
}


@pytest.mark.parametrize(("data", "message"), DATA.values(), ids=DATA)
@pytest.mark.parametrize("verb", [train, distill])
def test_data_that_cannot_be_trained_on(verb, data, message):
    teachers, config = ([], Training) if verb is train else ([bert(seed=1)], Distillation)
    with pytest.raises(UsageError, match=message):
        verb(bert(), *teachers, data, config(max_steps=1))


def test_a_list_of_rows_is_data():
    rows, settings = splits(), Training(max_steps=3, batch_size=4, learning_rate=1e-3)
    listed = train(bert(), {name: list(part) for name, part in rows.items()}, settings)
    assert_same_weights(train(bert(), rows, settings).model, listed.model)


def test_unknown_task():
    with pytest.raises(UsageError, match="did you mean 'digits'"):
        train(bert(), "digit", Training(max_steps=1))


def test_no_labels():
    with pytest.raises(UsageError, match="gave no loss"):
        train(bert(), sentences(8).remove_columns("labels"), Training(max_steps=1))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="has a GPU")
def test_fp16_without_a_gpu():
    with pytest.raises(UsageError, match="'bf16' or 'fp32'"):
        train(bert(), splits(), Training(max_steps=1, precision="fp16"))


def test_tracker_that_is_not_installed(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else found(name, *rest)
    )
    with pytest.raises(UsageError, match="pip install wandb"):
        train(bert(), splits(), Training(max_steps=1, tracking="wandb"))


def test_tensorboard_without_a_folder(monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    with pytest.raises(UsageError, match="pass output_dir"):
        train(bert(), splits(), Training(max_steps=1, tracking="tensorboard"))


def test_early_stopping_without_validation_data():
    with pytest.raises(UsageError, match="early_stopping needs validation data"):
        train(bert(), sentences(8), Training(max_steps=1, early_stopping=1))


def test_settings_a_dataloader_cannot_honour():
    loader = DataLoader([sentences(8)[i] for i in range(8)], batch_size=4, collate_fn=Padding(0))
    with pytest.raises(UsageError, match="batch_size cannot be honoured"):
        train(bert(), loader, Training(max_steps=1, batch_size=8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1e-4}, "did you mean 'learning_rate'"),
        ({"batch_size": 0}, "batch_size"),
        ({"precision": "fp8"}, "precision"),
        ({"epochs": -1}, "epochs"),
    ],
)
def test_settings(values, message):
    with pytest.raises(UsageError, match=message):
        Training.parse(values)


def _with_broken_example(broken: int) -> Dataset:
    """Sentences of one length, so that they come in a plain random order, one of them with a NaN label."""
    rows = sentences(64, shortest=6, longest=6)
    return Dataset.from_dict(
        {"input_ids": rows["input_ids"], "labels": [math.nan if i == broken else 0.5 for i in range(64)]}
    )


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(tmp_path):
    from effitrans.training.sampler import EpochSampler

    step = list(EpochSampler(64, seed=0)).index(40) // 4 + 1
    model = bert(num_labels=1, problem_type="regression")
    config = Training(epochs=1, batch_size=4, save_every=1)
    with pytest.raises(TrainingDiverged, match=f"loss became nan at step {step}\\.") as error:
        train(model, _with_broken_example(40), config, output_dir=tmp_path)
    (kept,) = re.findall(r"last good checkpoint is (\S+)\.", str(error.value))
    assert kept == str(complete_checkpoints(tmp_path / "checkpoints")[-1])
    assert kept.endswith(f"checkpoint-{step - 1}")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    assert not model.training


def test_nan_loss_before_any_checkpoint():
    with pytest.raises(TrainingDiverged, match="No checkpoint had been written yet"):
        train(bert(num_labels=1, problem_type="regression"), _with_broken_example(40), Training(epochs=1, batch_size=4))


def test_broken_weights_are_not_saved(tmp_path, monkeypatch):
    def break_weights(self, args, state, control, model=None, **kwargs):
        if state.global_step == 6:
            model.classifier.weight.data[0, 0] = math.inf

    monkeypatch.setattr(Interrupts, "on_step_end", break_weights)
    with pytest.raises(TrainingDiverged, match="weights became NaN or infinite at step 6"):
        train(bert(), splits(), Training(max_steps=9, save_every=3), output_dir=tmp_path)
    (kept,) = complete_checkpoints(tmp_path / "checkpoints")
    assert kept.name == "checkpoint-3"
    assert is_complete(kept)


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant"])
def test_one_step_with_warmup_learns(scheduler):
    model = bert()
    before = weights(model)
    train(model, sentences(4), Training(max_steps=1, scheduler=scheduler, warmup_ratio=0.5))
    assert not torch.equal(model.classifier.weight, before["classifier.weight"])


def test_updates_lost_in_the_precision_of_the_weights():
    model = bert().bfloat16()
    for parameter in model.parameters():
        parameter.data += 1
    with pytest.raises(UsageError, match=r"1 steps of training changed no weight.*bfloat16.*float32"):
        train(model, sentences(4), Training(max_steps=1, learning_rate=1e-12))


def test_no_gradient_reaches_what_learns():
    model = bert().requires_grad_(False)
    model.register_parameter("unused", torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises(UsageError, match=r"no part in the loss.*requires_grad"):
        train(model, sentences(4), Training(max_steps=1, weight_decay=0))


def test_weights_that_break_in_the_last_step():
    with pytest.raises(TrainingDiverged, match=r"the trained model has (NaN|infinite values) in"):
        train(bert(), sentences(4), Training(max_steps=1, learning_rate=1e39, warmup_ratio=0))


def test_a_model_that_is_resumed_after_its_end_may_stay_as_it_is(tmp_path):
    model = bert()
    train(model, splits(), Training(max_steps=2), output_dir=tmp_path)
    assert train(model, splits(), Training(max_steps=2), output_dir=tmp_path, resume=True).steps == 2
