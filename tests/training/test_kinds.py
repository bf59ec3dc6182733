"""A task of every kind is trained and distilled, end to end."""

import pytest

from effitrans import Distillation, Training, distill, train
from effitrans.tasks import KINDS, build_processor
from tests.tasks.cases import CASES, make_model
from tests.training.helpers import weights

FAMILIES = {kind: CASES[kind].models[0] for kind in KINDS}
SELECTED_BY = {"sequence-classification": "accuracy", "image-classification": "accuracy", "regression": "pearson"}


@pytest.fixture(params=KINDS)
def task(request, tmp_path):
    case = CASES[request.param].task(tmp_path)
    return case.model_copy(update={"data": {**case.data, "validation": case.data["test"]}})


def test_training(task):
    processor = build_processor(task)
    model = make_model(FAMILIES[task.kind], task, processor)
    before = weights(model)
    config = Training(max_steps=4, batch_size=4, learning_rate=1e-3, eval_every=2, log_every=1)
    result = train(model, task, config, processor=processor)
    assert result.best["metric"] == SELECTED_BY.get(task.kind, "loss")
    assert all(f"eval_{result.best['metric']}" in entry for entry in result.history if "eval_loss" in entry)
    assert any(not (before[name] == tensor).all() for name, tensor in weights(model).items())


@pytest.mark.slow
def test_distillation(task):
    processor = build_processor(task)
    student, teacher = (make_model(FAMILIES[task.kind], task, processor, seed) for seed in (0, 1))
    config = Distillation(max_steps=3, batch_size=4, objective="response,feature")
    result = distill(student, teacher, task, config, processor=processor, teacher_processor=processor)
    assert result.steps == 3
    assert result.loss > 0
