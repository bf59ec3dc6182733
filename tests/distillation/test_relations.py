"""Relations between tokens and between examples, against what their formulas say."""

import copy

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from scipy.special import log_softmax, rel_entr, softmax

from effitrans import Distillation, UsageError, distill, swap_attention
from effitrans.attention import AttentionMask, operator_config
from effitrans.attention.interface import Call
from effitrans.distillation.objectives import DistillationBatch
from effitrans.distillation.objectives.attention import Attention, AttentionConfig, divergence, log_probabilities
from effitrans.distillation.objectives.relation import Relation, RelationConfig, log_relations
from effitrans.distillation.objectives.rkd import RKD, angle_loss, distance_loss
from effitrans.distillation.recording import AttentionRecorder, through_interface
from tests.architectures.families import FAMILIES, THROUGH_INTERFACE

SIZES = {"vocab_size": 30, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16}
MODELS = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(hidden_size=32, intermediate_size=32, **SIZES)),
    "gpt2": lambda: transformers.GPT2Model(transformers.GPT2Config(vocab_size=30, n_embd=32, n_layer=2, n_head=4)),
    "llama-grouped": lambda: transformers.LlamaModel(
        transformers.LlamaConfig(hidden_size=32, intermediate_size=32, num_key_value_heads=2, **SIZES)
    ),
}
if THROUGH_INTERFACE == FAMILIES:
    MODELS["t5-encoder"] = lambda: transformers.T5EncoderModel(
        transformers.T5Config(vocab_size=30, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4)
    )


def _random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
def test_probabilities_are_those_of_the_model(name):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    inputs = {"input_ids": torch.randint(1, 30, (2, 7)), "attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3])}
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    before = model.config._attn_implementation
    recorder = AttentionRecorder(model)
    with torch.no_grad(), through_interface(model), recorder.running():
        model(**inputs)
        expected = twin(**inputs, output_attentions=True).attentions
    assert model.config._attn_implementation == before
    (calls,) = recorder.take().values()
    assert len(calls) == len(expected) == 2
    tokens = inputs["attention_mask"].bool()
    for call, probabilities in zip(calls, expected, strict=True):
        found = log_probabilities(call).exp().transpose(1, 2)
        torch.testing.assert_close(found[tokens], probabilities.transpose(1, 2)[tokens], rtol=1e-4, atol=1e-6)
    assert all(call is None for calls in recorder.take().values() for call in calls)


def _call(seed, heads, groups, width, length=5, batch=2):
    mask = AttentionMask(batch, length, length)
    return Call(
        _random(seed, batch, heads, length, width),
        _random(seed + 1, batch, groups, length, width),
        _random(seed + 2, batch, groups, length, width),
        mask, width**-0.5, {},
    )  # fmt: skip


ATTENDED = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


def _batch(student, teacher):
    return DistillationBatch(
        {"attention": {"encoder": student}}, {"attention": {"encoder": teacher}}, {"attention_mask": ATTENDED}
    )


def test_attention_is_the_divergence_of_each_head():
    student, teacher = _call(0, 2, 2, 4), _call(9, 2, 1, 6)
    p, q = (log_probabilities(call).double().exp().numpy() for call in (teacher, student))
    per_query = rel_entr(p, q).sum(-1).mean(1)
    expected = np.mean([per_query[0].mean(), per_query[1, :3].mean()])
    assert divergence(student, teacher, ATTENDED.bool()).item() == pytest.approx(expected, rel=1e-4)
    batch = _batch((student, student), (teacher, student, teacher))
    objective = Attention(AttentionConfig(layer_mapping={2: 1}), batch)
    assert objective.pairs == {"encoder": {1: 0}}
    assert objective(batch).item() == pytest.approx(expected, rel=1e-4)


def test_layers_are_counted_where_attention_was_removed():
    calls = [_call(seed, 2, 2, 4) for seed in range(4)]
    student, teacher = (calls[0], None, calls[1]), (calls[0], calls[2], calls[3])
    objective = Attention(AttentionConfig(), _batch(student, teacher))
    assert objective.pairs == {"encoder": {0: 0, 2: 2}}
    objective = Attention(AttentionConfig(layer_mapping={3: 2}), _batch(student, teacher))
    assert objective(_batch(student, teacher)) == divergence(calls[1], calls[2], ATTENDED.bool())
    with pytest.raises(UsageError, match=r"layer_mapping {2: 1}: layer 2 of the student has no attention"):
        Attention(AttentionConfig(layer_mapping={2: 1}), _batch(student, teacher))
    with pytest.raises(UsageError, match="no layer of the encoder of one of the models has attention"):
        Relation(RelationConfig(), _batch((None, None), teacher))


def test_the_last_layer_that_has_attention_is_related():
    calls = [_call(seed, 2, 2, 4) for seed in range(3)]
    batch = _batch((calls[0], None), (calls[1], calls[2], None))
    objective = Relation(RelationConfig(), batch)
    assert objective.layers == {"encoder": (0, 1)}
    whole = _batch((calls[0],), (calls[2],))
    assert objective(batch) == Relation(RelationConfig(), whole)(whole)
    with pytest.raises(UsageError, match="layer 3 of the teacher's encoder has no attention"):
        Relation(RelationConfig(layer=3), batch)


@pytest.mark.parametrize("operator", ["linear", "local"])
def test_distributions_of_other_operators_are_refused(operator):
    teacher = transformers.BertForSequenceClassification(
        transformers.BertConfig(hidden_size=32, intermediate_size=32, **SIZES)
    )
    student, rows = (
        swap_attention(teacher, operator_config(operator, {})),
        Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5, 6]]}),
    )
    with pytest.raises(UsageError, match=rf"layer 1 of the student attends by operator '{operator}'.*'relation'"):
        distill(student, teacher, rows, Distillation(max_steps=1, objective="attention"))
    assert distill(student, teacher, rows, Distillation(max_steps=1, objective="relation")).steps == 1


def test_other_numbers_of_heads_compare_their_means():
    student, teacher = _call(0, 4, 4, 4), _call(9, 2, 2, 6)
    p, q = (log_probabilities(call).double().exp().mean(1).numpy() for call in (teacher, student))
    per_query = rel_entr(p, q).sum(-1)
    expected = np.mean([per_query[0].mean(), per_query[1, :3].mean()])
    assert divergence(student, teacher, ATTENDED.bool()).item() == pytest.approx(expected, rel=1e-4)
    assert divergence(student, student, ATTENDED.bool()).item() == 0


def _relations(vectors, heads):
    """[A, L, L] for one example of [L, C], written for reading."""
    width = vectors.shape[1] // heads
    parts = [vectors[:, head * width : (head + 1) * width] for head in range(heads)]
    return np.stack([softmax(part @ part.T / width**0.5, -1) for part in parts])


def test_relation_is_the_formula_for_models_of_other_heads_and_widths():
    student, teacher = _call(0, 3, 3, 8), _call(9, 4, 4, 12)
    batch = _batch((_call(5, 3, 3, 8), student), (teacher, _call(6, 4, 4, 12)))
    objective = Relation(RelationConfig(heads=6, layer=1), batch)
    expected = 0.0
    for name in ("query_BHLD", "key_BGSD", "value_BGSD"):
        sides = [getattr(call, name).transpose(1, 2).flatten(2).double().numpy() for call in (student, teacher)]
        errors = []
        for row, length in enumerate((5, 3)):
            q, p = (_relations(side[row, :length], 6) for side in sides)
            errors.append(rel_entr(p, q).sum(-1).mean())
        expected += np.mean(errors)
    assert objective(batch).item() == pytest.approx(expected, rel=1e-4)


def test_relation_heads_are_chosen_or_refused():
    batch = _batch((_call(0, 3, 1, 8),), (_call(9, 4, 2, 12),))
    objective = Relation(RelationConfig(), batch)
    assert objective.heads == {"encoder": {"query": 4, "key": 2, "value": 2}}
    with pytest.raises(UsageError, match=r"heads 5 does not divide.*24 in the student and 48 in the teacher"):
        Relation(RelationConfig(heads=5), batch)
    with pytest.raises(UsageError, match="layer 2: the teacher's encoder has layers 1 to 1"):
        Relation(RelationConfig(layer=2), batch)


def test_relations_leave_padding_out():
    heads = _random(0, 2, 2, 5, 4)
    other = heads.clone()
    other[1, :, 3:] = 50.0
    for a, b in zip(log_relations(heads, 4, ATTENDED.bool()), log_relations(other, 4, ATTENDED.bool()), strict=True):
        torch.testing.assert_close(a[:, :3, :3], b[:, :3, :3])
    everywhere = log_relations(heads, 2, torch.ones(2, 5, dtype=torch.bool))[0, 1].double().numpy()
    part = heads[0, 1].double().numpy()
    np.testing.assert_allclose(everywhere, log_softmax(part @ part.T / 2, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", [Attention, Relation])
def test_models_that_do_not_fit_are_refused(objective):
    config = objective.config_class()
    with pytest.raises(UsageError, match="different positions"):
        objective(config, _batch((_call(0, 2, 2, 4),), (_call(0, 2, 2, 4, length=4),)))
    other = DistillationBatch({"attention": {"encoder": ()}}, {"attention": {"decoder": ()}}, {})
    with pytest.raises(UsageError, match="stacks of layers"):
        objective(config, other)


def _huber(difference):
    return np.where(np.abs(difference) < 1, 0.5 * difference**2, np.abs(difference) - 0.5)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_distances_and_angles_are_the_formulas(count):
    student, teacher = _random(0, count, 4), _random(1, count, 7)
    distances, angles = [], []
    for side in (student.double().numpy(), teacher.double().numpy()):
        pairs = [np.linalg.norm(side[i] - side[j]) for i in range(count) for j in range(count) if i != j]
        distances.append(np.array(pairs) / np.mean(pairs))
        unit = lambda a, b: (a - b) / np.linalg.norm(a - b)  # noqa: E731
        angles.append(
            [
                unit(side[i], side[j]) @ unit(side[k], side[j])
                for i in range(count) for j in range(count) for k in range(count) if len({i, j, k}) == 3
            ]
        )  # fmt: skip
    assert distance_loss(student, teacher).item() == pytest.approx(_huber(distances[0] - distances[1]).mean(), rel=1e-3)
    expected = _huber(np.array(angles[0]) - np.array(angles[1])).mean() if count > 2 else 0.0
    assert angle_loss(student, teacher).item() == pytest.approx(expected, rel=1e-3)


def test_equal_examples_have_finite_gradients():
    student = torch.ones(4, 3, requires_grad=True)
    (distance_loss(student, _random(0, 4, 3)) + angle_loss(student, _random(0, 4, 3))).backward()
    assert student.grad.isfinite().all()


def test_rkd_looks_at_the_last_states_of_tokens():
    states = [(_random(seed, 2, 5, 4), _random(seed + 1, 2, 5, 4)) for seed in (0, 5)]
    batch = DistillationBatch({"hidden_states": states[0]}, {"hidden_states": states[1]}, {"attention_mask": ATTENDED})
    value = RKD(RKD.config_class(), batch)(batch).item()
    states[0][1][1, 3:] = 77.0
    assert RKD(RKD.config_class(), batch)(batch).item() == pytest.approx(value)
    pairs = [torch.stack([side[1][0].mean(0), side[1][1, :3].mean(0)]) for side in states]
    assert value == pytest.approx(distance_loss(*pairs).item())
