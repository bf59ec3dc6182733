"""The other losses of predictions and of states against what their formulas say."""

import numpy as np
import pytest
import torch
from scipy.special import rel_entr, softmax

from effitrans import UsageError
from effitrans.distillation.objectives import OBJECTIVES, DistillationBatch, Feature
from effitrans.distillation.objectives.dkd import decoupled_divergence
from effitrans.distillation.objectives.feature import FeatureConfig
from effitrans.distillation.objectives.response import soft_divergence
from effitrans.distillation.objectives.sentence_embedding import SentenceEmbedding, similarity_error


def _random(seed, *shape):
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _value(name, batch, **settings):
    return OBJECTIVES[name](OBJECTIVES[name].config_class(**settings), batch)(batch).item()


@pytest.mark.parametrize("classes", [2, 3, 9])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_divergence_is_the_formula(classes, temperature):
    student, teacher, labels = _random(0, 6, classes), _random(1, 6, classes), torch.arange(6) % classes
    expected = []
    for s, t, y in zip(student.double().numpy(), teacher.double().numpy(), labels.tolist(), strict=True):
        q, p = softmax(s / temperature), softmax(t / temperature)
        pair = rel_entr([p[y], 1 - p[y]], [q[y], 1 - q[y]]).sum()
        q, p = (np.delete(x, y) / np.delete(x, y).sum() for x in (q, p))
        expected.append(pair + 3.0 * rel_entr(p, q).sum())
    value = decoupled_divergence(student, teacher, labels, temperature, 3.0).item()
    assert value == pytest.approx(temperature**2 * np.mean(expected), rel=1e-4)


def test_decoupled_parts_make_up_the_divergence():
    """Zhao et al. 2022, equation 5: weighted with the teacher's doubt, the second part completes the divergence."""
    student, teacher, labels = _random(0, 1, 5), _random(1, 1, 5), torch.tensor([2])
    doubt = 1 - torch.softmax(teacher, -1)[0, 2].item()
    whole = decoupled_divergence(student, teacher, labels, 1.0, doubt).item()
    assert whole == pytest.approx(soft_divergence(student, teacher, 1.0).item(), rel=1e-5)


def test_decoupled_gradients_are_finite():
    student = torch.tensor([[200.0, -200.0, 0.0]], requires_grad=True)
    decoupled_divergence(student, torch.tensor([[-200.0, 200.0, 3.0]]), torch.tensor([1]), 1.0, 8.0).backward()
    assert student.grad.isfinite().all()


def test_dkd_takes_the_next_token_as_label():
    student, teacher = _random(0, 2, 4, 7), _random(1, 2, 4, 7)
    labels = torch.tensor([[3, 4, 2, -100], [5, -100, 1, 6]])
    batch = DistillationBatch({"logits": student}, {"logits": teacher}, {"labels": labels}, shifted=True)
    rows = ([0, 0, 1, 1], [0, 1, 1, 2])
    expected = decoupled_divergence(student[rows], teacher[rows], torch.tensor([4, 2, 1, 6]), 2.0, 8.0).item()
    assert _value("dkd", batch) == pytest.approx(expected)
    without = DistillationBatch({"logits": student}, {"logits": teacher}, {"attention_mask": torch.ones(2, 4)})
    with pytest.raises(UsageError, match="needs labels"):
        _value("dkd", without)


def test_logit_mse_is_the_formula_where_there_is_something_to_predict():
    student, teacher = _random(0, 2, 4, 7), _random(1, 2, 4, 7)
    labels = torch.tensor([[3, -100, 2, -100], [-100, -100, 1, 4]])
    chosen = labels.ne(-100)
    batch = DistillationBatch({"logits": student}, {"logits": teacher}, {"labels": labels})
    expected = (student[chosen] - teacher[chosen]).square().mean().item()
    assert _value("logit_mse", batch) == pytest.approx(expected)
    student[~chosen] += 9
    assert _value("logit_mse", batch) == pytest.approx(expected)


def test_logit_mse_of_answer_spans_leaves_padding_out():
    sides = [{"start_logits": _random(i, 2, 5), "end_logits": _random(i + 2, 2, 5)} for i in range(2)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    squares = [(sides[0][name] - sides[1][name]).square() for name in ("start_logits", "end_logits")]
    expected = np.mean([[s[0].mean(), s[1, :3].mean()] for s in squares])
    assert _value("logit_mse", DistillationBatch(*sides, {"attention_mask": mask})) == pytest.approx(expected)


MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]])


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_sentence_embedding_compares_directions_and_similarities(pooling):
    sides = [_random(seed, 3, 4, 6) for seed in (0, 1)]
    batch = DistillationBatch(*({"last_hidden_state": s} for s in sides), {"attention_mask": MASK}, pooling=pooling)
    lengths = MASK.sum(1).tolist()
    vectors = [
        torch.stack([row[0] if pooling == "first" else row[:n].mean(0) for row, n in zip(side, lengths, strict=True)])
        for side in sides
    ]
    unit = [v / v.norm(dim=1, keepdim=True) for v in vectors]
    similar = [(unit[0] @ unit[0].T - unit[1] @ unit[1].T)[i, j].item() ** 2 for i, j in ((0, 1), (0, 2), (1, 2))]
    expected = (1 - (unit[0] * unit[1]).sum(1)).mean().item() + np.mean(similar)
    assert _value("sentence_embedding", batch) == pytest.approx(expected, rel=1e-5)
    assert _value("response", batch) == pytest.approx(expected, rel=1e-5)


def test_vectors_of_other_widths_are_projected():
    batch = DistillationBatch(
        {"last_hidden_state": _random(0, 3, 4, 6)}, {"last_hidden_state": _random(1, 3, 4, 8)}, {}
    )
    objective = SentenceEmbedding(SentenceEmbedding.config_class(), batch)
    objective(batch).backward()
    assert {name: tuple(p.shape) for name, p in objective.named_parameters()} == {
        "projection.weight": (8, 6), "projection.bias": (8,)
    }  # fmt: skip
    assert all(p.grad.abs().sum() > 0 for p in objective.parameters())
    assert similarity_error(_random(0, 1, 3), _random(1, 1, 3)).item() == 0


def test_models_with_a_head_give_no_vectors():
    batch = DistillationBatch({"logits": _random(0, 2, 2)}, {"logits": _random(0, 2, 2)}, {})
    with pytest.raises(UsageError, match="without a head"):
        _value("sentence_embedding", batch)


def _states(seed, layers, width):
    return tuple(_random(seed + i, 3, 4, width) for i in range(layers + 1))


def _state_batch(width=6):
    sides = ({"hidden_states": _states(0, 2, 6)}, {"hidden_states": _states(50, 4, width)})
    return DistillationBatch(*sides, {"attention_mask": MASK})


def test_cosine_is_the_formula():
    batch = _state_batch()
    errors = []
    for mine, theirs in ((0, 0), (1, 2), (2, 4)):
        s, t = batch.student["hidden_states"][mine], batch.teacher["hidden_states"][theirs]
        cosine = (s * t).sum(-1) / s.norm(dim=-1) / t.norm(dim=-1)
        errors.append(np.mean([(1 - row[:n]).mean() for row, n in zip(cosine, (4, 2, 3), strict=True)]))
    assert _value("cosine", batch) == pytest.approx(np.mean(errors), rel=1e-5)


def test_pkd_compares_first_tokens_of_layers():
    batch = _state_batch()
    errors = []
    for mine, theirs in ((1, 3), (2, 4)):
        s, t = batch.student["hidden_states"][mine][:, 0], batch.teacher["hidden_states"][theirs][:, 0]
        errors.append((s / s.norm(dim=1, keepdim=True) - t / t.norm(dim=1, keepdim=True)).square().sum(1).mean())
    assert _value("pkd", batch, layer_mapping="last") == pytest.approx(np.mean(errors), rel=1e-5)


def test_embedding_layer_compares_the_states_before_the_first_layer():
    batch = _state_batch()
    s, t = batch.student["hidden_states"][0], batch.teacher["hidden_states"][0]
    errors = (s - t).square().sum(-1) / t.square().sum(-1)
    expected = np.mean([row[:n].mean() for row, n in zip(errors, (4, 2, 3), strict=True)])
    assert _value("embedding_layer", batch) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("objective", ["feature", "cosine", "pkd"])
def test_dynamic_is_the_best_mapping_of_each_batch(objective):
    batch = _state_batch()
    pairs = [{1: a, 2: b} for a in range(1, 5) for b in range(a + 1, 5)]
    first = {} if objective == "pkd" else {0: 0}
    best = min(_value(objective, batch, layer_mapping={**first, **mapping}) for mapping in pairs)
    assert _value(objective, batch, layer_mapping="dynamic") == pytest.approx(best, rel=1e-5)


def test_dynamic_learns_a_projection_a_state():
    batch = _state_batch(width=8)
    objective = Feature(FeatureConfig(layer_mapping="dynamic"), batch)
    objective(batch).backward()
    assert set(objective.projections) == {"layers_0", "layers_1", "layers_2"}
    assert all(p.grad is not None for p in objective.parameters())


def test_skip_follows_what_pruning_kept():
    batch = DistillationBatch(_state_batch().student, _state_batch().teacher, {}, kept={"encoder": [1, 2]})
    objective = Feature(FeatureConfig(layer_mapping="skip"), batch)
    assert objective.pairs == {"layers": {0: 0, 1: 2, 2: 3}}
