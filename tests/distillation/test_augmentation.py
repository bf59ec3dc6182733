"""More texts than the labelled: copies in which a masked language model replaces words, parts, and a file of others."""

import json
from dataclasses import replace

import pytest
import torch
import transformers

from effitrans import Distillation, UsageError, checkpoint, distill, load_task, make_student
from effitrans.distillation.augmentation import WordReplacement, with_copies, with_texts
from effitrans.distillation.augmentation.word_replacement import _changed, _continuations, _masked_lm
from effitrans.training.data import resolve
from tests.conftest import WORDS
from tests.tasks.cases import CASES, make

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """WordPiece: twelve words, two of which are cut into two pieces."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[:10], "fi", "##lm", "##s"]
    file = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    file.write_text("\n".join(words))
    return transformers.BertTokenizer(vocab=str(file), model_max_length=32)


@pytest.fixture(scope="module")
def masked_lm(tokenizer, tmp_path_factory):
    """One that finds 'good', 'bad' and special tokens likely everywhere, and then '##lm'."""
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(tokenizer) + 2, max_position_embeddings=32, **SIZES)
    model = transformers.BertForMaskedLM(config)
    with torch.no_grad():
        model.cls.predictions.bias[:] = 0
        model.cls.predictions.bias[[0, 3, 4, len(tokenizer)]] = 60
        model.cls.predictions.bias[tokenizer.convert_tokens_to_ids(["##lm"])] = 50
        model.cls.predictions.bias[tokenizer.convert_tokens_to_ids(["good", "bad"])] = 40
    folder = tmp_path_factory.mktemp("masked") / "model"
    checkpoint.save(model, folder, tokenizer)
    return str(folder)


@pytest.fixture
def task(tmp_path):
    lines = [{"sentence": text, "label": i % 2} for i, text in enumerate(["fine films not very good", "poor plot"] * 8)]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    values = {"name": "t", "kind": "sequence-classification", "inputs": "sentence", "target": "label"}
    file = tmp_path / "task.yaml"
    file.write_text(json.dumps({**values, "data": {"train": "train.jsonl"}, "metrics": ["accuracy"]}))
    return file


@pytest.fixture
def teacher(tokenizer):
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), max_position_embeddings=32, **{**SIZES, "num_hidden_layers": 2}
    )
    return transformers.BertForSequenceClassification(config).eval()


def _replacement(masked_lm, **values):
    return WordReplacement(**{"copies": 3, "model": masked_lm, "candidates": 2, **values})


def test_whole_words_become_likely_words(tokenizer, masked_lm, task, teacher):
    data = resolve(str(task), teacher, tokenizer, Distillation())
    found = with_copies(data, tokenizer, _replacement(masked_lm, probability=0.5), Distillation())
    assert len(found.train) == 4 * 16
    assert found.train.column_names == data.train.column_names
    likely = set(tokenizer.convert_tokens_to_ids(["good", "bad"]))
    changed, words = 0, 0
    for number in range(16, 64):
        before, after = data.train[number % 16]["input_ids"], found.train[number]["input_ids"]
        assert len(before) == len(after)
        names = tokenizer.convert_ids_to_tokens(before)
        for position, (old, new) in enumerate(zip(before, after, strict=True)):
            is_piece = names[position].startswith("##") or names[position : position + 2][-1].startswith("##")
            if names[position].startswith("[") or is_piece:
                assert old == new
                continue
            words += 1
            changed += new in likely and old not in likely
            assert new in {old} | likely
    assert 0.25 < changed / words < 0.6
    assert found.train[:16] == data.train[:16], "the examples themselves stay"
    again = with_copies(data, tokenizer, _replacement(masked_lm, probability=0.5), Distillation())
    assert again.train["input_ids"] == found.train["input_ids"]
    other = with_copies(data, tokenizer, _replacement(masked_lm, probability=0.5), Distillation(seed=1))
    assert other.train["input_ids"] != found.train["input_ids"]


def test_a_copy_does_not_depend_on_the_padding(tokenizer, masked_lm, task, teacher):
    data = resolve(str(task), teacher, tokenizer, Distillation())
    model = _masked_lm(masked_lm, tokenizer)
    replacement = _replacement(masked_lm, probability=1.0, candidates=1)
    together = list(_changed(data.train, data, model, tokenizer, replacement, 16, torch.Generator()))
    assert list(_changed(data.train, data, model, tokenizer, replacement, 1, torch.Generator())) == together


def test_the_student_learns_from_the_copies_and_from_no_label(tokenizer, masked_lm, task, teacher):
    added = {"word_replacement": _replacement(masked_lm)}
    config = Distillation(augmentation=added, epochs=1, batch_size=8, cache=True)
    student, seen = make_student(teacher, "layers=1"), []
    handle = teacher.register_forward_pre_hook(lambda *_: seen.append(1))
    result = distill(student, teacher, str(task), config, processor=tokenizer)
    handle.remove()
    assert result.steps == 64 // 8
    assert len(seen) == 2 + 8
    flipped = task.parent / "train.jsonl"
    flipped.write_text(flipped.read_text().replace('"label": 0', '"label": 2').replace("1}", "0}").replace("2}", "1}"))
    other = make_student(teacher, "layers=1")
    distill(other, teacher, str(task), config, processor=tokenizer)
    for mine, theirs in zip(student.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"augmentation": {"word_replacement": {"copies": 2}}}, r"word_replacement\.model: is required"),
        ({"augmentation": {"unlabeled": "f.txt"}, "alpha": 0.5}, "adds texts whose labels are not known"),
        ({"augmentation": {"crops": 2}, "alpha": 0.5}, "adds texts whose labels are not known"),
        ({"augmentation": {}}, "set unlabeled, crops or word_replacement"),
        ({"augmentation": {"word_replacement": {"model": "m"}}, "alpha": 0.5}, "leave alpha out"),
        ({"augmentation": {"word_replacement": {"model": "m"}}, "objective": "dkd"}, r"need labels \(dkd\)"),
    ],
)
def test_refused_settings(values, message):
    with pytest.raises(UsageError, match=message):
        Distillation.parse(values)


def test_refused_models(tokenizer, teacher, task, tmp_path):
    checkpoint.save(teacher, tmp_path / "classifier")
    small = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=8, **SIZES))
    checkpoint.save(small, tmp_path / "small")
    data = resolve(str(task), teacher, tokenizer, Distillation())
    for name, message in (("classifier", "predicts no masked tokens"), ("small", "has 8 tokens and the student's")):
        with pytest.raises(UsageError, match=message):
            with_copies(data, tokenizer, _replacement(str(tmp_path / name)), Distillation())
    with pytest.raises(UsageError, match="a tokenizer with a mask token"):
        with_copies(data, None, _replacement("m"), Distillation())


def test_refused_tokenizers(tokenizer, masked_lm, teacher, task, tmp_path):
    data = resolve(str(task), teacher, tokenizer, Distillation())
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join([*words[:5], *reversed(words[5:])]))
    other = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"), model_max_length=32)
    checkpoint.save(checkpoint.load_model(masked_lm, None), tmp_path / "other", other)
    with pytest.raises(UsageError, match="another tokenizer than the student"):
        with_copies(data, tokenizer, _replacement(str(tmp_path / "other")), Distillation())
    with pytest.raises(UsageError, match="candidates 12, and the tokenizer has 11 whole words"):
        with_copies(data, tokenizer, _replacement(masked_lm, candidates=12), Distillation())
    with pytest.raises(UsageError, match="only WordPiece and word-level tokenizers"):
        _continuations(transformers.ByT5Tokenizer(), 8)
    pairs = load_task(CASES["embedding"].task(tmp_path))
    with pytest.raises(UsageError, match=r"texts that are compared \(embedding\)"):
        with_copies(replace(data, task=pairs), tokenizer, _replacement(masked_lm), Distillation())


def test_texts_without_labels(tokenizer, task, teacher, tmp_path):
    file, student, seen = tmp_path / "more.jsonl", make_student(teacher, "layers=1"), []
    file.write_text("\n".join(json.dumps({"sentence": "very bad films", "note": i}) for i in range(8)))
    handle = teacher.register_forward_pre_hook(
        lambda module, args, kwargs: seen.extend(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    result = distill(
        student,
        teacher,
        str(task),
        Distillation(epochs=1, batch_size=8, augmentation={"unlabeled": str(file)}),
        processor=tokenizer,
    )
    handle.remove()
    assert result.steps == (16 + 8) // 8
    expected = tokenizer("very bad films")["input_ids"]
    assert sum(ids[: len(expected)] == expected for ids in seen) == 8
    for content, message in (("[]", "."), ('{"text": "good"}', "did you mean|unknown column|sentence")):
        file.write_text(content)
        with pytest.raises(UsageError, match=message):
            distill(
                student, teacher, str(task), Distillation(augmentation={"unlabeled": str(file)}), processor=tokenizer
            )
    rows = resolve(str(task), teacher, tokenizer, Distillation()).train
    with pytest.raises(UsageError, match="a task with one answer per text"):
        distill(student, teacher, rows, Distillation(augmentation={"unlabeled": str(file)}), processor=tokenizer)


def test_parts_of_the_training_texts(tokenizer, task, teacher):
    file = task.parent / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    texts = ["very bad films not good", "good films"]
    file.write_text("\n".join(json.dumps({**row, "sentence": texts[i % 2]}) for i, row in enumerate(rows)))
    config = Distillation(epochs=1, batch_size=8, augmentation={"crops": 3})
    data = with_texts(resolve(str(task), teacher, tokenizer, config), config.augmentation, config, tokenizer, [teacher])
    decoded = [tokenizer.decode(ids, skip_special_tokens=True) for ids in data.train["input_ids"]]
    assert decoded[: len(rows)] == texts * (len(rows) // 2)
    parts = {"very bad films", "bad films not", "films not good", "very bad films not", "bad films not good"}
    assert set(decoded[len(rows) :]) == parts
    assert len(decoded) == len(rows) + 3 * len(rows) // 2
    student = make_student(teacher, "layers=1")
    assert distill(student, teacher, str(task), config, processor=tokenizer).steps == len(decoded) // 8
    encoded = resolve(str(task), teacher, tokenizer, Distillation()).train
    with pytest.raises(UsageError, match="crops adds texts to a task with one answer per text"):
        distill(student, teacher, encoded, config, processor=tokenizer)


def test_parts_of_limited_data_and_of_pairs(tmp_path):
    task, model, processor = make("regression", "bert", tmp_path)
    config = Distillation(augmentation={"crops": 5}, max_train_examples=2)
    data = resolve(task, model, processor, config)
    grown = with_texts(data, config.augmentation, config, processor, [model])
    assert len(data.train) == 2
    assert 2 < len(grown.train) <= 2 + 5 * 2


def test_texts_without_parts_are_refused(tokenizer, task, teacher):
    file = task.parent / "train.jsonl"
    file.write_text("\n".join(json.dumps({"sentence": "good films", "label": i % 2}) for i in range(8)))
    with pytest.raises(UsageError, match="no training text has more than 3 words"):
        distill(
            make_student(teacher, "layers=1"),
            teacher,
            str(task),
            Distillation(augmentation={"crops": 2}),
            processor=tokenizer,
        )


def test_texts_that_one_model_would_cut_are_refused(tokenizer, task, teacher, tmp_path):
    sizes = {**SIZES, "num_hidden_layers": 2}
    config = transformers.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=8, **sizes)
    short = transformers.BertForSequenceClassification(config).eval()
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"sentence": "very " * 12}))
    rows = [json.dumps({"sentence": "very good", "label": label}) + "\n" for label in range(2)]
    (task.parent / "train.jsonl").write_text("".join(rows))
    with pytest.raises(UsageError, match="cut at different places"):
        distill(
            make_student(teacher, "layers=1"),
            short,
            str(task),
            Distillation(augmentation={"unlabeled": str(file)}),
            processor=tokenizer,
        )
