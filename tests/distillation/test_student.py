"""Students made from the teacher, and pairs that do not fit."""

from typing import Any

import pytest
import torch
import transformers

from effitrans import Distillation, Training, UsageError, checkpoint, distill, make_student, train
from effitrans.architectures import adapter
from effitrans.distillation import check_compatible
from effitrans.distillation.student import is_copy, kept_layers
from tests.architectures.families import FAMILIES
from tests.training.helpers import VOCABULARY, assert_same_weights, bert, sentences, splits, weights


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_copy_with_fewer_layers(family):
    teacher = family.model()
    before, config = weights(teacher), teacher.config.to_dict()
    student = make_student(teacher, "layers=2")
    assert {getattr(student.config, field) for field in family.layers_field} == {2}
    assert {getattr(teacher.config, field) for field in family.layers_field} == {3}
    assert student.num_parameters() < teacher.num_parameters()
    assert teacher.config.to_dict() == config
    for name, tensor in weights(teacher).items():
        assert torch.equal(tensor, before[name]), name
    with torch.no_grad():
        assert student(**family.inputs()).logits.shape == teacher(**family.inputs()).logits.shape


def test_the_first_and_the_last_layer_are_kept():
    teacher = bert(num_hidden_layers=6)
    student = make_student(teacher, "layers=3")
    for mine, theirs in enumerate((0, 2, 5)):
        assert_same_weights(student.bert.encoder.layer[mine], teacher.bert.encoder.layer[theirs])
    assert_same_weights(student.classifier, teacher.classifier)


def test_all_layers_are_a_copy():
    teacher = bert()
    student = make_student(teacher, 2)
    assert_same_weights(student, teacher)
    assert student.classifier.weight is not teacher.classifier.weight


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("layers=0", "cannot keep 0 of 2 layers"),
        ("layers=3", "cannot keep 3 of 2 layers"),
        ("layers", "expected layers=N"),
        ("width=2", "expected layers=N"),
        ("heads=2,", "expected layers=N"),
        ("hidden=33", "hidden=33: the teacher has 32, give a number from 1 to 32"),
        ("heads=3", "heads=3: the teacher has 2, give a number from 1 to 2"),
        ("ffn=0", "ffn=0: the teacher has 64, give a number from 1 to 64"),
        ("layers=two", "expected layers=N"),
        ("layers=1-0", "student layers: the span '1-0' runs backwards"),
        ("layers=0,0", "student layers: '0,0' names 0 twice"),
        ("layers=0,2", "student layers=0,2: the teacher's encoder has no layer 2"),
        ("heads=0-1", "expected layers=N"),
    ],
)
def test_other_specs_are_refused(spec, message):
    with pytest.raises(UsageError, match=message):
        make_student(bert(), spec)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_narrower_copy(family):
    teacher = family.model()
    student = make_student(teacher, "layers=2, heads=2, ffn=24")
    for layer in adapter(student).layers:
        assert layer.feed_forward.width == 24
        assert {site.num_key_value_heads for site in layer.attention} == {2}
    with torch.no_grad():
        assert student(**family.inputs()).logits.shape == teacher(**family.inputs()).logits.shape
    assert checkpoint.history(student)[-1]["verb"] == "prune"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_copy_of_another_hidden_width(family, tmp_path):
    teacher = family.model()
    try:
        student = make_student(teacher, "layers=2, hidden=24, ffn=32")
    except UsageError as error:
        pytest.skip(str(error))
    with torch.no_grad():
        out = student(**family.inputs(), output_hidden_states=True)
    states = out.get("hidden_states") or out.get("encoder_hidden_states")
    assert {state.shape[-1] for state in states} == {24}
    assert out.logits.shape == teacher(**family.inputs()).logits.shape
    assert len(states) == 3
    checkpoint.save(student, tmp_path / "model")
    assert_same_weights(checkpoint.load_model(tmp_path / "model", family.auto_class), student)


def test_channels_that_weigh_most_are_kept_and_a_narrow_copy_learns():
    teacher = bert(seed=7, num_hidden_layers=3)
    train(teacher, sentences(256, seed=2), Training(epochs=4, batch_size=16, learning_rate=2e-3))
    student = make_student(teacher, "layers=2,hidden=24")
    table, original = (side.bert.embeddings.word_embeddings.weight for side in (student, teacher))
    rows = {tuple(channel.tolist()) for channel in original.T}
    assert table.shape == (VOCABULARY, 24)
    assert all(tuple(channel.tolist()) in rows for channel in table.T), "channels are copied, not drawn"
    losses = {}
    for name, learner in (("copy", student), ("new", bert(seed=3, hidden_size=24))):
        config = Distillation(
            epochs=4, batch_size=16, learning_rate=1e-3, objective="response,feature", alpha=1, log_every=1
        )
        result = distill(learner, teacher, splits(), config)
        losses[name] = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses["copy"][-1] < 0.7 * losses["copy"][0]
    assert losses["copy"][-1] < losses["new"][-1]


def test_a_narrower_copy_keeps_what_weighs_most():
    teacher = bert(intermediate_size=8)
    with torch.no_grad():
        for layer in teacher.bert.encoder.layer:
            layer.intermediate.dense.weight[[1, 6]] *= 100
    student = make_student(teacher, "ffn=2")
    for mine, theirs in zip(student.bert.encoder.layer, teacher.bert.encoder.layer, strict=True):
        assert torch.equal(mine.intermediate.dense.weight, theirs.intermediate.dense.weight[[1, 6]])
    assert_same_weights(student.bert.embeddings, teacher.bert.embeddings)


def test_an_architecture_without_an_adapter_is_named():
    config = transformers.ElectraConfig(vocab_size=9, hidden_size=8, embedding_size=8, num_attention_heads=2,
                                        intermediate_size=8, num_hidden_layers=2)  # fmt: skip
    with pytest.raises(UsageError, match=r"'electra'.*bert"):
        make_student(transformers.ElectraForSequenceClassification(config), "layers=1")


class Words:
    """As much of a tokenizer as has a vocabulary."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def get_vocab(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}


def _pair(**changes: Any):
    return bert(), bert(seed=1, **changes)


def test_pairs_that_fit():
    check_compatible(*_pair(), Words("a", "b"), Words("a", "b"))
    check_compatible(*_pair(hidden_size=48, num_hidden_layers=3))
    check_compatible(*_pair(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1}))


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (Words("a", "b", "c"), r"different tokenizers \(2 and 3 tokens, 1 differ, such as 'c'\)"),
        (Words("b", "a"), "2 differ"),
    ],
    ids=["more-words", "other-order"],
)
def test_another_tokenizer(theirs, message):
    with pytest.raises(UsageError, match=message):
        check_compatible(*_pair(), Words("a", "b"), theirs)


def test_another_size_of_vocabulary():
    config = transformers.BertConfig(vocab_size=VOCABULARY + 1, hidden_size=8, num_attention_heads=2,
                                     intermediate_size=8, num_hidden_layers=1)  # fmt: skip
    with pytest.raises(UsageError, match=r"vocabularies of 40 and 41 tokens.*layers=N"):
        check_compatible(bert(), transformers.BertForSequenceClassification(config))


def test_another_number_of_labels():
    with pytest.raises(UsageError, match="head has 2 labels and the teacher's 3"):
        check_compatible(*_pair(num_labels=3))


def test_labels_in_another_order():
    student = bert(id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1})
    teacher = bert(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    with pytest.raises(UsageError, match="different labels, yes, no and no, yes"):
        check_compatible(student, teacher)


def test_another_problem_type():
    student, teacher = _pair(problem_type="multi_label_classification")
    check_compatible(student, teacher)
    student.config.problem_type = "single_label_classification"
    with pytest.raises(UsageError, match=r"single_label_classification and the teacher's multi_label_classification"):
        check_compatible(student, teacher)


def test_the_same_model_twice():
    model = bert()
    with pytest.raises(UsageError, match="the same model"):
        check_compatible(model, model)


def test_quantized_students():
    student, teacher = _pair()
    student.is_quantized = True
    with pytest.raises(UsageError, match="quantize last"):
        distill(student, teacher, sentences(8), Distillation(max_steps=1))
    with pytest.raises(UsageError, match="from the original model"):
        make_student(student, "layers=1")


@pytest.mark.parametrize(("spec", "kept"), [("layers=1-2", [1, 2]), ("hidden=16, layers=3,0", [0, 3])])
def test_a_student_of_certain_layers(spec, kept):
    teacher = bert(num_hidden_layers=4)
    assert is_copy(spec)
    student = make_student(teacher, spec)
    assert kept_layers(student, teacher) == {"encoder": kept}
