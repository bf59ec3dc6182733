"""Every kind with every family that can do it: what holds for all of them."""

import contextlib

import numpy as np
import pytest
import torch
import transformers

from effitrans.errors import UsageError
from effitrans.tasks import (
    KINDS,
    METRICS,
    calibration_batches,
    collator,
    data_loader,
    encode,
    metric,
    metrics_of,
    predict,
)
from tests.tasks.cases import CASES, make

PAIRS = [(kind, family) for kind, case in CASES.items() for family in case.models]


@pytest.fixture(params=PAIRS, ids=lambda pair: "-".join(pair))
def made(request, tmp_path):
    return make(*request.param, tmp_path)


def test_every_kind_has_a_case_and_metrics():
    assert set(KINDS) == set(CASES)
    assert {name for kind in KINDS.values() for name in metrics_of(kind)} == set(METRICS)
    for name, kind in KINDS.items():
        assert kind.name == name
        assert set(kind.default_metrics) <= set(metrics_of(kind))


def test_metrics_read_what_predictions_of_the_kind_hold(made):
    task, model, processor = made
    predictions = predict(model, task, "test", processor)
    for name in metrics_of(task.behaviour):
        measure = metric(name)
        assert all(getattr(predictions, field) is not None for field in measure.inputs), name
        with np.errstate(all="ignore"), contextlib.suppress(UsageError):  # a metric of two classes, of three
            measure.point(measure.statistics(*(getattr(predictions, field) for field in measure.inputs)))


def test_facts_of_kinds_fit_one_another():
    for kind in KINDS.values():
        assert hasattr(transformers, kind.auto_class)
        assert kind.hub_task
        assert kind.generates == (kind.form != "encoder")
        assert kind.has_labels == (kind.answer in ("class", "tags"))
        assert kind.target_is_text == (kind.answer == "text")


def test_predictions_do_not_depend_on_how_batches_are_made(made):
    task, model, processor = made
    alone = predict(model, task, "test", processor, batch_size=1)
    together = predict(model, task, "test", processor, batch_size=7)
    assert len(alone) == len(together) >= 11
    assert alone.references == together.references
    np.testing.assert_allclose(alone.losses, together.losses, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(alone.weights, together.weights)
    if alone.scores is not None:
        np.testing.assert_allclose(alone.scores, together.scores, atol=1e-5)
        assert together.scores.dtype == np.float32
    if alone.predictions and isinstance(alone.predictions[0], float):
        np.testing.assert_allclose(alone.predictions, together.predictions, atol=1e-5)
    else:
        assert alone.predictions == together.predictions


def test_amount_of_padding_does_not_matter(made):
    task, model, processor = made
    encoded = encode(task, "test", processor, model)
    entries = [encoded[i] for i in range(4)]
    kind = task.behaviour
    outputs = []
    for multiple in (None, 64):
        batch = collator(task, processor, model, pad_to_multiple_of=multiple)(entries)
        with torch.inference_mode():
            outputs.append(kind.predict_batch(task, model, batch, processor, {}))
    key = "cosines" if task.kind == "embedding" else "scores" if task.kind == "regression" else "losses"
    np.testing.assert_allclose(outputs[0][key], outputs[1][key], rtol=1e-4, atol=1e-5)


def test_predict_leaves_the_model_as_it_was(made):
    task, model, processor = made
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_dict()
    predict(model, task, "test", processor, limit=3)
    assert model.training
    assert model.config.to_dict() == config
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_loss_has_gradients(made):
    task, model, processor = made
    batch = next(iter(data_loader(task, "train", processor, batch_size=4, model=model, shuffle_seed=0)))
    loss, _ = task.behaviour.loss(task, model, batch)
    loss.backward()
    assert loss.ndim == 0
    assert torch.isfinite(loss)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


def test_reported_loss_is_the_training_loss(made):
    """Summed losses over summed weights is the model's own mean loss, over one batch of everything."""
    task, model, processor = made
    encoded = encode(task, "test", processor, model)
    batch = collator(task, processor, model)([encoded[i] for i in range(len(encoded))])
    with torch.inference_mode():
        loss, _ = task.behaviour.loss(task, model, batch)
    found = predict(model, task, "test", processor)
    assert found.losses.sum() / found.weights.sum() == pytest.approx(loss.item(), rel=1e-4)


def test_batches_for_passes_run_through_the_model(made):
    task, model, processor = made
    batches = list(calibration_batches(task, model, processor, limit=5, batch_size=3, seed=0))
    assert len(batches) == 2
    for batch in batches:
        model(**batch)
    again = list(calibration_batches(task, model, processor, limit=5, batch_size=3, seed=0))
    assert all(torch.equal(a[name], b[name]) for a, b in zip(batches, again, strict=True) for name in a)


def test_limit_takes_the_first_examples(made):
    task, model, processor = made
    everything = predict(model, task, "test", processor)
    some = predict(model, task, "test", processor, limit=3)
    assert len(some) == 3
    np.testing.assert_allclose(some.losses, everything.losses[:3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_trainer_takes_encoded_data(kind, tmp_path):
    from transformers import Trainer, TrainingArguments

    task, model, processor = make(kind, "base", tmp_path)
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=4, report_to="none", use_cpu=True,
        remove_unused_columns=False, disable_tqdm=True, save_strategy="no", logging_steps=1,
    )  # fmt: skip

    class WithKind(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = task.behaviour.loss(task, model, inputs)
            return (loss, outputs) if return_outputs else loss

    trainer = WithKind(
        model, arguments, data_collator=collator(task, processor, model, train=True),
        train_dataset=encode(task, "train", processor, model),
    )  # fmt: skip
    assert np.isfinite(trainer.train().training_loss)
