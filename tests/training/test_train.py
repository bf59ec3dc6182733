"""What a training run gives back, and what it leaves alone."""

import os
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from effitrans import Training, checkpoint, train
from effitrans.tasks.padding import Padding
from tests.training.helpers import assert_same_weights, bert, sentences, splits, weights


def _validation_loss(model, rows):
    batch = Padding(0)([rows[i] for i in range(len(rows))])
    with torch.no_grad():
        return model(**batch).loss.item()


def test_learns_and_returns_the_best_state():
    data, model = splits(), bert()
    before = _validation_loss(model.eval(), data["validation"])
    result = train(model, data, Training(epochs=4, batch_size=16, learning_rate=3e-3, log_every=5))

    evaluations = {entry["step"]: entry["eval_loss"] for entry in result.history if "eval_loss" in entry}
    assert result.model is model
    assert not model.training
    assert result.steps == 24
    assert sorted(evaluations) == [6, 12, 18, 24]
    assert result.best == {"metric": "loss", "value": min(evaluations.values()), "step": result.best["step"]}
    assert evaluations[result.best["step"]] == result.best["value"] < 0.6 * before
    assert _validation_loss(model, data["validation"]) == pytest.approx(result.best["value"], rel=1e-3)


def test_keep_best_false_returns_the_last_state():
    config = {"epochs": 3, "batch_size": 16, "learning_rate": 0.02}  # too fast: the last state is not the best
    data, last, best = splits(), bert(), bert()
    result = train(last, data, Training(**config, keep_best=False))
    train(best, data, Training(**config))
    final = next(entry["eval_loss"] for entry in reversed(result.history) if "eval_loss" in entry)
    assert _validation_loss(last, data["validation"]) == pytest.approx(final, rel=1e-3)
    assert _validation_loss(best, data["validation"]) <= final + 1e-6


def test_history_records_the_run():
    model = bert()
    result = train(model, splits(), Training(max_steps=3))
    (entry,) = checkpoint.history(model)
    assert entry["verb"] == "train"
    assert entry["config"]["max_steps"] == 3
    assert entry["summary"] == {"steps": 3, "loss": result.loss, "best": result.best}
    assert getattr(model.config, "quantization_config", None) is None


def test_leaves_no_trace_outside_the_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = bert()
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    expected = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    train(model, splits(), Training(max_steps=3, batch_size=8, log_every=1))
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert random.getstate() == expected[1]
    assert np.random.get_state()[1].tolist() == expected[2]
    assert model.config.use_cache is True
    assert os.listdir(tmp_path) == []
    assert capsys.readouterr().out == ""


def test_logs_go_to_logging(caplog):
    with caplog.at_level("INFO", logger="effitrans"):
        train(bert(), splits(), Training(max_steps=4, log_every=2))
    lines = [record.message for record in caplog.records]
    assert any(line.startswith("step 2 of 4: loss ") for line in lines)
    assert any(line.startswith("step 4 of 4: validation loss ") for line in lines)


def test_same_seed_same_result_and_another_seed_another():
    results = {}
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        torch.manual_seed(random.randrange(1000))  # the caller's random state must not matter
        model = bert(seed=0)
        train(model, splits(), Training(epochs=1, batch_size=16, seed=seed))
        results[name] = model
    assert_same_weights(results["first"], results["second"])
    assert not torch.equal(results["first"].classifier.weight, results["other"].classifier.weight)


def test_dataloader_of_batches():
    rows = sentences(32)
    loader = DataLoader([rows[i] for i in range(32)], batch_size=8, shuffle=True, collate_fn=Padding(0))
    model = bert()
    before = weights(model)
    result = train(model, loader, Training(epochs=2, learning_rate=1e-3))
    assert result.steps == 8
    assert result.best is None
    assert not torch.equal(before["classifier.weight"], model.classifier.weight)


def test_training_arguments_are_honoured():
    result = train(
        bert(),
        splits(),
        Training(max_steps=10, batch_size=8, learning_rate=1e-3, warmup_ratio=0.2, scheduler="constant", log_every=1),
    )
    rates = [entry["learning_rate"] for entry in result.history if "learning_rate" in entry]
    assert rates == pytest.approx([0, 5e-4] + [1e-3] * 8)


def test_limits_on_examples():
    result = train(bert(), splits(), Training(epochs=1, batch_size=8, max_train_examples=20, max_eval_examples=4))
    assert result.steps == 3


def test_bf16_trains_and_leaves_an_ordinary_model():
    model = bert()
    result = train(model, splits(), Training(epochs=2, batch_size=16, learning_rate=3e-3, precision="bf16"))
    losses = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    fresh = bert()
    fresh.load_state_dict(model.state_dict())
    batch = Padding(0)([sentences(4)[i] for i in range(4)])
    with torch.no_grad():  # no autocast is left around the forward pass
        assert torch.equal(model(**batch).logits, fresh.eval()(**batch).logits)
        assert torch.equal(model(**batch, return_dict=True).logits, model(**batch, return_dict=False)[1])
    assert "forward" not in vars(model)


def test_gradient_checkpointing_changes_nothing():
    models = {}
    for recompute in (False, True):
        models[recompute] = bert(dropout=0.0)
        train(models[recompute], splits(), Training(max_steps=3, gradient_checkpointing=recompute))
    for name, tensor in weights(models[True]).items():
        torch.testing.assert_close(tensor, weights(models[False])[name], rtol=1e-4, atol=1e-6, msg=name)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in models[True].modules())


def test_early_stopping():
    config = Training(epochs=30, batch_size=16, learning_rate=0.05, early_stopping=2)
    result = train(bert(), splits(), config)
    losses = [entry["eval_loss"] for entry in result.history if "eval_loss" in entry]
    assert result.steps < 30 * 6
    assert losses.index(min(losses)) == len(losses) - 3


def test_eval_every_steps_evaluates_the_last_state_too():
    result = train(bert(), splits(), Training(max_steps=7, batch_size=8, eval_every=3))
    assert [entry["step"] for entry in result.history if "eval_loss" in entry] == [3, 6, 7]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    train(bert(), splits(), Training(max_steps=2, log_every=1, tracking="tensorboard"), output_dir=tmp_path / "run")
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_evaluation_pads_little():
    """Validation examples come by length; the figures are those of any order."""
    shapes: list[int] = []
    model, data = bert(), splits()
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(kwargs["input_ids"].shape[1]) if not module.training else None,
        with_kwargs=True,
    )
    result = train(model, data, Training(epochs=1, batch_size=8, keep_best=False))
    handle.remove()
    lengths = sorted(len(tokens) for tokens in data["validation"]["input_ids"])
    assert shapes == lengths[7::8]
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([ids])).logits for ids in data["validation"]["input_ids"]]
    expected = torch.nn.functional.cross_entropy(torch.cat(logits), torch.tensor(data["validation"]["labels"]))
    assert result.history[-1]["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
