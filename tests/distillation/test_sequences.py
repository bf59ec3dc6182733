"""Training on what the teacher writes."""

import pytest
import torch
import transformers
from datasets import Dataset

from effitrans import Distillation, UsageError, distill, load_task, make_student
from effitrans.distillation.sequences import with_answers
from effitrans.tasks.padding import Padding
from effitrans.training.data import Data, resolve
from tests.tasks.cases import CASES, make_model
from tests.training.helpers import assert_same_weights, bert, sentences


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("EFFITRANS_CACHE", str(tmp_path / "caches"))
    return tmp_path / "caches" / "teachers"


@pytest.fixture
def pair(tmp_path):
    """(task, tokenizer, teacher) of a little translation."""
    from effitrans.tasks import build_processor

    task = load_task(CASES["seq2seq-lm"].task(tmp_path))
    tokenizer = build_processor(task)
    return task, tokenizer, make_model(CASES["seq2seq-lm"].models[0], task, tokenizer, 3)


@pytest.mark.parametrize("beams", [1, 3])
def test_targets_are_the_answers_of_the_teacher(beams, pair):
    task, tokenizer, teacher = pair
    data = resolve(task, teacher, tokenizer, Distillation())
    config = Distillation(sequence_level={"num_beams": beams}, batch_size=3)
    found = with_answers(data, teacher, teacher, config)
    assert found.validation is data.validation
    assert list(found.train["input_ids"]) == list(data.train["input_ids"])
    longest = task.options.max_new_tokens
    for row in list(found.train)[:4]:
        with torch.no_grad():
            written = teacher.eval().generate(
                torch.tensor([row["input_ids"]]), max_new_tokens=longest, num_beams=beams, do_sample=False
            )
        expected = written[0, 1:].tolist()
        end = teacher.generation_config.eos_token_id
        expected = expected[: expected.index(end) + 1] if end in expected else expected
        assert row["labels"] == expected


def test_answers_are_kept_on_disk(pair, folder, monkeypatch):
    task, tokenizer, teacher = pair
    monkeypatch.setattr("effitrans.distillation.sequences._PART", 4)
    data = resolve(task, teacher, tokenizer, Distillation())
    config = Distillation(sequence_level=True, batch_size=4, cache=True)
    expected = with_answers(data, teacher, teacher, Distillation(sequence_level=True, batch_size=4)).train["labels"]
    assert not folder.exists()
    assert list(with_answers(data, teacher, teacher, config).train["labels"]) == list(expected)
    parts = sorted(folder.rglob("*.safetensors"))
    assert len(parts) == -(-len(data.train) // 4) > 1
    calls, original = [], teacher.generate
    monkeypatch.setattr(teacher, "generate", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    assert list(with_answers(data, teacher, teacher, config).train["labels"]) == list(expected)
    assert not calls
    parts[1].write_bytes(b"damaged")
    assert list(with_answers(data, teacher, teacher, config).train["labels"]) == list(expected)
    assert len(calls) == 1


def test_answers_are_those_of_the_settings_of_generation(pair, folder):
    task, tokenizer, teacher = pair
    data = resolve(task, teacher, tokenizer, Distillation())
    config = Distillation(sequence_level=True, batch_size=8, cache=True)
    before = list(with_answers(data, teacher, teacher, config).train["labels"])
    start = before[0][0]
    teacher.generation_config.suppress_tokens = [start]
    after = list(with_answers(data, teacher, teacher, config).train["labels"])
    assert all(start not in answer for answer in after)
    assert len(list(folder.iterdir())) == 2


def test_answers_are_no_longer_than_the_student_can_take(pair):
    task, tokenizer, teacher = pair
    data = resolve(task, teacher, tokenizer, Distillation())
    student = make_student(teacher, "layers=1")
    student.config.max_position_embeddings = 4
    answers = with_answers(data, student, teacher, Distillation(sequence_level=True)).train["labels"]
    assert max(map(len, answers)) == 3


@pytest.mark.parametrize("cache", [False, True])
def test_students_learn_the_answers(cache, pair):
    task, tokenizer, teacher = pair
    students = []
    for _ in range(2):
        student = make_student(teacher, "layers=1")
        config = Distillation(epochs=3, batch_size=4, learning_rate=3e-3, sequence_level=True, cache=cache, log_every=1)
        result = distill(student, teacher, task, config, processor=tokenizer)
        losses = [entry["loss"] for entry in result.history if "loss" in entry]
        assert losses[-1] < losses[0]
        students.append(student)
    assert_same_weights(*students)


def test_refused():
    with pytest.raises(UsageError, match=r"sequence_level\.num_beams"):
        Distillation.parse({"sequence_level": {"num_beams": 0}})
    teacher = bert(num_hidden_layers=3)
    with pytest.raises(UsageError, match="encoder-decoder"):
        distill(bert(), teacher, sentences(8), Distillation(sequence_level=True))
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    rows = Dataset.from_dict({"pixels": [[1.0]]})
    with pytest.raises(UsageError, match="without token ids"):
        with_answers(Data(rows, None, Padding(0)), t5, t5, Distillation(sequence_level=True))
