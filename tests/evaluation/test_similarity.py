"""CKA against its definition and invariances; confusion and ROC against scikit-learn; changed examples by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import auc, confusion_matrix, roc_auc_score

from effitrans import Pruning, evaluate, prune
from effitrans.checkpoint import load_model
from effitrans.evaluation import curves
from effitrans.evaluation.record import Flips
from effitrans.evaluation.similarity import linear_cka
from effitrans.tasks import Predictions, load_task


def features(seed: int, n: int = 60, d: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


def test_cka_is_one_under_rotation_scale_and_shift():
    x = features(0)
    rotation = np.linalg.qr(features(1, 5, 5))[0]
    assert linear_cka(x, 3.0 * x @ rotation + 7.0) == pytest.approx(1.0)


def test_cka_of_unrelated_features_is_about_zero_even_with_more_features_than_examples():
    values = [linear_cka(features(2 * s, 40, 200), features(2 * s + 1, 40, 200)) for s in range(20)]
    assert abs(np.mean(values)) < 0.03


def test_cka_is_the_written_out_ratio_of_unbiased_hsic():
    def hsic(k, other):
        n = len(k)
        k, other = k - np.diag(np.diag(k)), other - np.diag(np.diag(other))
        ones = np.ones(n)
        return (
            np.trace(k @ other)
            + (ones @ k @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (ones @ k @ other @ ones)
        ) / (n * (n - 3))

    x, y = features(0, 12, 3), features(1, 12, 4) + features(0, 12, 3)[:, :1]
    k, other = x @ x.T, y @ y.T
    expected = hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))
    assert linear_cka(x, y) == pytest.approx(expected)


def test_layers_of_a_model_are_themselves(tiny_teacher, tiny_task):
    record = evaluate(tiny_teacher, tiny_task, baseline=tiny_teacher, cost=None)
    cka = np.array(record.fidelity.cka)
    assert cka.shape == (5, 5)
    assert np.diag(cka) == pytest.approx(1.0)
    assert (cka < 1 + 1e-9).all()


def test_layers_of_a_shorter_student_are_the_teachers_they_were_copied_from(tiny_teacher, tiny_task):
    teacher = load_model(tiny_teacher, "AutoModelForSequenceClassification")
    student = prune(teacher, Pruning(keep_layers=(0, 1)))
    record = evaluate(student, tiny_task, baseline=tiny_teacher, processor=None, cost=None)
    cka = np.array(record.fidelity.cka)
    assert cka.shape == (3, 5)
    assert np.diag(cka) == pytest.approx(1.0)


def test_confusion_and_roc_are_scikit_learns():
    rng = np.random.default_rng(0)
    references = rng.integers(0, 2, 500).tolist()
    scores = rng.normal(size=(500, 2)).astype(np.float32)
    scores[:, 1] += np.array(references)
    predictions = Predictions(scores.argmax(1).tolist(), references, scores=scores)
    found = curves.confusion(predictions, ("no", "yes"))
    assert np.array_equal(found.counts, confusion_matrix(references, predictions.predictions))
    assert found.labels == ("no", "yes")
    curve = curves.roc(predictions)
    assert len(curve.x) <= curves.POINTS
    assert (curve.x[0], curve.y[0], curve.x[-1], curve.y[-1]) == (0, 0, 1, 1)
    assert auc(curve.x, curve.y) == pytest.approx(roc_auc_score(references, scores[:, 1] - scores[:, 0]), abs=0.01)


def test_a_class_that_does_not_occur_has_no_roc():
    scores = torch.randn(5, 2).numpy()
    assert curves.roc(Predictions([0] * 5, [0] * 5, scores=scores)) is None
    assert curves.confusion(Predictions([0.5], [0.1], scores=np.ones((1, 1), np.float32)), None) is None


def test_changes_name_the_text_and_both_answers(tiny_task):
    task = load_task(tiny_task)
    rows = task.rows("test")
    references = list(rows["label"])
    right, wrong = list(references), [1 - label for label in references]
    model = Predictions([wrong[0], *right[1:]], references)
    baseline = Predictions([right[0], wrong[1], *right[2:]], references)
    lost, gained = curves.changes(Flips(gained=(1,), lost=(0,)), model, baseline, task, "test")
    assert (lost.row, gained.row) == (0, 1)
    assert lost.inputs == (rows[0]["sentence"],)
    names = task.label_names()
    assert (lost.reference, lost.baseline, lost.model) == tuple(names[i] for i in (right[0], right[0], wrong[0]))


def test_a_record_holds_them(tiny_teacher, tiny_task):
    record = evaluate(tiny_teacher, tiny_task, baseline=tiny_teacher, cost=None)
    assert sum(map(sum, record.confusion.counts)) == 16
    assert record.roc is not None
    assert record.fidelity.changes == ()
