"""The losses against what their formulas say."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax
from torch import Tensor

from effitrans import UsageError
from effitrans.distillation.objectives import DistillationBatch, Feature, Response
from effitrans.distillation.objectives.dkd import decoupled_divergence
from effitrans.distillation.objectives.feature import FeatureConfig, relative_error
from effitrans.distillation.objectives.pkd import PKD
from effitrans.distillation.objectives.response import SoftenedConfig, soft_divergence
from effitrans.distillation.objectives.rkd import angle_loss, distance_loss


def _logits(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


sizes = st.tuples(st.integers(1, 6), st.integers(2, 9))
temperatures = st.floats(0.2, 20)
seeds = st.integers(0, 10_000)


@settings(max_examples=60, deadline=None)
@given(size=sizes, temperature=temperatures, seed=seeds)
def test_soft_divergence_is_the_formula(size, temperature, seed):
    student, teacher = _logits(seed, *size), _logits(seed + 1, *size)
    p = softmax(teacher.double().numpy() / temperature, -1)
    q = softmax(student.double().numpy() / temperature, -1)
    expected = temperature**2 * rel_entr(p, q).sum(-1).mean()
    value = soft_divergence(student, teacher, temperature).item()
    assert value == pytest.approx(expected, rel=1e-3, abs=1e-5 * temperature**2)


@settings(max_examples=40, deadline=None)
@given(size=sizes, temperature=temperatures, seed=seeds, shift=st.floats(-20, 20))
def test_soft_divergence_ignores_a_shift_and_is_never_negative(size, temperature, seed, shift):
    student, teacher = _logits(seed, *size), _logits(seed + 1, *size)
    value = soft_divergence(student, teacher, temperature).item()
    tolerance = 1e-5 * temperature**2
    assert value >= -tolerance
    assert soft_divergence(student + shift, teacher - shift, temperature).item() == pytest.approx(
        value, rel=1e-2, abs=tolerance
    )
    assert soft_divergence(teacher + shift, teacher, temperature).item() == pytest.approx(0, abs=tolerance)


@settings(max_examples=40, deadline=None)
@given(size=sizes, seed=seeds)
def test_a_high_temperature_compares_centred_logits(size, seed):
    """Hinton et al. 2015, equation 4: with a large T the loss tends to the squared error of centred logits / 2."""
    student, teacher = _logits(seed, *size).double(), _logits(seed + 1, *size).double()
    difference = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    limit = 0.5 * difference.square().mean(-1).mean().item()
    assert soft_divergence(student, teacher, 60.0).item() == pytest.approx(limit, rel=0.2, abs=2e-2)


def test_the_gradient_has_the_same_size_at_every_temperature():
    norms = []
    for temperature in (5.0, 20.0, 80.0):
        student = _logits(0, 8, 5, scale=0.5).requires_grad_()
        soft_divergence(student, _logits(1, 8, 5, scale=0.5), temperature).backward()
        norms.append(student.grad.norm().item())
    assert max(norms) < 1.05 * min(norms)


def test_temperature_one_with_a_one_hot_teacher_is_cross_entropy():
    student, labels = _logits(0, 6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    teacher = torch.where(torch.nn.functional.one_hot(labels, 4).bool(), 0.0, -1e4)
    expected = torch.nn.functional.cross_entropy(student, labels)
    torch.testing.assert_close(soft_divergence(student, teacher, 1.0), expected)


def _response(batch: DistillationBatch, temperature: float = 2.0) -> float:
    return Response(SoftenedConfig(temperature=temperature), batch)(batch).item()


def test_tokens_are_compared_where_there_is_a_label():
    student, teacher = _logits(0, 2, 4, 7), _logits(1, 2, 4, 7)
    labels = torch.tensor([[3, -100, 2, -100], [-100, -100, 1, 4]])
    batch = DistillationBatch({"logits": student}, {"logits": teacher}, {"labels": labels})
    chosen = labels.ne(-100)
    assert _response(batch) == pytest.approx(soft_divergence(student[chosen], teacher[chosen], 2.0).item())
    elsewhere = student.clone()
    elsewhere[~chosen] = 100.0
    assert _response(DistillationBatch({"logits": elsewhere}, {"logits": teacher}, {"labels": labels})) == _response(
        batch
    )


def test_next_tokens_are_compared_where_the_next_label_is():
    student, teacher = _logits(0, 2, 4, 7), _logits(1, 2, 4, 7)
    labels = torch.tensor([[3, 4, 2, -100], [5, -100, 1, 4]])
    batch = DistillationBatch({"logits": student}, {"logits": teacher}, {"labels": labels}, shifted=True)
    rows = ([0, 0, 1, 1], [0, 1, 1, 2])
    assert _response(batch) == pytest.approx(soft_divergence(student[rows], teacher[rows], 2.0).item())


def test_without_labels_every_token_counts_and_no_padding():
    student, teacher = _logits(0, 2, 4, 7), _logits(1, 2, 4, 7)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    batch = DistillationBatch({"logits": student}, {"logits": teacher}, {"attention_mask": mask})
    chosen = mask.bool()
    assert _response(batch) == pytest.approx(soft_divergence(student[chosen], teacher[chosen], 2.0).item())
    student[1, 2:] += 50
    assert _response(batch) == pytest.approx(soft_divergence(student[chosen], teacher[chosen], 2.0).item())


def test_answer_positions_do_not_depend_on_the_padding():
    outputs = [{"start_logits": _logits(i, 2, 5), "end_logits": _logits(i + 2, 2, 5)} for i in range(2)]
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    value = _response(DistillationBatch(*outputs, {"attention_mask": mask}))
    parts = [
        soft_divergence(outputs[0][name][row, :length], outputs[1][name][row, :length], 2.0).item()
        for name in ("start_logits", "end_logits")
        for row, length in ((slice(0, 1), 5), (slice(1, 2), 3))
    ]
    assert value == pytest.approx(sum(parts) / 4, rel=1e-5)
    longer = [{name: torch.nn.functional.pad(x, (0, 3), value=9.0) for name, x in o.items()} for o in outputs]
    assert _response(
        DistillationBatch(*longer, {"attention_mask": torch.nn.functional.pad(mask, (0, 3))})
    ) == pytest.approx(value)


def test_independent_labels_are_pairs_of_classes():
    student, teacher = _logits(0, 3, 4), _logits(1, 3, 4)
    batch = DistillationBatch({"logits": student}, {"logits": teacher}, {}, problem_type="multi_label_classification")
    s, t = student.double().numpy(), teacher.double().numpy()
    p, q = 1 / (1 + np.exp(-t)), 1 / (1 + np.exp(-s))
    expected = (rel_entr(p, q) + rel_entr(1 - p, 1 - q)).mean()
    assert _response(batch, temperature=1.0) == pytest.approx(expected, rel=1e-4)


def test_regression_is_the_squared_error():
    student, teacher = _logits(0, 5, 1), _logits(1, 5, 1)
    batch = DistillationBatch({"logits": student}, {"logits": teacher}, {}, problem_type="regression")
    assert _response(batch) == pytest.approx((student - teacher).square().mean().item())


def test_half_precision_logits_are_compared_in_single():
    student, teacher = _logits(0, 4, 300), _logits(1, 4, 300)
    full = soft_divergence(student.bfloat16().float(), teacher.bfloat16().float(), 2.0)
    assert torch.equal(soft_divergence(student.bfloat16(), teacher.bfloat16(), 2.0), full)


@settings(max_examples=40, deadline=None)
@given(batch=st.integers(1, 4), length=st.integers(1, 6), width=st.integers(1, 8), seed=seeds)
def test_relative_error_is_the_formula(batch, length, width, seed):
    student, teacher = _logits(seed, batch, length, width), _logits(seed + 1, batch, length, width)
    lengths = torch.randint(1, length + 1, (batch,), generator=torch.Generator().manual_seed(seed))
    attended = torch.arange(length)[None] < lengths[:, None]
    expected = [
        np.mean([
            ((student[b, i] - teacher[b, i]) ** 2).sum().item() / (teacher[b, i] ** 2).sum().item()
            for i in range(lengths[b])
        ])
        for b in range(batch)
    ]  # fmt: skip
    assert relative_error(student, teacher, attended).item() == pytest.approx(np.mean(expected), rel=1e-4)
    scaled = relative_error(10 * student, 10 * teacher, attended)
    torch.testing.assert_close(scaled, relative_error(student, teacher, attended), rtol=1e-4, atol=1e-6)


def _states(seed: int, layers: int, width: int) -> tuple[Tensor, ...]:
    return tuple(_logits(seed + i, 2, 3, width) for i in range(layers + 1))


def _feature_batch(
    student_layers: int, student_width: int, teacher_layers: int, teacher_width: int
) -> DistillationBatch:
    return DistillationBatch(
        {"hidden_states": _states(0, student_layers, student_width)},
        {"hidden_states": _states(50, teacher_layers, teacher_width)},
        {"attention_mask": torch.ones(2, 3)},
    )


def test_states_of_equal_width_need_no_projection():
    batch = _feature_batch(2, 4, 4, 4)
    feature = Feature(FeatureConfig(), batch)
    assert feature.pairs == {"layers": {0: 0, 1: 2, 2: 4}}
    assert list(feature.parameters()) == []
    student, teacher = batch.student["hidden_states"], batch.teacher["hidden_states"]
    everywhere = torch.ones(2, 3, dtype=torch.bool)
    expected = [relative_error(student[i], teacher[2 * i], everywhere).item() for i in range(3)]
    assert feature(batch).item() == pytest.approx(sum(expected) / 3)


def test_projections_are_learned():
    batch = _feature_batch(2, 4, 3, 6)
    feature = Feature(FeatureConfig(), batch)
    assert {name: tuple(p.shape) for name, p in feature.named_parameters() if name.endswith("weight")} == {
        f"projections.layers_{i}.weight": (6, 4) for i in range(3)
    }
    feature(batch).backward()
    for name, parameter in feature.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    optimizer = torch.optim.Adam(feature.parameters(), lr=0.05)
    before = feature(batch).item()
    for _ in range(100):
        optimizer.zero_grad()
        feature(batch).backward()
        optimizer.step()
    assert feature(batch).item() < 0.5 * before


def test_encoder_and_decoder_are_two_stacks():
    states = {"encoder_hidden_states": _states(0, 2, 4), "decoder_hidden_states": _states(9, 1, 4)}
    batch = DistillationBatch(states, states, {"attention_mask": torch.ones(2, 3), "labels": torch.zeros(2, 3)})
    feature = Feature(FeatureConfig(), batch)
    assert feature.pairs == {"encoder": {0: 0, 1: 1, 2: 2}, "decoder": {0: 0, 1: 1}}
    assert feature(batch).item() == 0


def test_models_of_another_form_are_refused():
    encoder = {"hidden_states": _states(0, 2, 4)}
    both = {"encoder_hidden_states": _states(0, 2, 4), "decoder_hidden_states": _states(9, 1, 4)}
    with pytest.raises(UsageError, match="stacks of layers"):
        Feature(FeatureConfig(), DistillationBatch(encoder, both, {}))


def test_states_at_other_positions_are_refused():
    short = {"hidden_states": tuple(state[:, :2] for state in _states(0, 2, 4))}
    with pytest.raises(UsageError, match="different positions"):
        Feature(FeatureConfig(), DistillationBatch(short, {"hidden_states": _states(0, 2, 4)}, {}))


def test_logits_of_another_shape_are_refused():
    batch = DistillationBatch({"logits": _logits(0, 2, 3)}, {"logits": _logits(0, 2, 4)}, {})
    with pytest.raises(UsageError, match="different shapes"):
        Response(SoftenedConfig(), batch)


def test_models_without_the_same_head_are_refused():
    with pytest.raises(UsageError, match="not give the same kind"):
        Response(
            SoftenedConfig(),
            DistillationBatch({"logits": _logits(0, 2, 3)}, {"last_hidden_state": _logits(0, 2, 4)}, {}),
        )


def test_log_probabilities_stay_finite():
    """A teacher that is certain, and wrong by a lot, gives a large loss and no infinity."""
    value = soft_divergence(torch.tensor([[200.0, -200.0]]), torch.tensor([[-200.0, 200.0]]), 1.0).item()
    assert value == pytest.approx(400.0)


@pytest.mark.parametrize("count", [3, 5, 8])
def test_rkd_is_the_authors_reduction_up_to_the_factors_it_names(count):
    student, teacher = _logits(1, count, 4).double(), _logits(2, count, 6).double()

    def relations(side: Tensor) -> tuple[Tensor, Tensor]:
        """Over all N^2 pairs and N^3 triplets, those with an example twice among them."""
        towards = side[None] - side[:, None]
        distances = towards.norm(dim=-1)
        units = torch.nn.functional.normalize(towards, dim=-1)
        return distances / distances[distances > 0].mean(), units @ units.transpose(1, 2)

    theirs = [
        torch.nn.functional.smooth_l1_loss(s, t) for s, t in zip(relations(student), relations(teacher), strict=True)
    ]
    factors = (count - 1) / count, (count - 1) * (count - 2) / count**2
    assert torch.allclose(factors[0] * distance_loss(student, teacher), theirs[0])
    assert torch.allclose(factors[1] * angle_loss(student, teacher), theirs[1])


def test_pkd_is_the_authors_reduction_times_the_width():
    student, teacher = _logits(1, 4, 3, 16), _logits(2, 4, 3, 16)
    units = [torch.nn.functional.normalize(side[:, 0], dim=-1) for side in (student, teacher)]
    ours = PKD.distance(student, teacher, torch.ones(4, 3, dtype=torch.bool))
    assert torch.allclose(ours / 16, torch.nn.functional.mse_loss(*units))


def test_dkd_has_the_weights_of_the_authors():
    """alpha * (label against the rest) + beta * (among the rest), per example, times T^2."""
    student, teacher, labels = _logits(1, 5, 4), _logits(2, 5, 4), torch.tensor([0, 1, 2, 3, 0])
    alpha, beta, temperature = 2.0, 6.0, 3.0
    sides = [torch.softmax(side / temperature, -1) for side in (student, teacher)]
    label = torch.nn.functional.one_hot(labels, 4).bool()
    pairs = [torch.stack([side[label], side.masked_fill(label, 0).sum(-1)], -1) for side in sides]
    rests = [side[~label].reshape(5, 3) / side[~label].reshape(5, 3).sum(-1, keepdim=True) for side in sides]
    parts = [(t * (t.log() - s.log())).sum() / 5 * temperature**2 for s, t in (pairs, rests)]
    ours = alpha * decoupled_divergence(student, teacher, labels, temperature, beta / alpha)
    assert torch.allclose(ours, alpha * parts[0] + beta * parts[1], atol=1e-5)
